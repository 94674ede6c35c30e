"""What may be left of forgotten photos, found without knowing which they were: from what the ledger says is there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

from ssclass.data.shards import Shard, read_shard
from ssclass.errors import FailedError, StoreError
from ssclass.files import write_whole
from ssclass.history.shards import forgotten_md5s, holdings, stray_shards
from ssclass.model.features import SEEN
from ssclass.model.packed import has_only
from ssclass.store import Store
from ssclass.upkeep.traces import NOBODY
from ssclass.workspace.dvc import DATA
from ssclass.workspace.objects import CACHE, REMOTE
from ssclass.workspace.workspace import Workspace

_OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)$")
_PARQUET = b"PAR1"


def erase_shards(workspace: Workspace, next_version: int) -> list[str]:
    """Shards that a forgetting took, and those that were never published and no longer can be.

    A shard that was pushed and lost the race, or whose process was killed, has a number that a version has by now.
    """
    objects, store = workspace.objects, workspace.store
    taken = forgotten_md5s(workspace.at().events)
    files = {each.name: each.md5 for each in workspace.at().files(DATA)}
    named = {md5 for _, present in holdings(workspace) for md5 in present.values()} | set(files.values())
    named |= {tracked.md5 for tracked in stray_shards(workspace)}
    others = _listed_here(workspace.root / CACHE)

    def superfluous(md5: str, source: Path | tuple[Workspace, str, str]) -> bool:
        return md5 in taken or (md5 not in named | others and _number(source) < next_version)

    erased = []
    for path in sorted((workspace.root / CACHE).glob("*/*")):
        md5 = path.parent.name + path.name
        if superfluous(md5, path):
            path.unlink()
            erased.append(f"DVC cache {md5}")
        elif not md5.endswith(".dir"):
            others.add(md5)
    for key, number, _ in list(store.versions(REMOTE)):
        match = _OBJECT.search(key)
        if match and superfluous(md5 := match[1] + match[2], (workspace, key, number)):
            store.erase(key, number)
            erased.append(key)
    memos = workspace.private / "shards"
    for path in (*memos.glob("*.json"), *memos.glob("*.parquet")):  # the latter are of an older version
        if path.suffix == ".parquet" or path.stem not in named - taken:
            path.unlink()
    for path in (workspace.root / DATA).glob("*.parquet"):
        if path.name not in files or _md5(path) != files[path.name]:
            path.unlink()
            if path.name in files and objects.here(files[path.name]).exists():
                shutil.copyfile(objects.here(files[path.name]), path)
    return erased


def _listed_here(cache: Path) -> set[str]:
    """What the listings in the local cache name beside shards: files of candidates, which are none."""
    found: set[str] = set()
    for path in cache.glob("*/*.dir"):
        try:
            found |= {item["md5"] for item in json.loads(path.read_bytes()) if not item["relpath"].endswith(".parquet")}
        except (ValueError, KeyError, TypeError):  # damaged: `verify` says so
            continue
    return found


def _number(source: Path | tuple[Workspace, str, str]) -> float:
    """The number of the data version that a shard was made for; infinity for an object that is no shard."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                if file.read(4) != _PARQUET:
                    return float("inf")
            return read_shard(source).receipt.sequence
        workspace, key, number = source
        found = workspace.store.head(key)
        if found is not None and workspace.store.get_range(key, 0, min(4, found.size), found.etag) != _PARQUET:
            return float("inf")
        return read_shard(BytesIO(workspace.store.get_version(key, number))).receipt.sequence
    except FailedError as error:
        if isinstance(error, StoreError):
            raise
        return float("inf")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def erase_features(workspace: Workspace, shards: Collection[Shard]) -> list[str]:
    """Features of shards that are no more, under whatever fingerprint, and what tells of them; they are a memo."""
    from ssclass.model.pooled import AXES_FILE

    digests = {shard.photos_digest for shard in shards}
    kept = {SEEN, AXES_FILE, *(f"{digest}.npz" for digest in digests)}  # axes go with their folder
    folder, store = workspace.private / "features", workspace.store
    for derived in list(folder.glob("*-*")):
        note = derived / SEEN
        if not _tells_of(note.read_bytes() if note.exists() else None, digests):
            shutil.rmtree(derived)
    photos = {row.sha256 for shard in shards for row in shard.rows}
    for path in list(folder.rglob("*.npz")):
        if path.name not in kept and not has_only(path, photos):
            path.unlink()
    keys = {key for key, _, _ in store.versions("features/") if key.endswith((".npz", f"/{SEEN}"))}
    derived_from = {key.rsplit("/", 1)[0] for key in keys if "-" in key.split("/")[1]}
    gone = {each for each in derived_from if not _tells_of(store.get(f"{each}/{SEEN}"), digests)}
    found = sorted(key for key in keys if key.rsplit("/", 1)[-1] not in kept or key.rsplit("/", 1)[0] in gone)
    for key in found:
        store.erase(key)
    return found


def _tells_of(note: bytes | None, shards: Collection[str]) -> bool:
    """Whether a note beside derived features names shards that are there, and no others."""
    try:
        return set(json.loads(note or b"")) <= set(shards)
    except (ValueError, TypeError):
        return False


def blank_results(workspace: Workspace, photos: Collection[str]) -> list[str]:
    """Finished results that name a photo which is in no shard: its place is left blank, older versions go."""
    store, changed = workspace.store, []
    for path in (workspace.private / "results").glob("*/result.json"):
        text = path.read_text(encoding="utf-8")
        if (made := _blanked(text, photos)) != text:
            write_whole(path, made)
    for key, _, data, blanked in list(_telling_results(store, photos)):
        if store.get(key) == data:
            store.put(key, blanked)
        changed.append(key)
    for key, number, *_ in list(_telling_results(store, photos)) if changed else ():
        store.erase(key, number)
    return changed


def _telling_results(store: Store, photos: Collection[str]) -> Iterator[tuple[str, str, bytes, bytes]]:
    """(key, version, bytes, those with blanks) of each version of a result in the bucket that names such a photo."""
    for key, number, _ in store.versions("results/"):
        if key.endswith("/result.json"):
            data = store.get_version(key, number)
            blanked = _blanked(data.decode("utf-8", "replace"), photos).encode()
            if blanked != data:
                yield key, number, data, blanked


def _blanked(text: str, photos: Collection[str]) -> str:
    try:
        names = json.loads(text)["holdout"]
    except (ValueError, KeyError, TypeError):
        return text
    for name in names:
        if isinstance(name, str) and len(name) == len(NOBODY) and name not in photos:
            text = text.replace(name, NOBODY)
    return text
