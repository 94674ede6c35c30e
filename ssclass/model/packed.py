"""Features of many small shards in one file of this machine, which is quicker to open than a file for each.

A pack holds the features of the shards of `BLOCK` data versions that follow each other, as far as their photos are in
use. It is a memo of a memo: the files of the shards, here and in the bucket, are what counts, and a pack that is
missing, damaged, or of other shards is made from them anew. Packs lie beside those files and go with them: whoever
forgets a photo, or clears features away, deletes the packs that have it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssclass.files import write_whole
from ssclass.model.features import FeatureMemo, Features, concat, pack, unpack
from ssclass.model.spec import Spec

if TYPE_CHECKING:
    from ssclass.data.dataset import Dataset
    from ssclass.data.shards import Shard

log = logging.getLogger(__name__)

BLOCK = 64
"""Data versions of a pack. The newest ones, fewer than that, are read shard by shard."""
FEW = 8
"""Shards that are not worth a pack."""
MOST = 16_000_000
"""Bytes of a pack. Of larger shards it is not the opening that takes the time, and they would be on disk twice."""
LAYOUT = 1
"""Part of a pack's name: change what is in a pack, and it must go up."""

_NAME = re.compile(r"block\d+-\d+-[0-9a-f]{8}-[0-9a-f]{32}\.npz")


def read_packed(
    memo: FeatureMemo,
    spec: Spec,
    dataset: Dataset,
    wanted: Sequence[Shard],
    names: Collection[str] | None,
    one: Callable[[Shard], Features],
) -> Iterator[Features]:
    """Features of the wanted shards of a data set, in its order; of those in a pack together, and of others there too.

    `one` gives the features of a shard; what is not packed yet comes from it, and is packed. `names`: the arrays that
    are wanted, if not all.
    """
    blocks = {number: list(shards) for number, shards in groupby(dataset.shards, _block)}
    for number, shards in groupby(wanted, _block):
        here = list(shards)
        members = [shard for shard in blocks[number] if any(map(dataset.uses, spec.photos(shard.rows)))]
        if number == max(blocks) or len(members) < FEW or 4 * len(here) < len(members):
            yield from map(one, here)
            continue
        pack_of = Pack(memo.local, spec, number, members, names)
        if (found := pack_of.read()) is not None:
            yield found
            packed = {shard.batch_id for shard in members}  # a study's row may ask for photos of other sources
            yield from map(one, (shard for shard in here if shard.batch_id not in packed))
        elif [shard.batch_id for shard in members] != [shard.batch_id for shard in here]:
            yield from map(one, here)
        else:
            yield from pack_of.writing(map(one, here))


def _block(shard: Shard) -> int:
    return shard.receipt.sequence // BLOCK


class Pack:
    """The file with the features of some shards. `names`: the arrays that it has, None for all."""

    def __init__(
        self, local: Path, spec: Spec, number: int, shards: Sequence[Shard], names: Collection[str] | None
    ) -> None:
        self.sha256s = tuple(sha256 for shard in shards for sha256 in spec.photos(shard.rows))
        self.names = None if names is None else frozenset(names)
        arrays = _digest(None if names is None else sorted(self.names or ()))[:8]
        self.folder = local / "features" / spec.fingerprint
        self._others = f"block*-{number}-{arrays}-*.npz"
        self.path = self.folder / (
            f"block{LAYOUT}-{number}-{arrays}-{_digest([shard.photos_digest for shard in shards])[:32]}.npz"
        )

    def read(self) -> Features | None:
        """The features of all photos of the shards; None where there is no pack, or where it is not what it should."""
        try:
            with self.path.open("rb") as file:
                return unpack(file, self.sha256s, self.names)
        except OSError:
            return None

    def writing(self, parts: Iterator[Features]) -> Iterator[Features]:
        """Pass on the features of the shards, one by one, and then write them into the pack, where that is small."""
        kept: list[Features] = []
        size = 0
        for part in parts:
            yield part
            if size <= MOST:
                kept.append(self._chosen(part))
                size += sum(array.nbytes for array in kept[-1].arrays.values())
        if size <= MOST and _alike(kept):
            self._write(concat(kept))

    def _chosen(self, part: Features) -> Features:
        names = part.arrays.keys() if self.names is None else self.names & part.arrays.keys()
        return Features(part.sha256s, {name: part.arrays[name] for name in sorted(names)})

    def _write(self, features: Features) -> None:
        try:
            write_whole(self.path, pack(features, stored=True))
            for path in self.folder.glob(self._others):
                if path != self.path:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("features of many shards are not packed: %s", error)


def _alike(parts: Sequence[Features]) -> bool:
    """Whether all parts have the same arrays, by name, type and shape, but for the number of photos."""
    kinds = {tuple((name, array.dtype, array.shape[1:]) for name, array in part.arrays.items()) for part in parts}
    return len(kinds) == 1


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def is_pack(path: Path) -> bool:
    """Whether a file is called as a pack is."""
    return _NAME.fullmatch(path.name) is not None


def has_only(path: Path, photos: Collection[str]) -> bool:
    """Whether a file is a pack that can be read, of some of these photos and of no others."""
    packed = photos_in(path) if is_pack(path) else None
    return packed is not None and len(packed) > 0 and packed.issubset(photos)


def photos_in(path: Path) -> set[str] | None:
    """sha256s of the photos of a pack; None where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as file, file.open("sha256s.npy") as names:
            return {str(sha256) for sha256 in np.lib.format.read_array(names, allow_pickle=False)}
    except Exception:  # NumPy parses a header as Python: a damaged one makes it raise anything
        return None
