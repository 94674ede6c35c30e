"""The forms in which a data set leaves: class folders, Parquet as Hugging Face has it, WebDataset's tars, Croissant.

The held-out photos are the split `test` in each, as the tools that read them expect it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ssclass.data.shards import Row
from ssclass.data.split import HOLDOUT
from ssclass.errors import WorkspaceError
from ssclass.files import file_sha256

FORMS = ("folders", "parquet", "webdataset", "croissant")
TOGETHER = 100  # photos in a row group of Parquet
SHARD_BYTES = 500_000_000  # of photos in a tar, about


def side(split: str) -> str:
    """What a split is called outside: the held-out photos are `test`."""
    return "test" if split == HOLDOUT else split


class Form(Protocol):
    """What writes an export, photo by photo."""

    def add(self, row: Row, name: str, data: bytes) -> None:
        """Write a photo; `name` is its file's."""

    def close(self) -> None:
        """Finish what is open."""


def form(kind: str, folder: Path, classes: Sequence[str]) -> Form:
    """What writes an export of a kind into a folder; the number of a label is its place in `classes`."""
    makers: dict[str, Any] = {
        "folders": Folders,
        "parquet": Parquet,
        "webdataset": WebDataset,
        "croissant": Croissant,
    }
    made: Form = makers[kind](folder, classes)
    return made


class Folders:
    """``train/sushi/….jpg`` and ``test/sushi/….jpg``: what ``load_dataset("imagefolder")`` and Keras read."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder

    def add(self, row: Row, name: str, data: bytes) -> None:
        """Write a photo's file."""
        path = self.folder / side(row.split) / row.label / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise _no_room(path, error) from error

    def close(self) -> None:
        """Nothing is open."""


class Parquet:
    """``train.parquet`` and ``test.parquet``: image {bytes, path}, label (a number), class (its name), sha256.

    The schema says to Hugging Face `datasets` that these are pictures and class labels; to others it is plain Parquet.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        import pyarrow as pa

        self.folder, self.classes = folder, list(classes)
        features = {
            "image": {"_type": "Image"},
            "label": {"names": self.classes, "_type": "ClassLabel"},
            "class": {"dtype": "string", "_type": "Value"},
            "sha256": {"dtype": "string", "_type": "Value"},
        }
        self.schema = pa.schema(
            [
                pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                pa.field("label", pa.int64()),
                pa.field("class", pa.string()),
                pa.field("sha256", pa.string()),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self.writers: dict[str, Any] = {}
        self.waiting: dict[str, list[dict[str, Any]]] = {}

    def add(self, row: Row, name: str, data: bytes) -> None:
        """Keep a photo for the next row group, or write that."""
        of = self.waiting.setdefault(side(row.split), [])
        of.append(
            {
                "image": {"bytes": data, "path": name},
                "label": self.classes.index(row.label),
                "class": row.label,
                "sha256": row.sha256,
            }
        )
        if len(of) >= TOGETHER:
            self._flush(side(row.split))

    def _flush(self, split: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / f"{split}.parquet"
        try:
            if split not in self.writers:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.writers[split] = pq.ParquetWriter(path, self.schema)
            self.writers[split].write_table(pa.Table.from_pylist(self.waiting[split], self.schema))
        except OSError as error:
            raise _no_room(path, error) from error
        self.waiting[split] = []

    def close(self) -> None:
        """Write what is kept, and end the files."""
        for split, of in self.waiting.items():
            if of:
                self._flush(split)
        for writer in self.writers.values():
            writer.close()


_TERMS = """citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset
jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField
transform"""
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
"""The whole context of Croissant 1.0, as its specification has it: validators warn of a part."""


class Croissant(Parquet):
    """The same Parquet files, and ``croissant.json``: what is in them, in MLCommons' Croissant 1.0 (JSON-LD)."""

    def close(self) -> None:
        """End the files, and describe them."""
        super().close()
        path = self.folder / "croissant.json"
        try:
            path.write_text(json.dumps(self._described(), ensure_ascii=False, indent=1), encoding="utf-8")
        except OSError as error:
            raise _no_room(path, error) from error

    def _described(self) -> dict[str, Any]:
        files = [f"{split}.parquet" for split in sorted(self.writers)]
        return {
            "@context": _CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": self.folder.resolve().name,
            "description": f"Photos labelled {', '.join(self.classes)}; exported by ssclass.",
            "distribution": [
                {
                    "@type": "cr:FileObject",
                    "@id": name,
                    "name": name,
                    "contentUrl": name,
                    "encodingFormat": "application/x-parquet",
                    "sha256": file_sha256(self.folder / name),
                }
                for name in files
            ],
            "recordSet": [
                {
                    "@type": "cr:RecordSet",
                    "@id": "classes",
                    "name": "classes",
                    "key": {"@id": "classes/name"},
                    "field": [
                        {"@type": "cr:Field", "@id": "classes/name", "name": "classes/name", "dataType": "sc:Text"}
                    ],
                    "data": [{"classes/name": name} for name in self.classes],
                },
                *(self._records(name) for name in files),
            ],
        }

    @staticmethod
    def _records(name: str) -> dict[str, Any]:
        """The records of one file: picture, class, sha256."""
        split = name.removesuffix(".parquet")

        def field(column: str, kind: str, **more: Any) -> dict[str, Any]:
            source: dict[str, Any] = {"fileObject": {"@id": name}, "extract": {"column": column}}
            if kind == "sc:ImageObject":
                source["transform"] = {"jsonPath": "bytes"}
            at = f"{split}/{column}"
            return {"@type": "cr:Field", "@id": at, "name": at, "dataType": kind, "source": source, **more}

        fields = [
            field("image", "sc:ImageObject"),
            field("class", "sc:Text", references={"field": {"@id": "classes/name"}}),
            field("sha256", "sc:Text"),
        ]
        return {"@type": "cr:RecordSet", "@id": split, "name": split, "field": fields}


class WebDataset:
    """``train-000000.tar`` and so on; of each photo ``KEY.jpg`` (or another end), ``KEY.cls`` and ``KEY.json``.

    KEY is the first 16 digits of the photo's sha256; ``classes.json`` has the names of the numbers in ``.cls``.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, list(classes)
        self.open: dict[str, tarfile.TarFile] = {}
        self.number: dict[str, int] = {}
        self.size: dict[str, int] = {}

    def add(self, row: Row, name: str, data: bytes) -> None:
        """Write a photo's three members."""
        split = side(row.split)
        about = {"label": row.label, "sha256": row.sha256, "name": name}
        members = {
            (Path(name).suffix.lower() or ".jpg"): data,
            ".cls": str(self.classes.index(row.label)).encode(),
            ".json": json.dumps(about, ensure_ascii=False).encode(),
        }
        path = self.folder / f"{split}-{self.number.get(split, 0):06}.tar"
        try:
            if split not in self.open:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "classes.json").write_text(json.dumps(self.classes, ensure_ascii=False))
                self.open[split] = tarfile.open(path, "w")  # noqa: SIM115 - closed by `close`
            for end, content in members.items():
                member = tarfile.TarInfo(f"{row.sha256[:16]}{end}")
                member.size = len(content)
                self.open[split].addfile(member, io.BytesIO(content))
        except OSError as error:
            raise _no_room(path, error) from error
        self.size[split] = self.size.get(split, 0) + len(data)
        if self.size[split] >= SHARD_BYTES:
            self.open.pop(split).close()
            self.number[split] = self.number.get(split, 0) + 1
            self.size[split] = 0

    def close(self) -> None:
        """End the tars."""
        for each in self.open.values():
            each.close()


def _no_room(path: Path, error: OSError) -> WorkspaceError:
    said = error.strerror or type(error).__name__
    return WorkspaceError(f"{path}: cannot be written ({said}); name a folder with room for the photos")
