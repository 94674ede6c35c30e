"""Forgetting photos: out of every store that ssclass writes to, in every version.

First all that tells of the photos is looked for, and written down in the bucket (`results/forget/…`). Then a new data
version without them is pushed, and with it the ledger's record of what is to be deleted; it identifies no photo. Then
that is deleted, the note in the bucket last. A command that was stopped in between is finished by the next retrain, or
by the same command again (`ssclass.upkeep.finish`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssclass.data.dataset import Dataset
from ssclass.data.shards import Row, Shard, write_shard
from ssclass.data.split import HOLDOUT, TRAIN
from ssclass.errors import FailedError, InputError, NotFoundError
from ssclass.history.shards import holdings, tags_with
from ssclass.upkeep import finish, traces
from ssclass.upkeep.traces import Traces
from ssclass.workspace.dvc import DATA
from ssclass.workspace.ledger import Event
from ssclass.workspace.objects import Tracked
from ssclass.workspace.transaction import Change
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Forgotten:
    """What was found and taken out.

    batches: whose shards had or named a photo. models: decisions whose candidate saw a photo. tags: can no longer be
    pulled. objects: what was deleted or rewritten. near_copies: photos that stay, and are near-copies of a forgotten
    one. ledger_lines: lines of older versions that quote digits of a sha256, in git for good.
    """

    batches: tuple[str, ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    tags: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    near_copies: tuple[dict[str, str], ...] = ()
    ledger_lines: int = 0


def forget(workspace: Workspace, sha256s: Sequence[str], reason: str) -> Forgotten:
    """Take photos out of everything; InputError unless each is a whole sha256. NotFoundError when none is anywhere.

    StoreError when it cannot be told whether a photo is somewhere: nothing has changed then. FailedError when something
    cannot be deleted: the ledger has the request by then, and whoever may delete it finishes it.
    """
    for sha256 in sha256s:
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise InputError(f"{sha256}: not a sha256 of 64 hex digits; `ssclass lineage` finds it from its beginning")
    gone = frozenset(sha256s)
    workspace.claim()
    workspace.newest()
    finished = finish.finish_here(workspace)
    found = workspace.write(lambda change: _publish(change, gone, reason))
    if found is None and not gone & finished.photos:
        raise NotFoundError(
            "none of these photos is in the data set, in incoming/, quarantine/ or collect/; nothing to forget"
        )
    done = finish.finish_here(workspace)
    _correct_markers(workspace, done.markers)
    if done.refused:
        raise FailedError(
            f"{workspace.root}: the photos are out of the data set, but copies as they were sent are still there "
            f"({done.refused[0]}); `ssclass verify --repair` finishes it with the rights of the bucket's owner"
        )
    objects = (*finished.objects, *done.objects)
    return replace(found or Forgotten(), objects=objects)


def _publish(change: Change, gone: frozenset[str], reason: str) -> Forgotten | None:
    """Search, rewrite the shards, and record what is to be deleted; None when there is nothing of these photos."""
    workspace, version = change.workspace, change.version
    shards = traces.known_shards(workspace)
    found = traces.find(workspace, gone, shards)
    holding = [(tracked, shard) for tracked, shard in shards if found.in_shard(shard)]
    if not holding and not found:
        return None
    now = {each.path: each.md5 for each in version.files(DATA)}
    heirs = _heirs(version.dataset, gone)
    inside = [(tracked, shard) for tracked, shard in holding if now.get(tracked.path) == tracked.md5]
    made = [_rewrite(change, shard, found, heirs) for _, shard in inside]
    md5s = {tracked.md5 for tracked, _ in holding}
    models = _models(workspace, gone, [shard for _, shard in shards])
    told = Forgotten(
        batches=tuple(shard.batch_id for _, shard in holding),
        models=tuple(models),
        tags=tuple(tags_with(workspace, md5s)),
        near_copies=tuple(_near_copies(version.dataset, found, holding)),
        ledger_lines=sum(found.quoted(event.line()) for event in version.events),
    )
    rewritten = change.add_shards(*made) if made else {}
    journal = uuid.uuid4().hex
    event = Event.now(
        "forget",
        photos=len(gone),
        batches=list(told.batches),
        md5s=sorted(md5s),
        shards={name.removesuffix(".parquet"): md5 for name, md5 in rewritten.items()},
        features=sorted({shard.photos_digest for _, shard in holding if found.in_rows(shard)}),
        models=[model["key"] for model in models],
        markers=finish.new_markers(workspace.store, version.state, found),
        journal=journal,
        sequence=version.state.next_version,
        reason=reason,
    )
    finish.note(workspace.store, journal, found)
    try:
        change.publish(f"Forget {len(gone)} photos: {reason}", [event], tags=[f"data/{event.body['sequence']}"])
    except BaseException:
        # Where the push was applied and its answer lost, the note is all that says what is to be deleted.
        if change.commit is None and change.arrived(f"data/{event.body['sequence']}") is False:
            workspace.store.erase(finish.journal_key(journal))
        raise
    return told


def _heirs(dataset: Dataset, gone: Collection[str]) -> dict[str, str]:
    """New names of the groups that were named after a forgotten photo: their first member that remains."""
    heirs: dict[str, str] = {}
    for shard in dataset.shards:
        for row in shard.rows:
            if row.group in gone and row.sha256 not in gone:
                heirs.setdefault(row.group, row.sha256)
    return heirs


def _rewrite(change: Change, shard: Shard, found: Traces, heirs: Mapping[str, str]) -> Path:
    rows = [replace(row, group=heirs.get(row.group, row.group)) for row in shard.rows if row.sha256 not in found.photos]
    by_sha256: dict[str, Row] = {row.sha256: row for row in rows}
    path = change.scratch / f"{shard.batch_id}.parquet"
    kept = change.version.photos(shard.batch_id, set(by_sha256))
    write_shard(path, ((by_sha256[sha256], data) for sha256, data in kept), found.without(shard, rows))
    return path


def _models(workspace: Workspace, gone: Collection[str], shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """The decisions whose candidate learnt from a photo, or was scored on it."""
    state = workspace.at().state
    touching = {
        shard.batch_id: shard
        for shard in shards
        if any(row.sha256 in gone for row in shard.rows) or not shard.receipt.corrected.isdisjoint(gone)
    }
    found = []
    for tag, present in holdings(workspace):
        if not tag.startswith("run/") or touching.keys().isdisjoint(present):
            continue
        rows = Dataset.of(shard for batch, shard in touching.items() if batch in present).by_sha256
        sides = {rows[sha256].split for sha256 in gone if sha256 in rows}
        body = state.decisions[tag.removeprefix("run/")].body
        learnt = TRAIN in sides and "adopted" not in body  # an adopted model has learnt elsewhere
        if learnt or HOLDOUT in sides:
            number = state.number_of(body["key"]) if body["key"] in state.champions else None
            told = {"key": body["key"], "decision": body["decision"], "champion": number}
            use = "trained on" if learnt else "scored on"
            found.append({**told, "data_version": body["data_version"], "use": use})
    return found


def _near_copies(dataset: Dataset, found: Traces, holding: Iterable[tuple[Tracked, Shard]]) -> Iterable[dict[str, str]]:
    """Photos that stay: of the same group of near-copies, and those that were refused as copies of a forgotten one."""
    groups = {row.group for shard in dataset.shards for row in shard.rows if row.sha256 in found.photos}
    for shard in dataset.shards:
        for row in shard.rows:
            if row.group in groups | found.photos and row.sha256 not in found.photos:
                yield {"sha256": row.sha256, "batch": shard.batch_id, "key": row.key}
    for _, shard in holding:
        for item in shard.receipt.refused:
            if found.quoted(item.detail) and (shard.batch_id, item.key) not in found.names:
                yield {"sha256": "", "batch": shard.batch_id, "key": f"quarantine/{shard.batch_id}/{item.key}"}


def _correct_markers(workspace: Workspace, markers: Sequence[tuple[str, str, str]]) -> None:
    """Record the etags of rewritten manifests that are not the md5 of their bytes, as where a bucket is encrypted."""
    if not markers:
        return
    body = {"photos": 0, "batches": [], "md5s": [], "markers": [list(each) for each in markers]}
    event = Event.now("forget", **body, reason="the markers as the store names them")

    def write(change: Change) -> None:
        change.publish("Rewritten manifests, as the store names them", [event])

    workspace.write(write)
