"""Starting from what people have: a data set in class folders, on disk or in S3, sent as batches.

A tree with `train/` beside `test/` or `holdout/` keeps its held-out photos held out. Photos are spread over the
batches by their content, so that each batch is a fair sample, and the same tree always gives the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ssclass.data.batches import MAIN, File, Progress, check_id, file_sha256, labelled_files, upload
from ssclass.data.split import HOLDOUT, TRAIN
from ssclass.errors import BatchError
from ssclass.settings import Settings
from ssclass.store import Store

SIDES = {"train": TRAIN, "val": TRAIN, "valid": TRAIN, "validation": TRAIN, "test": HOLDOUT, "holdout": HOLDOUT}
"""Folder → side of the split; photos that a model was tuned on are no longer fit to judge it, so they train."""

BATCH = 5000  # photos in a batch


def find_files(folder: Path, classes: Sequence[str]) -> list[File]:
    """Every file of a data set in class folders, with its side where the tree says it; BatchError when it is none."""
    if not folder.is_dir():
        raise BatchError(f"{folder}: no such folder; name one that holds class folders, or train/ and test/ with them")
    sides = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name in SIDES]
    if not sides or any((folder / name).is_dir() for name in classes):
        return [File(*each) for each in labelled_files(folder, classes)]
    found = []
    for side in sides:
        for path, key, label in labelled_files(side, classes):
            found.append(File(path, f"{side.name}/{key}", label, SIDES[side.name]))
    return found


def batches_of(files: Sequence[File], name: str, size: int) -> Iterator[tuple[str, list[File]]]:
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
    for batch, files in batches_of(find_files(folder, classes), name, size):
        sent[batch] = upload(store, files, batch, progress, source)
    return sent


def fetch(settings: Settings, url: str, folder: Path, progress: Progress | None = None) -> None:
    """Download everything under s3://bucket/prefix into a folder, with the workspace's own access."""
    at = urlsplit(url)
    source = Store(settings.model_copy(update={"bucket": at.netloc}))
    prefix = at.path.lstrip("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    found = [item for item in source.list(prefix) if not item.key.endswith("/")]
    if not found:
        raise BatchError(f"{url}: nothing there; name the folder that holds the class folders")
    for done, item in enumerate(found, 1):
        path = folder / item.key.removeprefix(prefix)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BatchError(f"s3://{at.netloc}/{item.key}: a key with '..'; rename the object")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.get(item.key) or b"")
        if progress:
            progress(done, len(found))
