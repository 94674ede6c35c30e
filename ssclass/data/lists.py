"""Photos named in a file: CSV with a header, or JSON Lines, of path, label and, if one likes, split.

Paths are relative to the list's folder, or absolute. Other columns are left alone, so that a table that people have is
taken as it is: `path` may be called file_name, filename, file, image, img or photo; `label` class, category or choice.
A place on a server (``https://…``, ``/data/…`` of Label Studio) is looked for by its end in the list's folder.
Roboflow's ``_classes.csv`` has a column of 0 and 1 for each class instead of a label.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from ssclass.data.folders import LabelledFile, spelt
from ssclass.data.manifest import MANIFEST_LIMIT
from ssclass.data.split import HOLDOUT, TRAIN
from ssclass.errors import BatchError
from ssclass.files import decoded
from ssclass.text import composed, quoted, shown, url_parts

ENDS = (".csv", ".tsv", ".jsonl", ".ndjson")
PATHS = ("path", "file_name", "filename", "file", "image", "img", "photo")
LABELS, SPLIT = ("label", "class", "category", "choice"), "split"
ONE_HOT = "_classes.csv"
SIDES = {"train": TRAIN, "val": TRAIN, "valid": TRAIN, "validation": TRAIN, "test": HOLDOUT, "holdout": HOLDOUT}
"""What a split, or a folder, is called → the side; photos that a model was tuned on cannot judge it, so they train."""


_ON_A_SERVER = re.compile(r"/data/|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of a file that was uploaded to it."""


def is_list(path: Path) -> bool:
    """Whether a path is that of a list of photos, by its name's end."""
    return path.is_file() and path.suffix.lower() in ENDS


def read_list(path: Path, classes: Sequence[str]) -> list[LabelledFile]:
    """The photos of a list, in its order.

    BatchError names the line that cannot be used: a file that is not there, a split that is none, a path listed twice;
    and the file where it has no path or label column, or no label that is a class.
    """
    text = text_of(path, MANIFEST_LIMIT, "name a list that can be read, or a folder", "split it into several lists")
    found: list[LabelledFile] = []
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
        file = path.parent / name
        if not _is_file(file):
            elsewhere = located(path.parent, name) if _ON_A_SERVER.match(name) else None
            if elsewhere is not None:
                file, name = elsewhere, elsewhere.relative_to(path.parent).as_posix()
        if not _is_file(file):
            raise BatchError(f"{where}: {shown(name)}: no such file; paths are relative to the folder of the list")
        key = _key(name, len(found) + 1)
        if key in seen:
            raise BatchError(f"{where}: {shown(name)} is listed twice; take one of the lines out")
        seen.add(key)
        found.append(LabelledFile(file, key, composed(label), side))
    check_labels(path, found, classes, "no photos")
    return found


def text_of(path: Path, most: int, unreadable: str, too_large: str) -> str:
    """The text of a file of at most so many bytes; BatchError with the remedy for one that is not."""
    try:
        with path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; {unreadable}") from error
    if len(data) > most:
        raise BatchError(f"{path}: more than {most:,} bytes; {too_large}")
    return decoded(data, str(path), BatchError)


def check_labels(path: Path, found: Sequence[LabelledFile], classes: Sequence[str], none: str) -> None:
    """BatchError where no label is a class; `none` says what was found where nothing was."""
    labels = {file.label for file in found}
    if not labels & set(classes):
        named = ", ".join(sorted(shown(label) for label in labels)[:5]) or none
        raise BatchError(
            f"{path}: no label is a class (found {named}; dataset.classes: {', '.join(classes)}); correct the labels"
        )


def located(folder: Path, name: str) -> Path | None:
    """The file in a folder that a tool's name for a photo means: a path, a URL, a place on the tool's server.

    The longest end of that path which is a file there, or in `images/` there, is taken; None when there is none.
    """
    if (url := url_parts(name)) is None:
        return None
    inner = parse_qs(url.query).get("d", [unquote(url.path)])[0]  # /data/local-files/?d=… of Label Studio
    parts = [part for part in PurePosixPath(inner.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    ends = [parts[start:] for start in range(len(parts))]
    if parts and (original := _UPLOADED.sub("", parts[-1])) != parts[-1]:
        ends.append([original])
    folders = (folder, folder / "images")
    return next((file for at in folders for end in ends if _is_file(file := at.joinpath(*end))), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a NUL
        return False


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
        named = [name.strip() for name in next(reader, [])]
        header = [name.lower() for name in named]
        one_hot = path.name.lower() == ONE_HOT and not set(header) & set(LABELS)
        if not set(header) & set(PATHS) or not (one_hot or set(header) & set(LABELS)):
            raise BatchError(f"{path}: its first line names no path and label; begin it with path,label,split")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            cells: dict[str, Any] = dict(zip(header, row, strict=False))
            if one_hot:
                marked = [name for name, cell in zip(named, row, strict=False) if cell.strip() in ("1", "1.0")]
                if len(marked) > 1:
                    raise BatchError(
                        f"{path}: line {reader.line_num}: more than one class ({', '.join(map(quoted, marked))}); "
                        "leave one at 1"
                    )
                if not marked:  # nobody has labelled it yet
                    continue
                cells["label"] = marked[0]
            yield reader.line_num, cells
    except csv.Error as error:
        raise BatchError(f"{path}: line {reader.line_num}: not CSV ({error}); correct it there") from error
