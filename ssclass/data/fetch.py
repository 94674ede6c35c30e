"""One photo of a batch: downloaded, held against what its sender says, and inspected; or refused, with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssclass.data.batches import MANIFEST, Batch
from ssclass.data.decoders import decoders
from ssclass.data.images import Picture, Refused
from ssclass.data.manifest import Entry
from ssclass.data.shards import Refusal, Row
from ssclass.errors import ObjectError
from ssclass.params import Params
from ssclass.store import FORBIDDEN, OF_ONE_OBJECT, Store
from ssclass.text import quoted, shown

DENIED = "not readable"
"""Code of the refusal of a photo that S3 will not give."""


@dataclass(frozen=True)
class Taken:
    """A photo that passed its own checks and waits in the scratch folder."""

    entry: Entry
    picture: Picture

    @property
    def sha256(self) -> str:
        """64 hex digits, of the bytes."""
        return self.picture.sha256

    @property
    def dhash(self) -> str:
        """See `ssclass.data.images.Picture`."""
        return self.picture.dhash

    @property
    def palette(self) -> bytes:
        """See `ssclass.data.images.Picture`."""
        return self.picture.palette


@dataclass(frozen=True)
class Denied:
    """A photo whose object S3 will not give."""

    refusal: Refusal
    error: ObjectError


def check_access(batch: Batch, classes: Sequence[str], denied: Sequence[ObjectError]) -> None:
    """Raise where all of the batch is forbidden: that is a policy's fault, and refusing would lose the batch.

    One photo alone may be, where the manifest beside it could be read. What is archived is so for itself.
    """
    forbidden = [error for error in denied if error.code in FORBIDDEN]
    asked = sum(entry.label in classes for entry in batch.entries)
    if len(forbidden) == asked > (1 if batch.ref.marker == MANIFEST else 0):
        raise forbidden[0]


def fetch(
    store: Store, batch: Batch, entry: Entry, params: Params, present: Mapping[str, Row], scratch: Path
) -> Taken | Refusal | Denied | None:
    """One photo, checked and put into the scratch folder; None when the data set has it already."""

    def refuse(reason: str, detail: str) -> Refusal:
        return Refusal(entry.key, reason, detail)

    if entry.label not in params.dataset.classes:
        return refuse("unknown label", no_class(entry.label, params.dataset.classes))
    try:
        data = store.get(batch.ref.prefix + entry.key, limit=params.ingest.max_bytes + 1)
    except ObjectError as error:
        said = OF_ONE_OBJECT.get(error.code, "the store does not give it")
        return Denied(refuse(DENIED, f"{said} ({error.code})"), error)
    if data is None:
        return refuse("missing", "the manifest names it, but there is no such object")
    try:
        if len(data) <= params.ingest.max_bytes:  # else inspect says so
            if entry.size is not None and entry.size != len(data):
                return refuse("size mismatch", f"the manifest says {entry.size:,} bytes, the object has {len(data):,}")
            sha256 = hashlib.sha256(data).hexdigest()
            if entry.sha256 and entry.sha256 != sha256:
                return refuse("sha256 mismatch", "the object's bytes have another sha256 than the manifest says")
            if known := present.get(sha256):
                if known.label == entry.label:
                    return None
                detail = (
                    f"labelled {shown(entry.label)}, but in the data set as {known.label}; a relabel would correct that"
                )
                return refuse("label conflict", detail)
        picture = decoders().inspect(data, params.ingest)
    except Refused as error:
        return refuse(error.reason, error.detail)
    (scratch / picture.sha256).write_bytes(data)
    return Taken(entry, picture)


def no_class(label: str, classes: Sequence[str]) -> str:
    """Why a label is refused."""
    said = f"{quoted(label)} is" if label else "not in a class folder, so"
    return f"{said} none of dataset.classes ({', '.join(classes)})"
