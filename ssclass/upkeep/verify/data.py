"""The data set: DVC's objects by their bytes, shards against the ledger, the memo of features, what was forgotten."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.data.shards import Shard, read_memo, read_shard
from ssclass.data.split import TRAIN
from ssclass.errors import FailedError, StoreError, WorkspaceError
from ssclass.history.shards import forgotten_md5s, holdings
from ssclass.retrain.ingest import ingest, older, sent_anew
from ssclass.store import Listed
from ssclass.upkeep.finish import finish_here, open_journals
from ssclass.upkeep.verify.finding import REPAIR, Finding
from ssclass.upkeep.verify.history import expected_tags
from ssclass.workspace.dvc import CANDIDATE, DATA, outs
from ssclass.workspace.objects import EMPTY_DIR, REMOTE, Tracked
from ssclass.workspace.version import Version, memo_path
from ssclass.workspace.workspace import Workspace


def objects(workspace: Workspace) -> Iterator[Finding]:
    """Each object of a data version, and of the champion in force, is in the bucket, and wherever it is has its bytes.

    S3's word is taken for its bytes where its ETag is the md5; another object is fetched. What was forgotten may be
    gone, and `gc` may have taken other candidates.
    """
    remote = {item.key.removeprefix(REMOTE).replace("/", ""): item for item in workspace.store.list(REMOTE)}
    checked: set[str] = set()
    for name, md5, folder in _listings(workspace):
        if md5 in checked or md5 == EMPTY_DIR:
            continue
        checked.add(md5)
        yield from _object(workspace, f"listing of {name}", md5, remote)
        try:
            files = workspace.objects.listing(md5, folder)
        except (StoreError, WorkspaceError):  # told already
            continue
        for each in files:
            if each.md5 not in checked | forgotten_md5s(workspace.at().events):
                checked.add(each.md5)
                yield from _object(workspace, f"{each.path} of {name}", each.md5, remote)


def _listings(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    """(name of the version, md5 of the listing, folder) of every data version, of main, and of the champion."""
    wanted = [(name, commit, DATA) for name, commit in expected_tags(workspace).items() if name.startswith("data/")]
    wanted += [("main", workspace.head, DATA), ("main", workspace.head, CANDIDATE)]
    if (champion := workspace.at().state.champion) is not None:
        wanted.append((f"run/{champion}", workspace.decided(champion).commit or "", CANDIDATE))
    for name, commit, folder in wanted:
        text = workspace.at(commit).text("data.dvc" if folder == DATA else "dvc.lock")
        for _, md5 in outs(text, folder):
            yield name, md5, folder


def _object(workspace: Workspace, name: str, md5: str, remote: dict[str, Listed]) -> Iterator[Finding]:
    at, here = workspace.objects, workspace.objects.here(md5)
    whole = here.exists() and _md5(here.read_bytes()) == md5[:32]
    if here.exists() and not whole:
        yield Finding(
            f"{name}, in DVC's cache", "its bytes are not what its name says", f"`rm {here}`, or {REPAIR}", here.unlink
        )
    there = remote.get(md5)
    if there is not None and (there.etag == md5[:32] or _md5(workspace.store.get(there.key) or b"") == md5[:32]):
        return
    where = f"{name}, s3://{workspace.store.place}/{at.key(md5)}"
    wrong = "gone" if there is None else "its bytes are not what its name says"
    if whole:
        yield Finding(
            where,
            wrong,
            f"DVC's cache here still has it, {REPAIR}",
            partial(_push, workspace, md5),
        )
    else:
        yield Finding(where, wrong, "push it from a clone that has it (`ssclass verify --repair` there), or a backup")


def _push(workspace: Workspace, md5: str) -> None:
    """Put an object of the local cache into the bucket."""
    workspace.store.put(workspace.objects.key(md5), workspace.objects.here(md5).read_bytes())


def shards(workspace: Workspace) -> Iterator[Finding]:
    """data.dvc lists the batches that the ledger says are in, and each shard's receipt is what the ledger says."""
    version = workspace.at()
    state = version.state
    should = {batch for batch in state.ingested if batch not in state.revoked}
    files = {each.name.removesuffix(".parquet"): each for each in version.files(DATA)}
    undo = f"see `git -C {workspace.root} log -- data.dvc` for the commit that changed it, and revert that"
    for batch in sorted(should - set(files)):
        yield Finding(f"batch {batch}", "in the data set by the ledger, but data.dvc does not list it", undo)
    for batch in sorted(set(files) - should):
        yield Finding(f"batch {batch}", "data.dvc lists it, but by the ledger it is not in the data set", undo)
    last = next((present for _, present in reversed(list(holdings(workspace)))), {})
    touched = {batch for event in version.events if event.kind == "forget" for batch in event.body["batches"]}
    for batch in sorted(should & set(files)):
        if last.get(batch) != files[batch].md5:
            yield Finding(f"batch {batch}", f"its shard is {files[batch].md5}, by the ledger {last.get(batch)}", undo)
        yield from _shard(workspace, version, files[batch], batch in touched)


def _shard(workspace: Workspace, version: Version, tracked: Tracked, forgotten: bool) -> Iterator[Finding]:
    memo = memo_path(workspace.private / "shards", tracked.md5)
    batch = tracked.name.removesuffix(".parquet")
    try:
        with workspace.objects.open(tracked.md5) as file:
            shard = read_shard(file)
    except FailedError as error:
        yield Finding(tracked.path, f"cannot be read ({error})", "see what is said of its object")
        return
    if memo.exists() and not _same(memo, shard):
        yield Finding(
            f"memo of {tracked.path}", "it is not what the shard says", f"`rm {memo}`, or {REPAIR}", memo.unlink
        )
    event, receipt = version.state.ingested[batch].body, shard.receipt
    said = {"batch": batch, "etag": event["etag"], "sequence": event["sequence"], "photos": len(shard.rows)}
    found = {"batch": receipt.batch_id, "etag": receipt.etag, "sequence": receipt.sequence, "photos": receipt.accepted}
    if not forgotten and "accepted" in event.get("receipt", {}):
        said["accepted"], found["accepted"] = event["receipt"]["accepted"], receipt.accepted
    for name, value in said.items():
        if found[name] != value:
            yield Finding(
                tracked.path,
                f"its receipt says {name} {found[name]}, the ledger or its rows {value}",
                f"`ssclass batch revoke {batch}`, and send the photos under a new id",
            )


def _same(memo: Path, shard: Shard) -> bool:
    try:
        return read_memo(memo) == shard
    except FailedError:
        return False


def features(workspace: Workspace) -> Iterator[Finding]:
    """Each memo of features of the data set's shards can be read, and is of those photos; axes can be read."""
    from ssclass.model.pooled import AXES_FILE

    photos: dict[str, list[tuple[str, ...]]] = {}
    for shard in workspace.at().dataset.shards:
        rows = shard.rows
        photos[f"{shard.photos_digest}.npz"] = [
            tuple(row.sha256 for row in rows),
            tuple(row.sha256 for row in rows if row.split == TRAIN),
        ]
    for path in sorted((workspace.private / "features").rglob("*.npz")):
        try:
            packed = path.read_bytes()
        except FileNotFoundError:  # a retrain has put another pack in its place
            continue
        if not _readable(packed, photos.get(path.name), axes=path.name == AXES_FILE):
            yield Finding(f"features {path}", "damaged, or of other photos", f"`rm {path}`, or {REPAIR}", path.unlink)
    for item in workspace.store.list("features/"):
        name = item.key.rsplit("/", 1)[-1]
        if name.endswith(".npz") and not _readable(workspace.store.get(item.key) or b"", photos.get(name)):
            yield Finding(
                f"s3://{workspace.store.place}/{item.key}",
                "damaged, or of other photos",
                f"delete it: features are made again when they are missed; or {REPAIR}",
                partial(workspace.store.delete, item.key),
            )


def _readable(packed: bytes, photos: Collection[tuple[str, ...]] | None, *, axes: bool = False) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as file:
            if file.testzip() is not None:
                return False
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            found = tuple(str(name) for name in arrays["names" if axes else "sha256s"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
    return photos is None or found in photos


def deliveries(workspace: Workspace) -> Iterator[Finding]:
    """No old batch was sent again under its id; the next retrain looks at the newest ones itself."""
    state = workspace.at().state
    for ref in sent_anew(workspace.store, state, older(state)):
        undo = f"`ssclass verify --repair` holds it; send the photos under a new id, then `ssclass batch drop {ref.id}`"
        what = "its marker was written again over other files, which nobody looked at"
        yield Finding(f"batch {ref.id}", what, undo, partial(ingest, workspace, ref))


def forgetting(workspace: Workspace) -> Iterator[Finding]:
    """Whatever was forgotten is gone: no note of it waits, and no shard that it was in is left."""

    def finish() -> None:
        finish_here(workspace)

    for name in open_journals(workspace):
        yield Finding(f"forget {name[:8]}", "not finished: copies as they were sent may still be there", REPAIR, finish)
    store, keys = workspace.store, {}
    taken = forgotten_md5s(workspace.at().events)
    if taken:
        keys = {workspace.objects.key(md5): md5 for md5 in taken}
    left = {keys[key] for key, _, _ in store.versions(REMOTE) if key in keys} if keys else set()
    left |= {md5 for md5 in taken if workspace.objects.here(md5).exists()}
    for md5 in sorted(left):
        yield Finding(
            f"DVC object {md5}",
            "a shard with a forgotten photo is still there",
            REPAIR,
            partial(workspace.objects.erase, md5),
        )


def _md5(data: Any) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
