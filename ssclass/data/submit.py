"""Sending photos: one folder as a batch, a data set as several, a manifest of corrections; each batch's marker last.

A tree with `train/` beside `test/` or `holdout/` keeps its held-out photos held out. Photos are spread over the
batches by their content, so that each batch is a fair sample, and the same tree always gives the same batches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssclass.data.batches import INCOMING, MANIFEST, REQUESTS, SUCCESS, Progress, check_id, check_source
from ssclass.data.folders import LabelledFile, class_folders, labelled_files
from ssclass.data.foreign import is_foreign, read_foreign
from ssclass.data.lists import SIDES, is_list, read_list
from ssclass.data.manifest import MAIN, MANIFEST_LIMIT, parse_manifest
from ssclass.environment import temporary_folder
from ssclass.errors import BatchError
from ssclass.files import file_sha256
from ssclass.settings import Settings
from ssclass.store import Store, at_url
from ssclass.text import composed, quoted

BATCH = 5000  # photos in a batch
_DATE = re.compile(r"([A-Za-z_]+=)?\d[\d-]*")
"""A folder of a date: 2026, 11, 2026-11-28, 20261128, day=28."""


def submit(
    store: Store,
    folder: Path,
    batch_id: str,
    classes: Sequence[str],
    progress: Progress | None = None,
    source: str = MAIN,
) -> int:
    """Upload photos as a batch, its manifest last; the number of files in it. `find_files` says what `folder` may be.

    The same batch again is a no-op; another content under an id in use is a BatchError. Every file of a folder
    counts, whatever it is called: what is no photo is refused by name at ingest. Hidden files are left out.
    """
    with _scratch(store, folder) as scratch:
        return upload(store, find_files(folder, classes, scratch), batch_id, progress, source)


def submit_corrections(store: Store, path: Path, batch_id: str) -> int:
    """Upload a manifest that holds corrections alone as a batch; the number of them. Again changes nothing."""
    check_id(batch_id)
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; name a folder, or a manifest that can be read") from error
    return send_corrections(store, data, batch_id, str(path))


def send_corrections(store: Store, data: bytes, batch_id: str, name: str) -> int:
    """Send a manifest, which messages call `name`, that holds corrections alone; see `submit_corrections`."""
    manifest = parse_manifest(data, name, "correct it there (format: docs/formats.md)")
    if manifest.photos or not (manifest.relabel or manifest.remove):
        raise BatchError(f"{name}: not a manifest of corrections alone (relabel, remove); submit photos as a folder")
    key = f"{INCOMING}/{batch_id}/{MANIFEST}"
    there = store.get(key, limit=MANIFEST_LIMIT)
    if there is not None and there != data:
        raise BatchError(f"s3://{store.place}/{key}: there already, with another content; choose another --id")
    if there is None:
        store.put(key, data)
    return len(manifest.relabel) + len(manifest.remove)


def upload(
    store: Store, files: Sequence[LabelledFile], batch_id: str, progress: Progress | None = None, source: str = MAIN
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
    parse_manifest(manifest, "the batch's manifest", "rename those files, or send fewer at a time")
    for marker in (MANIFEST, SUCCESS):
        there = store.get(prefix + marker, limit=MANIFEST_LIMIT)
        if there == manifest:
            return len(files)
        if there is not None:
            raise BatchError(f"s3://{store.place}/{prefix}: there already, with another content; choose another --id")

    def send(file: LabelledFile) -> None:
        with file.path.open("rb") as body:
            store.put(prefix + file.key, body)

    with ThreadPoolExecutor(REQUESTS) as pool:
        for done, _ in enumerate(pool.map(send, files), 1):
            if progress:
                progress(done, len(files))
    store.put(prefix + MANIFEST, manifest)
    return len(files)


def _scratch(store: Store, source: Path) -> AbstractContextManager[Path]:
    """A folder for what is unpacked; of other sources nothing is, and none is made."""
    return temporary_folder(store.settings) if is_foreign(source) else nullcontext(source)


def is_photos(path: Path) -> bool:
    """Whether a file lists photos, or holds them; a manifest of corrections does not."""
    return is_list(path) or is_foreign(path)


def find_files(source: Path, classes: Sequence[str], scratch: Path) -> list[LabelledFile]:
    """Every labelled file of class folders, of a list, or of another tool's data set; with its side where one is said.

    Class folders may be in train/ and test/, and in folders of dates (2026-11-28/, 2026/11/28/, day=28/). Photos of a
    tar are unpacked into the folder `scratch`. BatchError when it is none of these.
    """
    if is_list(source):
        return read_list(source, classes)
    if not source.is_dir() and is_foreign(source):
        return read_foreign(source, classes, scratch)
    inside = class_folders(source, classes)
    if any(composed(path.name) in classes for path in inside):
        return labelled_files(source, classes)
    if is_foreign(source):
        return read_foreign(source, classes, scratch)
    if sides := [path for path in inside if path.name in SIDES]:
        return [
            replace(file, key=f"{side.name}/{file.key}", split=SIDES[side.name])
            for side in sides
            for file in labelled_files(side, classes)
        ]
    if inside and all(_DATE.fullmatch(path.name) for path in inside):
        return [
            replace(file, key=f"{date.name}/{file.key}")
            for date in inside
            if class_folders(date)
            for file in find_files(date, classes, scratch)
        ]
    return labelled_files(source, classes)


def batches_of(files: Sequence[LabelledFile], name: str, size: int) -> Iterator[tuple[str, list[LabelledFile]]]:
    """(batch id, its files): one batch called `name`, or, of more than `size` files, `name-001`, `name-002`, …"""
    if len(files) <= size:
        yield name, list(files)
        return
    mixed = sorted(files, key=lambda file: (file_sha256(file.path), file.key))
    for number, start in enumerate(range(0, len(mixed), size), 1):
        part = mixed[start : start + size]
        yield f"{name}-{number:03}", sorted(part, key=lambda file: file.key)


def import_folder(
    store: Store,
    folder: Path,
    name: str,
    classes: Sequence[str],
    size: int = BATCH,
    progress: Progress | None = None,
    source: str = MAIN,
) -> dict[str, int]:
    """Send a data set as batches; batch id → files. Again changes nothing."""
    check_id(name)
    sent = {}
    with _scratch(store, folder) as scratch:
        for batch, files in batches_of(find_files(folder, classes, scratch), name, size):
            sent[batch] = upload(store, files, batch, progress, source)
    return sent


def fetch(settings: Settings, url: str, folder: Path, progress: Progress | None = None) -> None:
    """Download everything under s3://bucket/prefix into a folder, with the workspace's own access."""
    source, prefix = at_url(settings, url)
    found = [item for item in source.list(prefix) if not item.key.endswith("/")]
    if not found:
        raise BatchError(f"{url}: nothing there; name the folder that holds the class folders")
    for done, item in enumerate(found, 1):
        name = item.key.removeprefix(prefix)
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or name.startswith("/"):
            raise BatchError(f"s3://{source.bucket}/{item.key}: a key with '..', or an empty folder; rename the object")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.get(item.key) or b"")
        except (OSError, ValueError) as error:  # a name too long, a file where another key has a folder, a NUL
            said = error.strerror if isinstance(error, OSError) else error
            raise BatchError(
                f"s3://{source.bucket}/{item.key}: {quoted(name)} cannot be a file here ({said}); rename the object"
            ) from error
        if progress:
            progress(done, len(found))
