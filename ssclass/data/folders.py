"""Class folders, on disk and in S3: the first folder of a photo's path is its label. One rule for all who read them.

Left out are hidden files and folders (their name begins with a dot: .DS_Store, .git, ._x.jpg). Every other file
counts, whatever it is called: what is no photo is refused by name when it is read. Labels are compared in composed
Unicode (NFC), as macOS names its folders otherwise; paths and keys stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssclass.errors import BatchError
from ssclass.text import composed, shown


@dataclass(frozen=True)
class LabelledFile:
    """A photo's file: its key in the batch, fit for S3, its label, and the side that its sender wants it on, if any.

    Of a file in a class folder, the key is its path in the folder around it, and begins with the class.
    """

    path: Path
    key: str
    label: str
    split: str | None = None


def hidden(key: str) -> bool:
    """Whether a relative path is of a hidden file, or inside a hidden folder."""
    return any(part.startswith(".") for part in key.split("/"))


def label_in(key: str) -> str:
    """The label that a key's first folder says, in NFC; empty when it is in no folder."""
    return composed(key.split("/", 1)[0]) if "/" in key else ""


def labelled_files(folder: Path, classes: Sequence[str], *, only: bool = False) -> list[LabelledFile]:
    """Every file in the class folders of `folder`, in the order of their paths.

    BatchError when no folder inside is named like a class, when there is no file in them, and when a folder cannot be
    read. Folders that are no class count, too (their photos are refused by name at ingest), unless `only`: then they
    are a BatchError.
    """
    inside = class_folders(folder, classes)
    labels = {path: composed(path.name) for path in inside}
    unknown = [path.name for path, label in labels.items() if label not in classes]
    wanted = ", ".join(classes)
    if only and unknown:
        raise BatchError(
            f"{folder}: folder {shown(unknown[0])!r} is no class of the model; it needs folders named {wanted}"
        )
    if len(unknown) == len(inside):
        found = ", ".join(shown(name) for name in unknown[:5]) or "no folders"
        raise BatchError(
            f"{folder}: no class folders (found {found}; dataset.classes: {wanted}); "
            "put the photos into folders named like the classes"
        )
    files = [
        LabelledFile(path, spelt(path.relative_to(folder).as_posix()), labels[inner])
        for inner in inside
        for path in files_in(inner)
    ]
    if not files:
        raise BatchError(f"{folder}: its class folders are empty; put photos into them")
    return files


def class_folders(folder: Path, classes: Sequence[str] = ()) -> list[Path]:
    """The folders in a folder that are not hidden, sorted; BatchError when it is none, or cannot be read."""
    if not folder.is_dir():
        named = f" ({', '.join(classes)})" if classes else ", as in sushi/ and sandwich/"
        raise BatchError(f"{folder}: no such folder; name one that holds class folders{named}")
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    except OSError as error:
        raise BatchError(f"{folder}: cannot be read ({error.strerror}); make it readable") from error


def files_in(folder: Path) -> list[Path]:
    """Every file under a folder that is not hidden, sorted; BatchError when a folder in it cannot be read."""
    return sorted(walk(folder))


def walk(folder: Path) -> Iterator[Path]:
    """Every file under a folder that is not hidden, a folder at a time, in a fixed order; BatchError as `files_in`."""

    def refuse(error: OSError) -> None:
        raise BatchError(
            f"{error.filename}: cannot be read ({error.strerror}); make it readable, or take it out of the folder"
        ) from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(names):
            path = Path(root, name)
            if not hidden(name) and path.is_file():
                yield path


def spelt(name: str) -> str:
    """A file name as a key: control characters and bytes that are no UTF-8, which S3 cannot take, as \\x0a."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in text)
