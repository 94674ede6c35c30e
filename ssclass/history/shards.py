"""Which shards there ever were, and in which versions: told by the ledger, so that nothing has to be opened for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ssclass.data.shards import Shard
from ssclass.workspace.dvc import DATA, outs
from ssclass.workspace.ledger import HELD, Event
from ssclass.workspace.objects import EMPTY_DIR, Tracked
from ssclass.workspace.workspace import Workspace


def shards_ever(workspace: Workspace) -> Iterator[Shard]:
    """The shards of the data set, and those that were revoked and not forgotten since.

    StoreError when one cannot be read.
    """
    version = workspace.at()
    yield from version.dataset.shards
    for tracked in revoked_shards(workspace):
        yield version.shard(tracked)


def revoked_shards(workspace: Workspace) -> list[Tracked]:
    """The shards of revoked batches as they were last, but for those that a `forget` took."""
    version = workspace.at()
    revoked, taken = version.state.revoked, forgotten_md5s(version.events)
    last: dict[str, str] = {}
    for _, present in holdings(workspace):
        last.update((batch, md5) for batch, md5 in present.items() if batch in revoked)
    return [Tracked(f"{DATA}/{batch}.parquet", md5) for batch, md5 in last.items() if md5 not in taken]


def stray_shards(workspace: Workspace) -> list[Tracked]:
    """The shards of commits that main does not contain, and that a branch or a tag names: somebody moved main back.

    Of a commit whose list of shards is nowhere, none.
    """
    found: dict[str, Tracked] = {}
    refs = workspace.git("for-each-ref", "--no-merged", "HEAD", "--format=%(refname)")
    for ref in refs.splitlines():
        version = workspace.at(ref)
        if any(md5 == EMPTY_DIR or workspace.objects.exists(md5) for _, md5 in outs(version.text("data.dvc"), DATA)):
            found |= {each.md5: each for each in version.files(DATA)}
    return list(found.values())


def forgotten_md5s(events: Collection[Event]) -> set[str]:
    """The md5s of the shards that were deleted because a photo in them was forgotten."""
    return {md5 for event in events if event.kind == "forget" for md5 in event.body["md5s"]}


def holdings(workspace: Workspace) -> Iterator[tuple[str, dict[str, str]]]:
    """(tag, {batch: md5 of its shard}) of every data version and decision, oldest first."""
    present: dict[str, str] = {}
    for event in workspace.at().events:
        body = event.body
        if event.kind == "ingest":
            present[body["batch"]] = body["md5"]
        elif event.kind == "revoke":
            present.pop(body["batch"], None)
        elif event.kind == "forget":
            present.update(_rewritten(workspace, event, present))
        if "sequence" in body:
            yield f"data/{body['sequence']}", dict(present)
        elif event.kind == "decision" and body["decision"] != HELD:
            yield f"run/{body['key']}", dict(present)


def tags_with(workspace: Workspace, md5s: Collection[str]) -> list[str]:
    """The tags of data versions and decisions that one of these shards is part of."""
    wanted = set(md5s)
    return [tag for tag, present in holdings(workspace) if wanted & set(present.values())]


def _rewritten(workspace: Workspace, event: Event, present: Collection[str]) -> dict[str, str]:
    """What a `forget` made of the shards of the data set: batch → md5. Older events do not tell; their version does."""
    body = event.body
    if "shards" in body:
        return dict(body["shards"])
    names = set(body["batches"]) & set(present)
    if not names:
        return {}
    found = workspace.at(f"data/{body['sequence']}").files(DATA)
    return {batch: each.md5 for each in found if (batch := each.name.removesuffix(".parquet")) in names}
