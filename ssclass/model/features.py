"""What the frozen backbone says of a photo: computed once, remembered by content.

A photo's features depend on its bytes, the decode, the backbone's weights and the views, and on nothing else. All
but the bytes are in :attr:`FeatureSpec.fingerprint`; the bytes are in the shard's photos digest. The memo under
those two keys can be deleted at any time: that costs time and changes nothing.

Arrays are named ``<size>.<layer>.<moment>``: ``224.out.mean`` is the spatial mean over the backbone's last feature map
for views of 224 x 224 pixels, ``square`` the spatial mean of its squares. Each is float32 [photos, views, channels]: a
photo, or five crops of it (corners and centre, each three quarters of its width and height), then the mirror images.
``224.out.map`` is the map itself, float16 [photos, views, h, w, channels], made of the largest size for the heads that
need it: of MobileNet 100 kB a view at 224, 200 kB at 320, and a quarter of that in the memo.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ssclass.data.images import DECODE_VERSION, decode
from ssclass.errors import ParamsError, StoreError
from ssclass.files import write_whole
from ssclass.model.backbones import find_backbone
from ssclass.model.extraction import Extractor, extract, make_extractor, tail_extractor
from ssclass.model.weights import Tail, load_weights
from ssclass.params import FeatureParams
from ssclass.store import Store

if TYPE_CHECKING:
    from ssclass.data.shards import Row, Shard

LAYOUT_VERSION = 2  # of the arrays and of the graph between decode and arrays

CROP = 0.75  # a crop's share of the photo's width and height

Progress = Callable[[int, int], None]  # (photos done, photos in all)
log = logging.getLogger(__name__)


class PhotoSpec:
    """What all specs have in common that are of the photos as they are, not of altered copies."""

    name = ""
    """For a person, after "features of …"."""

    @property
    def network(self) -> Self:
        """What the pixels go through."""
        return self

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos of a shard that have such features: all of them."""
        return tuple(row.sha256 for row in rows)


@dataclass(frozen=True)
class FeatureSpec(PhotoSpec):
    """Everything but the photos that decides what the features are.

    `maps`: with the feature maps themselves. `photo`: side of the decoded photo, pixels, where it is larger than the
    views want, as another member of an ensemble wants it. `tail`: the last blocks, where they are not the published
    ones. `cut`: instead of features, the activations before so many last blocks, ``224.cut``, float16 [photos, views,
    h, w, channels].
    """

    backbone: str
    weights_sha256: str
    sizes: tuple[int, ...]
    flip: bool
    crops: str = "none"
    maps: bool = False
    photo: int | None = None
    decode_version: int = DECODE_VERSION
    cut: int = 0
    tail: Tail | None = None

    def about(self) -> dict[str, Any]:
        """JSON-able; of the tail its digest. What is not tuned has nothing to say of it."""
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("cut", "tail")}
        if self.cut:
            told |= {"cut": self.cut, "maps": False}  # they are the same whatever is made of them after it
        if self.tail:
            told["tail"] = {"blocks": self.tail.blocks, "sha256": self.tail.sha256}
        return told

    @property
    def fingerprint(self) -> str:
        """sha256 (hex, 64) of this spec."""
        text = json.dumps(self.about() | {"layout": LAYOUT_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def blocks(self) -> int:
        """How many last blocks are cut off, or have weights of their own."""
        return self.tail.blocks if self.tail else self.cut

    @property
    def before_tail(self) -> FeatureSpec:
        """The spec of the activations that the tail takes."""
        return replace(self, cut=self.blocks, tail=None)

    @property
    def size(self) -> int:
        """Side of the decoded photo, pixels; smaller ones and crops are made from it inside the network."""
        return self.photo or self.canvas(max(self.sizes))

    def canvas(self, size: int) -> int:
        """Side of the photo, pixels, whose views have `size`."""
        return round(size / CROP) if self.crops == "five" else size

    def corners(self, size: int) -> tuple[tuple[int, int], ...]:
        """(top, left) of each view of `size` in its canvas, pixels."""
        free = self.canvas(size) - size
        if not free:
            return ((0, 0),)
        return (0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)

    @property
    def views(self) -> int:
        """Views of each photo."""
        return len(self.corners(max(self.sizes))) * (2 if self.flip else 1)

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [size, size, 3]; raises Refused."""
        return decode(data, self.size)

    def extractor(self) -> Extractor:
        """What makes them of pixels."""
        return make_extractor(self)


class Spec(Protocol):
    """What the memo needs of a spec: a `FeatureSpec`, one of copies, or what takes its place in an adopted model."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""
        ...

    @property
    def name(self) -> str:
        """For a person, after "features of …"."""
        ...

    @property
    def network(self) -> Any:
        """What the pixels go through: has `extractor()` and `tail`."""
        ...

    @property
    def before_tail(self) -> Spec:
        """The spec of the activations that the tail of a network takes."""
        ...

    def pixels(self, sha256: str, data: bytes) -> np.ndarray:
        """A photo as the network wants it: uint8 [size, size, 3]; raises Refused."""
        ...

    def photos(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """sha256s of the photos of a shard that have such features."""
        ...


def feature_spec(params: FeatureParams, *, maps: bool = False, cut: int = 0) -> FeatureSpec:
    """The spec that params.yaml asks for; fetches the backbone's weights when they are not cached yet.

    ParamsError for views that are smaller than the backbone can take.
    """
    backbone = find_backbone(params.backbone)
    sizes = params.sizes or (backbone.size,)
    if min(sizes) < backbone.min_size:
        raise ParamsError(
            f"features.sizes: {min(sizes)} pixels; {backbone.name} needs {backbone.min_size} at least, and wants "
            f"{backbone.size}"
        )
    weights = load_weights(backbone.name)
    return FeatureSpec(backbone.name, weights.sha256, sizes, params.flip, params.crops, maps, cut=cut)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of some photos: `arrays` [photos, views, …] as above, rows in the order of `sha256s`.

    What is learnt from has more: `groups`, the near-duplicate group of each photo (without, each is its own), and
    `copies`, the arrays of its altered copies, [photos, copies, views, …].
    """

    sha256s: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    groups: tuple[str, ...] = ()
    copies: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sha256s)

    def take(self, sha256s: Iterable[str]) -> Features:
        """The rows of these photos, in this order; KeyError names one that is not here."""
        if (wanted := tuple(sha256s)) == self.sha256s:
            return self
        at = {sha256: row for row, sha256 in enumerate(self.sha256s)}
        return self.rows([at[sha256] for sha256 in wanted])

    def rows(self, rows: Sequence[int] | np.ndarray) -> Features:
        """The rows of these numbers, in this order."""
        index = np.asarray(rows, dtype=np.intp)
        return Features(
            tuple(self.sha256s[row] for row in index),
            {name: array[index] for name, array in self.arrays.items()},
            tuple(self.groups[row] for row in index) if self.groups else (),
            {name: array[index] for name, array in self.copies.items()},
        )

    def with_copies(self, copies: Sequence[Features]) -> Features:
        """The same with the features of copies of the same photos, one a copy."""
        arrays = {name: np.stack([each.arrays[name] for each in copies], axis=1) for name in self.arrays if copies}
        return replace(self, copies=arrays)


def concat(parts: Sequence[Features]) -> Features:
    """Features of several shards as one."""
    parts = [part for part in parts if len(part)]  # a shard of corrections alone has no photos, hence no arrays
    if len(parts) < 2:
        return parts[0] if parts else Features((), {})
    return Features(
        tuple(sha256 for part in parts for sha256 in part.sha256s),
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        tuple(group for part in parts for group in part.groups),
        {name: np.concatenate([part.copies[name] for part in parts]) for name in parts[0].copies},
    )


class FeatureMemo:
    """Features by fingerprint and photos: a local folder first, S3 behind it."""

    def __init__(self, local: Path, store: Store | None) -> None:
        self.local = local
        self.store = store

    @staticmethod
    def key(spec: Spec, photos_digest: str) -> str:
        """Where it lies under the bucket, and under the local folder."""
        return f"features/{spec.fingerprint}/{photos_digest}.npz"

    def get(self, spec: Spec, photos_digest: str, sha256s: tuple[str, ...]) -> Features | None:
        """The features of exactly these photos; None when they are not remembered or the memory is damaged."""
        key = self.key(spec, photos_digest)
        path = self.local / key
        try:
            if (found := _unpack(path.read_bytes(), sha256s)) is not None:
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
        if packed is None or (found := _unpack(packed, sha256s)) is None:
            return None
        write_whole(path, packed)
        return found

    def put(self, spec: Spec, photos_digest: str, features: Features) -> None:
        """Remember in both places. S3 out of reach is only logged: the memo is never a dependency."""
        key = self.key(spec, photos_digest)
        packed = _pack(features)
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
    extractor: Callable[[Any], Extractor] = lambda network: network.extractor(),
    progress: Progress = lambda done, total: None,
) -> Features:
    """Features of a shard's photos in the shard's order, from the memo or else computed and remembered.

    Of copies only those of its training photos, under the same key: who forgets a photo finds them by it.
    `open_photos` and `extractor` are called only on a miss.
    """
    sha256s = spec.photos(shard.rows)
    if not sha256s:
        return Features((), {})
    if (found := memo.get(spec, shard.photos_digest, sha256s)) is not None:
        progress(len(sha256s), len(sha256s))
        return found
    if spec.network.tail:  # the frozen part of the network need not run again
        cuts = shard_features(spec.before_tail, memo, shard, open_photos, extractor, progress)
        features = replace(cuts, arrays=tail_extractor(spec.network)(cuts.arrays))
        memo.put(spec, shard.photos_digest, features)
        return features
    wanted = set(sha256s)
    photos = ((sha256, data) for sha256, data in open_photos() if sha256 in wanted)
    found_sha256s, arrays = extract(spec, photos, extractor(spec.network), lambda done: progress(done, len(sha256s)))
    features = Features(found_sha256s, arrays).take(sha256s)
    memo.put(spec, shard.photos_digest, features)
    return features


def _pack(features: Features) -> bytes:
    """What `numpy.savez_compressed` writes, but quickly: four fifths of a map are zeros, and any level finds those."""
    buffer = io.BytesIO()
    arrays = {"sha256s": np.array(features.sha256s, dtype="U64")} | features.arrays
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _unpack(packed: bytes, sha256s: tuple[str, ...]) -> Features | None:
    """Features of exactly these photos, or None: a damaged or foreign file is a miss (zip checks its own sums)."""
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = tuple(str(sha256) for sha256 in arrays.pop("sha256s"))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    whole = found == sha256s and arrays and all(len(array) == len(found) for array in arrays.values())
    return Features(found, arrays) if whole else None
