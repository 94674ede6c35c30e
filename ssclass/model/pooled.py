"""Roots of second moments in the place of maps, 4 kB a photo instead of 200: what `bilinear` learns from many photos.

They are on axes that are the same for all photos, so that a photo's are computed once. The axes come from a sample of
the training photos: of `SAMPLE` of them, whole shards of the first 1,000, 10,000, 100,000, …, of which the last that
there are of counts. So they are others when the data has grown tenfold, and when a photo of the sample has left the
data set. They follow from data set, seed and fingerprint alone.

Roots are remembered beside other features, under ``pooled-`` and a digest of the fingerprint and of the bits of the
axes. ``seen.json`` beside them names the shards (by their photos digest) whose photos the axes were found from: whoever
forgets one of these photos finds all roots on such axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ssclass.model.augmentation import AugmentedSpec
from ssclass.model.features import Features
from ssclass.model.heads import kernel
from ssclass.model.heads.bilinear import Axes, BilinearHead, axes_of, find_axes, pack, pool, root_name
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import DerivedSpec, FeatureSpec, Spec
from ssclass.params import AugmentParams

if TYPE_CHECKING:
    from ssclass.data.shards import Shard
    from ssclass.model.classifier import Classifier, Member

SAMPLE = 1000  # photos that axes are found from; 150 are enough on the study's photos (docs/scale.md)
TENFOLD = 10
PACKING = 1  # part of the fingerprint: change what roots are, and it must go up
PREFIX = "pooled-"


@dataclass(frozen=True)
class PooledSpec(DerivedSpec):
    """What the roots of photos depend on: `source`, the spec of their maps, and the axes, by their digest.

    `seen`: photos digests of the shards that the axes were found from.
    """

    source: Spec
    digest: str
    axes: Axes = field(compare=False)
    seen: tuple[str, ...] = field(compare=False)

    @classmethod
    def of(cls, source: Spec, axes: Axes, seen: Iterable[str]) -> PooledSpec:
        """The spec of roots on these axes."""
        digest = hashlib.sha256(axes.axes.tobytes() + axes.offset.tobytes())
        return cls(source, digest.hexdigest(), axes, tuple(seen))

    @property
    def fingerprint(self) -> str:
        """``pooled-`` and 64 hex digits."""
        about = f"{self.source.fingerprint} {self.digest} {PACKING}"
        return PREFIX + hashlib.sha256(about.encode()).hexdigest()

    @property
    def taken(self) -> tuple[str, ...] | None:
        """The names of the arrays that roots are made of: maps, and their places where there are some."""
        names = tuple(self.axes.shapes)
        return names or None

    def derived(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The roots of photos, ``320.out.root``, given the arrays of `source`."""
        name, place = map_names(arrays)
        maps = arrays[name]
        return {root_name(name): pack(pool(maps, np.arange(len(maps)), self.axes, arrays.get(place)))}


def map_names(arrays: Collection[str]) -> tuple[str, str]:
    """The names of the maps among arrays, and of the array of their places, which may not be there."""
    (name,) = (name for name in arrays if name.endswith(".map"))
    return name, f"{name.removesuffix('map')}place"


def are_many(photos: int, copies: int = 0) -> bool:
    """Whether so many training photos, each with so many copies, are more than maps are held of."""
    return photos * (1 + copies) > kernel.LANDMARKS


def sample(shards: Iterable[Shard], train: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """sha256s of the training photos that axes are found from, and the photos digests of their shards.

    `train`: sha256s of all training photos; `shards` in their order.
    """
    first, wanted, met = SAMPLE, set(train), 0
    while first * TENFOLD <= len(wanted):
        first *= TENFOLD
    begun: list[tuple[str, list[str]]] = []
    for shard in shards:
        if here := sorted(row.sha256 for row in shard.rows if row.sha256 in wanted):
            begun.append((shard.photos_digest, here))
            met += len(here)
        if met >= first:
            break
    photos: list[str] = []
    seen: list[str] = []
    for digest, here in sorted(begun):
        if len(photos) < SAMPLE:
            photos += here[: SAMPLE - len(photos)]
            seen.append(digest)
    return tuple(photos), tuple(seen)


def fixed_axes(features: Features, seed: int) -> Axes:
    """The axes that are found from the maps of a sample; they know the shapes of those.

    One thread does it: roots are remembered under the bits of the axes, which then are those of any number of cores.
    """
    from threadpoolctl import threadpool_limits

    name, place = map_names(features.arrays)
    maps, places = features.arrays[name], features.arrays.get(place)
    with threadpool_limits(1, user_api="blas"):
        found = find_axes(maps, np.arange(len(maps)), seed, places)
    shapes = {each: features.arrays[each][:0] for each in (name, place) if each in features.arrays}
    return Axes(found.axes, found.offset, found.mean, shapes)


def asked_of(member: Member, seen: Iterable[str]) -> tuple[Spec, tuple[str, ...] | None]:
    """The spec of the features that a member is asked with where there are many photos, and the arrays; None: all.

    Of a head `bilinear` these are roots on its own axes. `seen`: the shards that it may have learnt from.
    """
    names = tuple(member.head.input)
    axes = axes_of(member.head) if member.head_name == BilinearHead.name else None
    if axes is None:
        return member.spec, names
    axes = replace(axes, shapes={name: np.empty(0) for name in names})
    return PooledSpec.of(member.spec, axes, seen), None


def pooled_fingerprints(classifier: Classifier, augment: AugmentParams) -> list[str]:
    """Fingerprints of the roots that a classifier's heads learnt from, those of altered copies included."""
    specs = [spec for spec, _ in (asked_of(member, ()) for member in classifier.members)]
    pooled = [spec for spec in specs if isinstance(spec, PooledSpec)]
    copies = [
        replace(spec, source=AugmentedSpec(spec.network, augment, number))
        for spec in pooled
        for number in range(augment.copies)
        if isinstance(spec.network, FeatureSpec)
    ]
    return [spec.fingerprint for spec in (*pooled, *copies)]


def lean_arrays(spec: FeatureSpec, heads: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The names of the arrays of maps that heads need roots of, and of the others that they need.

    None where roots do not do: blocks are tuned, or a head has a weight for each place.
    """
    size = max(spec.sizes)
    if spec.before_blocks or any(HEADS[name].maps and name != BilinearHead.name for name in heads):
        return None
    maps = (f"{size}.out.map", *((f"{size}.out.place",) if spec.own_shape else ()))
    others = {f"{size}.out.{moment}" for name in heads for moment in HEADS[name].moments}
    return maps if BilinearHead.name in heads else (), tuple(sorted(others))
