"""The contract with whoever sends photos: batches under incoming/ in S3 (docs/formats.md).

    incoming/<batch id>/…              the photos
    incoming/<batch id>/manifest.json  what they are; or an object _SUCCESS beside class folders

The marker (either of the two) is written last: without it there is no batch yet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC

from ssclass.data.folders import hidden, label_in
from ssclass.data.manifest import MAIN, MANIFEST_LIMIT, SOURCE, Entry, parse_manifest
from ssclass.errors import BatchError, ObjectError
from ssclass.store import Listed, Store
from ssclass.text import quoted

INCOMING = "incoming"
MANIFEST, SUCCESS = "manifest.json", "_SUCCESS"
UNKNOWN = "unknown photo"
"""Reason by which a correction is refused whose photo is not in the data set."""
REQUESTS = 8  # at a time
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class BatchRef:
    """A batch whose marker is there. time: ISO 8601, UTC.

    etag: the marker's, and behind an ``@`` its time where markers with the same bytes are to be told apart
    (`ssclass.workspace.deliveries`).
    """

    id: str
    marker: str
    etag: str
    time: str

    @property
    def prefix(self) -> str:
        """Where its objects are, with the slash."""
        return f"{INCOMING}/{self.id}/"


@dataclass(frozen=True)
class Batch:
    """What a sender says: photos, corrections of earlier ones by sha256, and the source that it belongs to."""

    ref: BatchRef
    entries: tuple[Entry, ...]
    relabel: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    source: str = MAIN


def bare(etag: str) -> str:
    """The etag of a marker's bytes, without the time that may stand behind it."""
    return etag.partition("@")[0]


def check_id(batch_id: str) -> None:
    """BatchError unless this can be a folder in S3, a file name and part of a git tag everywhere."""
    if not _ID.fullmatch(batch_id) or batch_id.endswith((".lock", ".")) or ".." in batch_id:
        raise BatchError(
            f"batch id {quoted(batch_id)}: use 1 to 100 of A-Z a-z 0-9 . _ - (no dot first or last, no two dots in a "
            "row, not ending in .lock)"
        )


def check_source(source: str) -> None:
    """BatchError unless this can name a source."""
    if not re.fullmatch(SOURCE, source):
        raise BatchError(f"source {quoted(source)}: use 1 to 50 of A-Z a-z 0-9 _ -")


def list_batches(store: Store, known: Collection[str] = ()) -> list[BatchRef]:
    """Every batch whose marker is there, in the order (marker time, id).

    `known` ids are left out, and cost nothing: a year of batches is one listing, not a request each.
    """
    names = [name for name in store.folders(f"{INCOMING}/") if name not in known]
    return sorted(find_batches(store, names), key=lambda ref: (ref.time, ref.id))


def find_batches(store: Store, names: Sequence[str]) -> list[BatchRef]:
    """Those of these batches whose marker is there, in the order of the names."""

    def find(name: str) -> BatchRef | None:
        for marker in (MANIFEST, SUCCESS):
            if found := _marker(store, f"{INCOMING}/{name}/{marker}"):
                time = found.modified.astimezone(UTC).isoformat()
                # _SUCCESS is always empty, and so its etag always the same: written again, it is another marker.
                etag = found.etag if marker == MANIFEST else f"{found.etag}@{time}"
                return BatchRef(name, marker, etag, time)
        return None

    with ThreadPoolExecutor(REQUESTS) as pool:
        return [ref for ref in pool.map(find, names) if ref]


def _marker(store: Store, key: str) -> Listed | None:
    """A marker; one that S3 will not tell of by itself is taken from the listing, so that its batch is held."""
    try:
        return store.head(key)
    except ObjectError:
        return next((found for found in store.list(key) if found.key == key), None)


def read_batch(store: Store, ref: BatchRef, classes: Sequence[str]) -> Batch:
    """What the marker says; BatchError names the object, the field, and the remedy.

    ChangedError where a manifest was written again since `ref` was found: what was decided of that is not of this one.
    """
    check_id(ref.id)
    at = f"s3://{store.place}/{ref.prefix}"
    batch = _read_manifest(store, ref) if ref.marker == MANIFEST else Batch(ref, tuple(in_class_folders(store, ref)))
    if not batch.entries and not batch.relabel and not batch.remove:
        raise BatchError(f"{at}: an empty batch; put photos in and write {ref.marker} again, or delete {ref.marker}")
    if batch.entries and not batch.relabel and not batch.remove and not {e.label for e in batch.entries} & set(classes):
        labels = ", ".join(quoted(label) for label in sorted({entry.label for entry in batch.entries})[:5])
        raise BatchError(
            f"{at}{ref.marker}: no photo has a known label (found {labels}; dataset.classes: {', '.join(classes)}); "
            f"correct the labels, or name the class in params.yaml, then write {ref.marker} again"
        )
    return batch


def _read_manifest(store: Store, ref: BatchRef) -> Batch:
    at = f"s3://{store.place}/{ref.prefix}{MANIFEST}"
    try:
        data = store.get(ref.prefix + MANIFEST, limit=MANIFEST_LIMIT + 1, etag=bare(ref.etag))
    except ObjectError as error:  # it will say so however often it is asked
        raise BatchError(f"{error}; then upload it again, or `ssclass batch drop {ref.id}`") from error
    if data is None:
        raise BatchError(f"{at}: gone since it was listed; upload it again")
    again = "correct it and upload it again, last (`ssclass submit` writes one; format: docs/formats.md)"
    manifest = parse_manifest(data, at, again)
    return Batch(ref, manifest.photos, manifest.relabel, manifest.remove, manifest.source)


def in_class_folders(store: Store, ref: BatchRef) -> Iterator[Entry]:
    """Every photo of a batch whose marker is _SUCCESS, labelled by its folder."""
    for found in _files(store, ref):
        key = found.key.removeprefix(ref.prefix)
        yield Entry(key, label_in(key), size=found.size)


def contents(store: Store, ref: BatchRef) -> str:
    """sha256 over the keys and ETags of a batch's files, markers left out: two equal ones hold the same photos.

    A manifest may name any file, also one that class folders pass over.
    """
    there = _files(store, ref) if ref.marker == SUCCESS else store.list(ref.prefix)
    files = [[found.key.removeprefix(ref.prefix), found.etag] for found in there]
    files = [file for file in files if file[0] not in ("", MANIFEST, SUCCESS) and not file[0].endswith("/")]
    return hashlib.sha256(json.dumps(files, separators=(",", ":")).encode("utf-8", "surrogatepass")).hexdigest()


def _files(store: Store, ref: BatchRef) -> Iterator[Listed]:
    """Every object of a batch, but for markers of folders and of the writer's own.

    At the top those begin with an underscore (_SUCCESS, Spark's _committed_1); in a class folder the name is a
    camera's (_DSC0001.jpg).
    """
    for found in store.list(ref.prefix):
        key = found.key.removeprefix(ref.prefix)
        if not key.endswith("/") and key and not hidden(key) and ("/" in key or not key.startswith("_")):
            yield found
