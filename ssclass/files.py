"""Files on this machine: written whole or not at all, and read without trusting what is there."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssclass.errors import BatchError, InputError

PARTIAL = ".partial"
"""How the name of a file or folder ends that is still being written; it begins with a dot, too."""
TEXT_LIMIT = 1_000_000  # bytes of a settings file

BAD_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What reading a damaged zip file may raise: the last two for compression and encryption that nobody asked for."""
UNPACKED = 64_000_000  # bytes that a zip file of any size may unpack to
RATIO = 100  # beyond that: bytes for each byte of it; what we write shrinks to a tenth at most


def check_unpacked(file: Path, most: int) -> None:
    """ValueError where a zip file would unpack to over `most` bytes, or to far more than honest content does.

    Also BAD_ZIP and OSError, where it is none.
    """
    with zipfile.ZipFile(file) as source:
        check_members(source, most)


def check_members(source: zipfile.ZipFile, most: int) -> None:
    """ValueError where an open zip file would unpack to over `most` bytes, or to far more than honest content does."""
    members = source.infolist()
    unpacked, packed = sum(each.file_size for each in members), sum(each.compress_size for each in members)
    if unpacked > min(most, UNPACKED + RATIO * packed):
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes `path` when the block ends well, and is gone otherwise.

    The block writes a file or makes a folder there. A file replaces the one before it at once; a folder takes the
    place of a folder only where that is empty. No two writers share a temporary path, whatever process they are in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield new
        new.replace(path)
    finally:
        if new.is_dir():
            shutil.rmtree(new, ignore_errors=True)
        else:
            new.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file, text as UTF-8; it appears whole or not at all, with `mode` (less the umask) from the start."""
    body = data.encode() if isinstance(data, str) else data
    with whole(path) as new, open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123 - with a mode
        file.write(body)


def read_text(path: Path, error: type[InputError], remedy: str) -> str | None:
    """The text of a file that a person writes, None where there is none; `error` says why it cannot be read.

    UTF-8, a byte-order mark before it is dropped. No more than TEXT_LIMIT bytes, and never a device or a pipe.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise error(f"{path}: {'a folder' if stat.S_ISDIR(kind) else 'no plain file'}; {remedy}")
        with path.open("rb") as file:
            data = file.read(TEXT_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as said:
        raise error(f"{path}: cannot be read ({said.strerror}); {remedy}") from said
    if len(data) > TEXT_LIMIT:
        raise error(f"{path}: more than {TEXT_LIMIT:,} bytes; {remedy}")
    return decoded(data, str(path), error)


def decoded(data: bytes, name: str, error: type[InputError]) -> str:
    """The text of a file's bytes; `name` names it where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as said:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "UTF-16" if wide else f"not UTF-8 text (byte {said.start})"
        raise error(f"{name}: {what}; save it as UTF-8") from said


def file_md5(path: Path) -> str:
    """md5 of a file (32 hex digits), by which Keras and DVC name contents; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file (64 hex digits); BatchError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror}; make it readable, or take it out of the folder") from error
