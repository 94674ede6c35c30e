"""Photos without labels, in a folder, under a prefix in S3 or in a Parquet file, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ssclass.data.folders import hidden, spelt, walk
from ssclass.data.images import Refused
from ssclass.errors import InputError, NotFoundError, ObjectError
from ssclass.settings import Settings
from ssclass.store import at_url
from ssclass.text import message

S3 = "s3://"
BYTES, NAMES = ("photo", "image", "bytes", "data"), ("path", "file_name", "filename", "file", "key", "name", "sha256")
"""Columns of a Parquet file that may hold the photos, and what they are called; a shard has ``bytes`` and ``key``."""
ROWS = 16  # of a Parquet file in memory at once


@dataclass(frozen=True)
class Unlabelled:
    """A photo that nobody has labelled.

    `name`: as its source has it, `key`: the same, or what tells it from others of that name. `read` gives its bytes, or
    raises Refused; StoreError where S3 is away.
    """

    name: str
    key: str
    read: Callable[[], bytes]


def photos_at(where: str, settings: Settings | None, most_bytes: int) -> Iterator[Unlabelled]:
    """Every file of a folder (hidden ones aside), object under s3://bucket/prefix, or row of a Parquet file.

    Of a file no more than `most_bytes` and one more are read. InputError where there is nothing.
    """
    path = Path(where)
    if where.startswith(S3):
        if settings is None:
            raise InputError(f"{where}: no workspace says how to reach S3; name one with --workspace")
        found = _objects(where, settings, most_bytes)
    elif path.is_dir():
        found = _files(path, most_bytes)
    elif path.suffix.lower() == ".parquet" and path.is_file():
        found = _rows(path)
    else:
        raise NotFoundError(f"{where}: no such folder; name a folder of photos, s3://bucket/prefix or a .parquet file")
    first = next(found, None)
    if first is None:
        raise InputError(f"{where}: no photos there; name the folder or prefix that holds them")
    return chain([first], found)


def _files(folder: Path, most: int) -> Iterator[Unlabelled]:
    def read(path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(most + 1)
        except OSError as error:
            raise Refused("unreadable", error.strerror or str(error)) from error

    for path in walk(folder):
        name = spelt(path.relative_to(folder).as_posix())
        yield Unlabelled(name, name, partial(read, path))


def _objects(where: str, settings: Settings, most: int) -> Iterator[Unlabelled]:
    store, prefix = at_url(settings, where)

    def read(key: str) -> bytes:
        try:
            data = store.get(key, limit=most + 1)
        except ObjectError as error:
            raise Refused("unreadable", f"S3 does not give it ({error.code})") from error
        if data is None:
            raise Refused("missing", "it was there when the folder was listed, and is gone")
        return data

    for found in store.list(prefix):
        name = found.key.removeprefix(prefix)
        if name and not name.endswith("/") and not hidden(name):
            yield Unlabelled(name, name, partial(read, found.key))


def _rows(path: Path) -> Iterator[Unlabelled]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            column, named = _columns(path, file.schema_arrow)
            number = 0
            for batch in file.iter_batches(ROWS, columns=[column, *([named] if named else [])]):
                names = batch.column(named).to_pylist() if named else [None] * len(batch)
                for name, value in zip(names, batch.column(column).to_pylist(), strict=True):
                    shown = str(number) if name is None else str(name)
                    yield Unlabelled(shown, f"{number}/{shown}", partial(_value, value))
                    number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not readable as Parquet ({message(error, 200)}); write it anew") from error


def _columns(path: Path, schema: Any) -> tuple[str, str | None]:
    """The column with the photos (bytes, or a struct that has ``bytes``), and the one with their names, if any."""
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(each.name == "bytes" and is_bytes(each.type) for each in kind)
        return is_bytes(kind)

    def is_name(kind: pa.DataType) -> bool:
        of = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_integer(of))

    once = {field.name: field.type for field in schema if schema.names.count(field.name) == 1}
    holding = [name for name in BYTES if name in once and holds_bytes(once[name])]
    if not holding:
        raise InputError(
            f"{path}: no column of photos (it has {message(', '.join(schema.names), 100)}); call the one with their "
            "bytes photo"
        )
    return holding[0], next((name for name in NAMES if name in once and is_name(once[name])), None)


def _value(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise Refused("missing", "the row has no bytes")
    return bytes(data)
