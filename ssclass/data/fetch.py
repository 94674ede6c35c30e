"""Photos of a batch: each downloaded, held against what its sender says, and inspected; or refused, with the reason."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.batches import MANIFEST, Batch
from ssclass.data.decoders import decoders
from ssclass.data.images import Picture, Refused
from ssclass.data.manifest import Entry
from ssclass.data.shards import Refusal, Row
from ssclass.errors import ObjectError
from ssclass.params import Params
from ssclass.store import FORBIDDEN, OF_ONE_OBJECT, Store
from ssclass.text import quoted, shown

REQUESTS = 4
"""Photos of those given at once that are fetched at a time."""
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


class Known:
    """Labels of the photos that a data set has, by sha256. What travels of it is 34 bytes a photo."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows

    def label(self, sha256: str) -> str | None:
        """The label of a photo; None of one that is not there."""
        row = self._rows.get(sha256)
        return None if row is None else row.label

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        names = sorted({row.label for row in self._rows.values()})
        number = {name: at for at, name in enumerate(names)}
        digests = sorted(self._rows)
        labels = np.fromiter((number[self._rows[each].label] for each in digests), np.uint16, len(digests))
        return _Arrived, (bytes.fromhex("".join(digests)), labels, names)


class _Arrived(Known):
    """`Known` on another machine: `digests`, 32 bytes each in their order, and for each the place of its name."""

    def __init__(self, digests: bytes, labels: NDArray[np.uint16], names: Sequence[str]) -> None:
        self._digests, self._labels, self._names = digests, labels, names

    def label(self, sha256: str) -> str | None:
        wanted = bytes.fromhex(sha256)
        at = bisect_left(range(len(self._labels)), wanted, key=self._digest)
        there = at < len(self._labels) and self._digest(at) == wanted
        return self._names[self._labels[at]] if there else None

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _Arrived, (self._digests, self._labels, self._names)

    def _digest(self, at: int) -> bytes:
        return self._digests[32 * at : 32 * at + 32]


Outcome = Taken | Refusal | Denied | None
"""What becomes of a photo; None when the data set has it already."""


class Fetching:
    """A function of some photos of a batch: what becomes of each, and the bytes of those that are taken.

    The process that has it fetches them and has them decoded. Where it is given a `scratch` folder, bytes are put
    there instead, under their sha256. Safe to call from several threads.
    """

    def __init__(self, store: Store, prefix: str, params: Params, known: Known, scratch: Path | None) -> None:
        self._photo = partial(_fetch, store, prefix, params, known)
        self._scratch = scratch
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch")

    def __call__(self, entries: Sequence[Entry]) -> list[tuple[Outcome, bytes]]:
        """What becomes of each photo, in order, with its bytes where it is taken and they are not put away."""
        found = map(self._photo, entries) if len(entries) == 1 else self._pool.map(self._photo, entries)
        if self._scratch is None:
            return list(found)
        return [(keep(self._scratch, *each), b"") for each in found]


def keep(scratch: Path, outcome: Outcome, data: bytes) -> Outcome:
    """Put a photo that is taken into the scratch folder, under its sha256."""
    if isinstance(outcome, Taken):
        (scratch / outcome.sha256).write_bytes(data)
    return outcome


def _fetch(store: Store, prefix: str, params: Params, known: Known, entry: Entry) -> tuple[Outcome, bytes]:
    """One photo, checked, and its bytes where it is taken."""

    def refuse(reason: str, detail: str) -> tuple[Outcome, bytes]:
        return Refusal(entry.key, reason, detail), b""

    if entry.label not in params.dataset.classes:
        return refuse("unknown label", no_class(entry.label, params.dataset.classes))
    try:
        data = store.get(prefix + entry.key, limit=params.ingest.max_bytes + 1)
    except ObjectError as error:
        said = OF_ONE_OBJECT.get(error.code, "the store does not give it")
        return Denied(Refusal(entry.key, DENIED, f"{said} ({error.code})"), error), b""
    if data is None:
        return refuse("missing", "the manifest names it, but there is no such object")
    try:
        if len(data) <= params.ingest.max_bytes:  # else inspect says so
            if entry.size is not None and entry.size != len(data):
                return refuse("size mismatch", f"the manifest says {entry.size:,} bytes, the object has {len(data):,}")
            sha256 = hashlib.sha256(data).hexdigest()
            if entry.sha256 and entry.sha256 != sha256:
                return refuse("sha256 mismatch", "the object's bytes have another sha256 than the manifest says")
            if (label := known.label(sha256)) is not None:
                if label == entry.label:
                    return None, b""
                detail = f"labelled {shown(entry.label)}, but in the data set as {label}; a relabel would correct that"
                return refuse("label conflict", detail)
        picture = decoders().inspect(data, params.ingest)
    except Refused as error:
        return refuse(error.reason, error.detail)
    return Taken(entry, picture), data


def no_class(label: str, classes: Sequence[str]) -> str:
    """Why a label is refused."""
    said = f"{quoted(label)} is" if label else "not in a class folder, so"
    return f"{said} none of dataset.classes ({', '.join(classes)})"
