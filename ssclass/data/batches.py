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
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ssclass.errors import BatchError
from ssclass.store import Store

INCOMING = "incoming"
MANIFEST, SUCCESS = "manifest.json", "_SUCCESS"
MANIFEST_LIMIT = 256_000_000  # bytes; about a million photos
UPLOADS = 8  # at a time
MAIN = "main"
"""The source of a batch whose manifest names none."""
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class BatchRef:
    """A batch whose marker is there. time: ISO 8601, UTC."""

    id: str
    marker: str
    etag: str
    time: str

    @property
    def prefix(self) -> str:
        """Where its objects are, with the slash."""
        return f"{INCOMING}/{self.id}/"


@dataclass(frozen=True)
class Entry:
    """A photo as its sender describes it; `key` is relative to the batch, `size` in bytes."""

    key: str
    label: str
    sha256: str | None = None
    split: str | None = None
    size: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What a sender says: photos, corrections of earlier ones by sha256, and the source that it belongs to."""

    ref: BatchRef
    entries: tuple[Entry, ...]
    relabel: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    source: str = MAIN


SOURCE = r"^[A-Za-z0-9_-]{1,50}$"

_Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Photo(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    key: str = Field(min_length=1, max_length=900)
    label: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    split: Literal["train", "holdout"] | None = None
    size: int | None = Field(None, ge=0)
    metadata: dict[str, Any] = {}

    @field_validator("key")
    @classmethod
    def _inside(cls, value: str) -> str:
        if any(part in ("", ".", "..") for part in value.split("/")) or "\0" in value:
            raise ValueError("give the key relative to the batch's folder, like sushi/1.jpg")
        return value


class _Relabel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str = _Sha256
    label: str = Field(min_length=1)


class _Remove(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str = _Sha256


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    schema_: Literal[1] = Field(alias="schema")
    source: str = Field(MAIN, pattern=SOURCE)
    photos: list[_Photo] = []
    relabel: list[_Relabel] = []
    remove: list[_Remove] = []

    @model_validator(mode="after")
    def _one_decision_each(self) -> _Manifest:
        asked = [item.sha256 for item in self.relabel] + [item.sha256 for item in self.remove]
        if len(asked) != len(set(asked)):
            raise ValueError("a sha256 stands in relabel and remove, or in one of them twice")
        return self


def check_id(batch_id: str) -> None:
    """BatchError unless this can be a folder in S3, a file name and part of a git tag everywhere."""
    if not _ID.fullmatch(batch_id) or batch_id.endswith((".lock", ".")) or ".." in batch_id:
        raise BatchError(
            f"batch id {batch_id!r}: use 1 to 100 of A-Z a-z 0-9 . _ - (no dot first or last, no two dots in a row, "
            "not ending in .lock)"
        )


def check_source(source: str) -> None:
    """BatchError unless this can name a source."""
    if not re.fullmatch(SOURCE, source):
        raise BatchError(f"source {source!r}: use 1 to 50 of A-Z a-z 0-9 _ -")


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
            if found := store.head(f"{INCOMING}/{name}/{marker}"):
                time = found.modified.astimezone(UTC).isoformat()
                # _SUCCESS is always empty, and so its etag always the same: written again, it is another marker.
                etag = found.etag if marker == MANIFEST else f"{found.etag}@{time}"
                return BatchRef(name, marker, etag, time)
        return None

    with ThreadPoolExecutor(UPLOADS) as pool:
        return [ref for ref in pool.map(find, names) if ref]


def read_batch(store: Store, ref: BatchRef, classes: Sequence[str]) -> Batch:
    """What the marker says; BatchError names the object, the field, and the remedy."""
    check_id(ref.id)
    at = f"s3://{store.bucket}/{ref.prefix}"
    batch = _read_manifest(store, ref) if ref.marker == MANIFEST else Batch(ref, tuple(class_folders(store, ref)))
    if not batch.entries and not batch.relabel and not batch.remove:
        raise BatchError(f"{at}: an empty batch; put photos in and write {ref.marker} again, or delete {ref.marker}")
    if batch.entries and not batch.relabel and not batch.remove and not {e.label for e in batch.entries} & set(classes):
        labels = ", ".join(sorted({repr(entry.label) for entry in batch.entries})[:5])
        raise BatchError(
            f"{at}{ref.marker}: no photo has a known label (found {labels}; dataset.classes: {', '.join(classes)}); "
            "correct the labels, or name the class in params.yaml"
        )
    return batch


def _read_manifest(store: Store, ref: BatchRef) -> Batch:
    at = f"s3://{store.bucket}/{ref.prefix}{MANIFEST}"
    again = "correct it and upload it again, last (`ssclass submit` writes one; format: docs/formats.md)"
    data = store.get(ref.prefix + MANIFEST, limit=MANIFEST_LIMIT)
    if data is None:
        raise BatchError(f"{at}: gone since it was listed; upload it again")
    manifest = _parsed(data, at, again)
    entries = tuple(Entry(**photo.model_dump()) for photo in manifest.photos)
    relabel = {item.sha256: item.label for item in manifest.relabel}
    return Batch(ref, entries, relabel, tuple(item.sha256 for item in manifest.remove), manifest.source)


def _parsed(data: bytes, at: str, remedy: str) -> _Manifest:
    try:
        return _Manifest.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BatchError(f"{at}: {where}: {first['msg']}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{at}: not readable as JSON ({error}); {remedy}") from error


def class_folders(store: Store, ref: BatchRef) -> Iterator[Entry]:
    """The files of a batch that came in class folders; markers and hidden files are left out."""
    for found in store.list(ref.prefix):
        key = found.key.removeprefix(ref.prefix)
        name = key.rsplit("/", 1)[-1]
        if name and not name.startswith((".", "_")):  # folder markers, .DS_Store, _SUCCESS
            yield Entry(key, label=key.split("/", 1)[0] if "/" in key else "", size=found.size)


def submit(
    store: Store,
    folder: Path,
    batch_id: str,
    classes: Sequence[str],
    progress: Progress | None = None,
    source: str = MAIN,
) -> int:
    """Upload class folders as a batch, its manifest last; the number of files in it.

    The same batch again is a no-op; another content under an id in use is a BatchError. Every file of a folder
    counts, whatever it is called: what is no photo is refused by name at ingest. Hidden files are left out.
    """
    files = [File(*each) for each in labelled_files(folder, classes)]
    return upload(store, files, batch_id, progress, source)


def submit_corrections(store: Store, path: Path, batch_id: str) -> int:
    """Upload a manifest that holds corrections alone as a batch; the number of them. Again changes nothing."""
    check_id(batch_id)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; name a folder, or a manifest that can be read") from error
    manifest = _parsed(data, str(path), "correct it there (format: docs/formats.md)")
    if manifest.photos or not (manifest.relabel or manifest.remove):
        raise BatchError(f"{path}: not a manifest of corrections alone (relabel, remove); submit photos as a folder")
    key = f"{INCOMING}/{batch_id}/{MANIFEST}"
    there = store.get(key, limit=MANIFEST_LIMIT)
    if there is not None and there != data:
        raise BatchError(f"s3://{store.bucket}/{key}: there already, with another content; choose another --id")
    if there is None:
        store.put(key, data)
    return len(manifest.relabel) + len(manifest.remove)


@dataclass(frozen=True)
class File:
    """A file to be sent: its key in the batch, its label, and the side that its sender wants it on, if any."""

    path: Path
    key: str
    label: str
    split: str | None = None


def upload(
    store: Store, files: Sequence[File], batch_id: str, progress: Progress | None = None, source: str = MAIN
) -> int:
    """Send files as a batch, its manifest last; see `submit`."""
    check_id(batch_id)
    check_source(source)
    prefix = f"{INCOMING}/{batch_id}/"
    photos = []
    for file in files:
        photo: dict[str, Any] = {"key": file.key, "label": file.label}
        photo |= {"sha256": file_sha256(file.path), "size": file.path.stat().st_size}
        photos.append(photo | ({"split": file.split} if file.split else {}))
    named = {} if source == MAIN else {"source": source}
    manifest = json.dumps({"schema": 1, **named, "photos": photos}, ensure_ascii=False, indent=1).encode()
    for marker in (MANIFEST, SUCCESS):
        there = store.get(prefix + marker, limit=MANIFEST_LIMIT)
        if there == manifest:
            return len(files)
        if there is not None:
            raise BatchError(f"s3://{store.bucket}/{prefix}: there already, with another content; choose another --id")

    def send(file: File) -> None:
        with file.path.open("rb") as body:
            store.put(prefix + file.key, body)

    with ThreadPoolExecutor(UPLOADS) as pool:
        for done, _ in enumerate(pool.map(send, files), 1):
            if progress:
                progress(done, len(files))
    store.put(prefix + MANIFEST, manifest)
    return len(files)


def labelled_files(folder: Path, classes: Sequence[str]) -> Iterator[tuple[Path, str, str]]:
    """(path, key, label) of every file in a class folder, sorted."""
    if not folder.is_dir():
        raise BatchError(f"{folder}: no such folder; name one that holds class folders ({', '.join(classes)})")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not any(path.name in classes for path in inside):
        found = ", ".join(path.name for path in inside[:5]) or "no folders"
        raise BatchError(
            f"{folder}: no class folders (found {found}; dataset.classes: {', '.join(classes)}); "
            "put the photos into folders named like the classes"
        )
    none = True
    for label in inside:
        for path in sorted(label.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                none = False
                yield path, _spelt(relative.as_posix()), _spelt(label.name)
    if none:
        raise BatchError(f"{folder}: its class folders are empty; put photos into them")


def _spelt(name: str) -> str:
    """A file name as a key: control characters and bytes that are no UTF-8, which S3 cannot take, as \\x0a."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in text)


def file_sha256(path: Path) -> str:
    """sha256 of a file (64 hex digits); BatchError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; make it readable, or take it out of the folder") from error
