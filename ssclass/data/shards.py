"""Shard v2: one batch inside the data set, as one Parquet file (docs/formats.md).

Image bytes are one column among others: the others are read alone, by range reads where the source is remote.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from ssclass.data.manifest import MAIN
from ssclass.errors import FailedError
from ssclass.files import whole, write_whole
from ssclass.text import message, shown

SCHEMA_VERSION = 2
READABLE = ("1", "2")  # 1: receipts without a source, which are of `main`
GROUP_BYTES = 8_000_000  # of photos per row group: what a reader holds at once


@dataclass(frozen=True)
class Row:
    """One photo of the data set; `key` is relative to its batch, width and height are of the upright picture."""

    sha256: str
    label: str
    split: str
    group: str
    dhash: str
    palette: bytes
    key: str
    width: int
    height: int


@dataclass(frozen=True)
class Refusal:
    """A photo (or correction) that was not taken; `key` is relative to its batch."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Warned:
    """Something about a batch that a person should know; nothing was refused for it."""

    code: str
    detail: str


@dataclass(frozen=True)
class Receipt:
    """What became of a batch. Nothing in it differs between two identical runs.

    sequence: this is the n-th shard of the data set, from 1. counts: class → split → accepted photos.
    duplicates: photos that were in the data set, or in the batch, already. relabel, remove: as applied.
    relabel_again, remove_again: what was so already, by another batch, and stays so when that is revoked. source: as
    the manifest names it.
    """

    batch_id: str
    marker: str
    etag: str
    sequence: int
    accepted: int
    duplicates: int
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[Warned, ...] = ()
    relabel: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    source: str = MAIN
    relabel_again: dict[str, str] = field(default_factory=dict)
    remove_again: tuple[str, ...] = ()

    @property
    def corrected(self) -> set[str]:
        """Every photo that a correction names (sha256)."""
        return {*self.relabel, *self.remove, *self.relabel_again, *self.remove_again}

    @property
    def changes(self) -> bool:
        """Whether the data set is another one with this batch in it."""
        return bool(self.accepted or self.relabel or self.remove)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; corrections of older versions' names alone, where there are no others."""
        body = asdict(self)
        newer = [name for name in ("relabel_again", "remove_again") if not body[name]]
        return json.loads(json.dumps({name: value for name, value in body.items() if name not in newer}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Receipt:
        """The inverse of to_json."""
        value = dict(value)
        value["refused"] = tuple(Refusal(**item) for item in value["refused"])
        value["warnings"] = tuple(Warned(**item) for item in value["warnings"])
        value["remove"] = tuple(value["remove"])
        value["remove_again"] = tuple(value.get("remove_again", ()))
        return cls(**value)


@dataclass(frozen=True)
class Shard:
    """A shard without its image bytes."""

    rows: tuple[Row, ...]
    receipt: Receipt

    @property
    def batch_id(self) -> str:
        """The batch it came from."""
        return self.receipt.batch_id

    @property
    def photos_digest(self) -> str:
        """sha256 over the photos in order: what features are kept under (64 hex digits)."""
        return _digest([row.sha256 for row in self.rows])

    @property
    def digest(self) -> str:
        """sha256 over everything that training can see: photos, labels, splits, groups, corrections."""
        rows = [[row.sha256, row.label, row.split, row.group] for row in self.rows]
        again = [[self.receipt.relabel_again, self.receipt.remove_again]]
        return _digest([rows, self.receipt.relabel, self.receipt.remove, *(again if any(again[0]) else ())])


def write_shard(path: Path, photos: Iterable[tuple[Row, bytes]], receipt: Receipt) -> Shard:
    """Write a shard, which appears whole or not at all; holds about GROUP_BYTES in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    meta = {"ssclass.schema": str(SCHEMA_VERSION), "ssclass.receipt": json.dumps(receipt.to_json(), sort_keys=True)}
    schema = _schema(pa).with_metadata(meta)
    rows: list[Row] = []
    with (
        whole(path) as new,
        parquet.ParquetWriter(new, schema, compression="none", use_dictionary=False) as writer,
    ):
        waiting: list[dict[str, Any]] = []
        size = 0
        for row, data in photos:
            rows.append(row)
            waiting.append({**vars(row), "bytes": data})
            size += len(data)
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
    return Shard(tuple(rows), receipt)


def read_shard(source: Path | BinaryIO) -> Shard:
    """Rows and receipt; the image bytes are not touched. FailedError when it is no shard of this version."""
    from pyarrow import parquet

    with _readable(source) as name, parquet.ParquetFile(source, pre_buffer=False) as file:
        meta = file.schema_arrow.metadata or {}
        version = meta.get(b"ssclass.schema", b"?").decode()
        if version not in READABLE:
            raise FailedError(
                f"{name}: shard schema {shown(version)}, this is for {SCHEMA_VERSION}; use a newer ssclass"
            )
        receipt = Receipt.from_json(json.loads(meta[b"ssclass.receipt"]))
        columns = [column for column in file.schema_arrow.names if column != "bytes"]
        rows = tuple(Row(**row) for row in file.read(columns=columns).to_pylist())
    return Shard(rows, receipt)


@contextmanager
def _readable(source: Path | BinaryIO) -> Iterator[str]:
    """Read a shard, whose name is given: what Arrow and a foreign receipt may raise becomes FailedError."""
    import pyarrow as pa

    name = getattr(source, "name", None) or str(source)
    try:
        yield name
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FailedError(
            f"{name}: not a readable shard ({message(error, 300)}); fetch it again with `dvc pull --force`"
        ) from error


def write_memo(shard: Shard, path: Path) -> None:
    """Write all of a shard but its image bytes to a JSON file: a thousand are read in a fraction of a second."""
    columns: dict[str, list[Any]] = {each.name: [getattr(row, each.name) for row in shard.rows] for each in fields(Row)}
    columns["palette"] = [b64encode(palette).decode() for palette in columns["palette"]]
    write_whole(path, json.dumps({"receipt": shard.receipt.to_json(), "rows": columns}))


def read_memo(path: Path) -> Shard:
    """The shard that `write_memo` wrote; FileNotFoundError when there is none, FailedError when it is damaged."""
    try:
        body = json.loads(path.read_bytes())
        columns = body["rows"]
        columns["palette"] = [b64decode(palette, validate=True) for palette in columns["palette"]]
        rows = zip(*(columns[each.name] for each in fields(Row)), strict=True)
        return Shard(tuple(Row(*row) for row in rows), Receipt.from_json(body["receipt"]))
    except FileNotFoundError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        said = message(error, 300)
        raise FailedError(f"{path}: not a readable memo of a shard ({said}); delete it, it is made anew") from error


def iter_photos(source: Path | BinaryIO, wanted: set[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(sha256, bytes) of the wanted photos, or of all, in order; one row group in memory at a time.

    FailedError when it is no readable shard.
    """
    from pyarrow import parquet

    with _readable(source), parquet.ParquetFile(source, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["sha256"])["sha256"].to_pylist()
            if wanted is not None and wanted.isdisjoint(names):
                continue
            column = file.read_row_group(group, columns=["bytes"])["bytes"]
            for name, data in zip(names, column, strict=True):
                if wanted is None or name in wanted:
                    yield name, data.as_py()


def _schema(pa: Any) -> Any:
    text = ("sha256", "label", "split", "group", "dhash")
    return pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in text),
            pa.field("palette", pa.binary(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("bytes", pa.large_binary(), nullable=False),
        ]
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
