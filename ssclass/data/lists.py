"""Photos named in a file: CSV with a header, or JSON Lines, of path, label and, if one likes, split.

Paths are relative to the list's folder, or absolute. Other columns are left alone, so that a table that people have is
taken as it is: `path` may be called file_name, filename, file or image; `label` class or category.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from ssclass.data.folders import spelt
from ssclass.data.manifest import MANIFEST_LIMIT
from ssclass.data.split import HOLDOUT, TRAIN
from ssclass.errors import BatchError
from ssclass.files import decoded
from ssclass.text import composed, quoted, shown

ENDS = (".csv", ".tsv", ".jsonl", ".ndjson")
PATHS, LABELS, SPLIT = ("path", "file_name", "filename", "file", "image"), ("label", "class", "category"), "split"
SIDES = {"train": TRAIN, "val": TRAIN, "valid": TRAIN, "validation": TRAIN, "test": HOLDOUT, "holdout": HOLDOUT}
"""What a split, or a folder, is called → the side; photos that a model was tuned on cannot judge it, so they train."""


def is_list(path: Path) -> bool:
    """Whether a path is that of a list of photos, by its name's end."""
    return path.is_file() and path.suffix.lower() in ENDS


def read_list(path: Path, classes: Sequence[str]) -> list[tuple[Path, str, str, str | None]]:
    """(file, key, label, side or None) of each photo of a list, in its order.

    BatchError names the line that cannot be used: a file that is not there, a split that is none, a path listed twice;
    and the file where it has no path or label column, or no label that is a class.
    """
    try:
        with path.open("rb") as opened:
            data = opened.read(MANIFEST_LIMIT + 1)
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; name a list that can be read, or a folder") from error
    if len(data) > MANIFEST_LIMIT:
        raise BatchError(f"{path}: more than {MANIFEST_LIMIT:,} bytes; split it into several lists")
    text = decoded(data, str(path), BatchError)
    found: list[tuple[Path, str, str, str | None]] = []
    seen: set[str] = set()
    for number, entry in _entries(path, text):
        where = f"{path}: line {number}"
        name, label = (_value(where, entry, names) for names in (PATHS, LABELS))
        split = entry.get(SPLIT)
        side = None
        if split not in (None, ""):
            side = SIDES.get(str(split).strip().lower())
            if side is None:
                raise BatchError(f"{where}: split {quoted(split)} is none; write train or test, or leave it empty")
        try:
            file = path.parent / name
            there = file.is_file()
        except (OSError, ValueError):  # too long, a NUL
            there = False
        if not there:
            raise BatchError(f"{where}: {shown(name)}: no such file; paths are relative to the folder of the list")
        key = _key(name, len(found) + 1)
        if key in seen:
            raise BatchError(f"{where}: {shown(name)} is listed twice; take one of the lines out")
        seen.add(key)
        found.append((file, key, composed(label), side))
    labels = {label for _, _, label, _ in found}
    if not labels & set(classes):
        named = ", ".join(sorted(shown(label) for label in labels)[:5]) or "no photos"
        raise BatchError(
            f"{path}: no label is a class (found {named}; dataset.classes: {', '.join(classes)}); correct the labels"
        )
    return found


def _key(name: str, number: int) -> str:
    """A photo's key in the batch: its path where that is inside the list's folder, else its name, numbered."""
    pure = PurePath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return spelt(f"{number:06}-{pure.name}")
    return spelt(pure.as_posix())


def _value(where: str, entry: dict[str, Any], names: Sequence[str]) -> str:
    value = next((entry[name] for name in names if entry.get(name) not in (None, "")), None)
    if not isinstance(value, str):
        raise BatchError(f"{where}: no {names[0]}; it needs path and label (also {', '.join(names[1:])})")
    return value.strip()


def _entries(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, what it says) of every line that is not empty."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BatchError(f"{path}: line {number}: not JSON ({shown(error, 100)}); correct it there") from error
            if not isinstance(entry, dict):
                raise BatchError(f'{path}: line {number}: no object; write it as {{"path": "a.jpg", "label": "…"}}')
            yield number, {str(name).strip().lower(): value for name, value in entry.items()}
        return
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not set(header) & set(PATHS) or not set(header) & set(LABELS):
            raise BatchError(f"{path}: its first line names no path and label; begin it with path,label,split")
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise BatchError(f"{path}: line {reader.line_num}: not CSV ({error}); correct it there") from error
