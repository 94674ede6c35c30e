"""Features, what the frozen backbone gives for a photo: computed once, remembered by content.

A photo's features depend on its bytes, the decode, the backbone's weights and the views, and on nothing else. All
but the bytes are in the fingerprint of a spec (`ssclass.model.spec`); the bytes are in the shard's photos digest. The
memo under those two keys can be deleted at any time: that costs time and changes nothing.

Arrays are named ``<size>.<layer>.<moment>``: ``224.out.mean`` is the spatial mean over the backbone's last feature map
for views of 224 x 224 pixels, ``square`` the spatial mean of its squares. Each is float32 [photos, views, channels]: a
photo, or five crops of it (corners and centre, each three quarters of its width and height), then the mirror images.
``224.out.map`` is the map itself, float16 [photos, views, h, w, channels], made of the largest size for the heads that
need it: of MobileNet 100 kB a view at 224, 200 kB at 320, and a quarter of that in the memo. Of photos in their own
shape it is [photos, views, places, channels], filled up to the most places that a shape has, and ``320.out.place``,
float32 [photos, views, places, 2], says where each place is.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ssclass.errors import StoreError
from ssclass.files import check_members, write_whole
from ssclass.model.extraction import Extractor, extract, make_extractor, tuned_extractor
from ssclass.model.spec import DerivedSpec, FeatureSpec, Spec
from ssclass.store import Store

if TYPE_CHECKING:
    from ssclass.data.shards import Shard

log = logging.getLogger(__name__)

SEEN = "seen.json"
Extracted = tuple[tuple[str, ...], dict[str, np.ndarray]]
MOST_OF_A_PHOTO = 16_000_000  # bytes: several crops of the largest activations are a tenth of it


@dataclass(frozen=True, eq=False)
class Features:
    """Features of some photos: `arrays` [photos, views, …] as above, rows in the order of `sha256s`.

    Training photos have more: `groups`, the near-duplicate group of each photo (where it is empty, each photo is a
    group of its own), and `augmented`, the arrays of its altered copies, [photos, copies, views, …]. `axes`: what the
    roots in `arrays` are on, where they stand in the place of maps (`ssclass.model.heads.bilinear`).
    """

    sha256s: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    groups: tuple[str, ...] = ()
    augmented: dict[str, np.ndarray] = field(default_factory=dict)
    axes: Any = None

    def __len__(self) -> int:
        return len(self.sha256s)

    def take(self, sha256s: Iterable[str]) -> Features:
        """Features of these photos alone, in this order; KeyError names one that is not here."""
        if (wanted := tuple(sha256s)) == self.sha256s:
            return self
        at = {sha256: row for row, sha256 in enumerate(self.sha256s)}
        return self.rows([at[sha256] for sha256 in wanted])

    def rows(self, rows: Sequence[int] | np.ndarray) -> Features:
        """Features of the photos at these row numbers, in this order."""
        index = np.asarray(rows, dtype=np.intp)
        return Features(
            tuple(self.sha256s[row] for row in index),
            {name: array[index] for name, array in self.arrays.items()},
            tuple(self.groups[row] for row in index) if self.groups else (),
            {name: array[index] for name, array in self.augmented.items()},
            self.axes,
        )

    def with_augmented(self, augmented: Sequence[Features]) -> Features:
        """These features with those of altered copies of the same photos beside them; one `Features` a copy."""
        if not augmented:
            return replace(self, augmented={})
        arrays = {name: np.stack([copy.arrays[name] for copy in augmented], axis=1) for name in self.arrays}
        return replace(self, augmented=arrays)


def concat(parts: Sequence[Features]) -> Features:
    """Features of several shards as one."""
    parts = [part for part in parts if len(part)]  # a shard of corrections alone has no photos, hence no arrays
    if len(parts) < 2:
        return parts[0] if parts else Features((), {})
    return Features(
        tuple(sha256 for part in parts for sha256 in part.sha256s),
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        tuple(group for part in parts for group in part.groups),
        {name: np.concatenate([part.augmented[name] for part in parts]) for name in parts[0].augmented},
    )


class FeatureMemo:
    """Features by fingerprint and photos: a local folder first, S3 behind it."""

    def __init__(self, local: Path, store: Store | None) -> None:
        self.local = local
        self.store = store

    @staticmethod
    def key(spec: Spec, photos_digest: str) -> str:
        """The key of the features in the bucket, and their path under the local folder."""
        return f"features/{spec.fingerprint}/{photos_digest}.npz"

    def get(
        self, spec: Spec, photos_digest: str, sha256s: tuple[str, ...], names: Collection[str] | None = None
    ) -> Features | None:
        """The features of exactly these photos; None when they are not remembered or the memory is damaged.

        `names`: the arrays that are wanted, if not all; others are not read.
        """
        key = self.key(spec, photos_digest)
        path = self.local / key
        try:
            with path.open("rb") as file:
                if (found := unpack(file, sha256s, names)) is not None:
                    return found
        except OSError:
            pass
        if self.store is None:
            return None
        try:
            packed = self.store.get(key)
        except StoreError as error:
            log.warning("features are computed again: %s", error)
            return None
        if packed is None or (found := unpack(io.BytesIO(packed), sha256s, names)) is None:
            return None
        write_whole(path, packed)
        return found

    def knows(self, spec: Spec, photos_digest: str) -> bool:
        """Whether features of these photos lie in one of both places, damaged or not."""
        key = self.key(spec, photos_digest)
        if (self.local / key).exists():
            return True
        try:
            return self.store is not None and self.store.head(key) is not None
        except StoreError:
            return False

    def put(self, spec: Spec, photos_digest: str, features: Features) -> None:
        """Keep features in both places. S3 out of reach is only logged: the memo is never a dependency."""
        self._keep(self.key(spec, photos_digest), pack(features))

    def note_seen(self, spec: DerivedSpec) -> None:
        """Keep, before the features, what says which shards they tell of besides their own."""
        key = f"features/{spec.fingerprint}/{SEEN}"
        if not (self.local / key).exists():
            self._keep(key, (json.dumps(sorted(spec.seen)) + "\n").encode())

    def _keep(self, key: str, packed: bytes) -> None:
        write_whole(self.local / key, packed)
        if self.store is not None:
            try:
                self.store.put(key, packed)
            except StoreError as error:
                log.warning("features are not kept for other machines: %s", error)


def shard_features(
    spec: Spec,
    memo: FeatureMemo,
    shard: Shard,
    open_photos: Callable[[], Iterable[tuple[str, bytes]]],
    extractor: Callable[[Any], Extractor] = make_extractor,
    progress: Callable[[int, int], None] = lambda done, total: None,
    names: Collection[str] | None = None,
    extracted: Callable[[Spec, Callable[[int], None]], Extracted | None] | None = None,
) -> Features:
    """Features of a shard's photos in the shard's order, from the memo or else computed and remembered.

    A spec of altered copies has them of training photos only, and under the same key as the photos', so that who
    forgets a photo finds its copies. `open_photos` and `extractor` are called only on a miss; `progress` gets (photos
    done, photos in all). `names`: the arrays that are wanted, where not all are; others may be there too. `extracted`
    is asked first on a miss, with who is to hear of photos done: another way to what `extract` gives, or None.
    """
    sha256s = spec.photos(shard.rows)
    if not sha256s:
        return Features((), {})
    if (found := memo.get(spec, shard.photos_digest, sha256s, names)) is not None:
        progress(len(sha256s), len(sha256s))
        return found
    if isinstance(spec, DerivedSpec):
        of_source = shard_features(spec.source, memo, shard, open_photos, extractor, progress, spec.taken, extracted)
        features = replace(of_source, arrays=spec.derived(of_source.arrays))
        memo.note_seen(spec)
        memo.put(spec, shard.photos_digest, features)
        return features
    if isinstance(spec.network, FeatureSpec) and spec.network.tuned_blocks:  # the frozen part need not run again
        activations = shard_features(spec.frozen_part, memo, shard, open_photos, extractor, progress, None, extracted)
        features = replace(activations, arrays=tuned_extractor(spec.network)(activations.arrays))
        memo.put(spec, shard.photos_digest, features)
        return features

    def report(done: int) -> None:
        progress(done, len(sha256s))

    made = extracted(spec, report) if extracted is not None else None
    if made is None:
        wanted = set(sha256s)
        photos = ((sha256, data) for sha256, data in open_photos() if sha256 in wanted)
        made = extract(spec, photos, extractor(spec.network), report)
    features = Features(*made).take(sha256s)
    memo.put(spec, shard.photos_digest, features)
    return features


def pack(features: Features, *, stored: bool = False) -> bytes:
    """The bytes that `numpy.savez_compressed` would write, made quickly; `stored`: not compressed, for quick reading.

    Four fifths of a map are zeros, and the lowest level of compression finds those too.
    """
    buffer = io.BytesIO()
    arrays = {"sha256s": np.array(features.sha256s, dtype="U64")} | features.arrays
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            plain = zipfile.ZipInfo(f"{name}.npy")  # stored as they are: roots have nothing to find
            as_is = stored or name.endswith(".root")
            with file.open(plain if as_is else plain.filename, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes) -> np.ndarray:
    """The array of an .npy file, read-only, without a copy. Raises anything where it is none.

    Shards have few shapes: their headers, which NumPy reads as Python, are read once.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] != b"\x93NUMPY\x01\x00":
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    shape, fortran, dtype = _header(data[8:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


@lru_cache(256)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(data))


def unpack(packed: IO[bytes], sha256s: tuple[str, ...], names: Collection[str] | None) -> Features | None:
    """Features of exactly these photos, or None: a damaged or foreign file is a miss (zip checks its own sums)."""
    try:
        with zipfile.ZipFile(packed) as file:
            check_members(file, len(sha256s) * MOST_OF_A_PHOTO)
            there = [name.removesuffix(".npy") for name in file.namelist()]
            if names is not None:
                there = [name for name in there if name in names or name == "sha256s"]
            arrays = {name: _array(file.read(f"{name}.npy")) for name in there}
        found = tuple(str(sha256) for sha256 in arrays.pop("sha256s"))
    except Exception:  # NumPy parses a header as Python: a damaged one makes it raise anything
        return None
    whole = found == sha256s and arrays and all(np.shape(array)[:1] == (len(found),) for array in arrays.values())
    return Features(found, arrays) if whole and (names is None or len(arrays) == len(names)) else None
