"""Roots of second moments in the place of maps, 4 kB a photo instead of 200: what `bilinear` learns from.

They are on axes that are the same for all photos, so that a photo's are computed once. The axes come from a sample of
the training photos: of at most `SAMPLE` of them, whole shards of the first 125, 250, 500, 1,000, 10,000, 100,000, …, of
which the last that there are of counts. So they are others when the data has doubled, of more than 1,000 photos when it
has grown tenfold, and when a photo of the sample has left the data set. They follow from data set, seed and fingerprint
alone, and are kept on the machine that found them, under ``axes-``, with a ``seen.json`` as below.

Roots are remembered beside other features, under ``pooled-`` and a digest of the fingerprint and of the bits of the
axes. ``seen.json`` beside them names the shards (by their photos digest) whose photos the axes were found from: whoever
forgets one of these photos finds all roots on such axes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.code import code_digest
from ssclass.files import BAD_ZIP, write_whole
from ssclass.model.augmentation import AugmentedSpec
from ssclass.model.features import SEEN, Features
from ssclass.model.folds import on_each_core, one_blas_thread
from ssclass.model.heads.bilinear import BLOCK, Axes, BilinearHead, axes_of, find_axes, pack, pool, root_name
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import DerivedSpec, FeatureSpec, Spec
from ssclass.params import AugmentParams

if TYPE_CHECKING:
    from ssclass.data.shards import Shard
    from ssclass.model.classifier import Classifier, Member

SAMPLE = 1000  # photos that axes are found from; 150 are enough on the study's photos (docs/scale.md)
HALVED = 3  # times, for smaller data sets: no fewer than 125, or all that there are
TENFOLD = 10
PACKING = 1  # part of the fingerprint: change what roots are, and it must go up
PREFIX, FOUND, AXES_FILE = "pooled-", "axes-", "axes.npz"


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

        def roots(rows: np.ndarray) -> np.ndarray:
            return pack(pool(maps, rows, self.axes, arrays.get(place)))

        blocks = [np.arange(at, min(at + BLOCK, len(maps))) for at in range(0, len(maps), BLOCK)]
        return {root_name(name): np.concatenate(list(on_each_core(roots, blocks)))}


def map_names(arrays: Collection[str]) -> tuple[str, str]:
    """The names of the maps among arrays, and of the array of their places, which may not be there."""
    (name,) = (name for name in arrays if name.endswith(".map"))
    return name, f"{name.removesuffix('map')}place"


def sample(shards: Iterable[Shard], train: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """sha256s of the training photos that axes are found from, and the photos digests of their shards.

    `train`: sha256s of all training photos; `shards` in their order.
    """
    first, wanted, met = SAMPLE, set(train), 0
    while first * TENFOLD <= len(wanted):
        first *= TENFOLD
    for _ in range(HALVED):
        first = first // 2 if first > len(wanted) else first
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


def remembered_axes(
    local: Path, source: Spec, seed: int, drawn: Sequence[str], seen: Sequence[str], features: Callable[[], Features]
) -> Axes:
    """The axes of a sample, `drawn`, from this machine's memory in `local`, or else found and remembered there.

    `features` gives the maps of the sample, on a miss only. `seen`: photos digests of the shards that the sample is in.
    """
    said = f"{PACKING} {code_digest()} {source.fingerprint} {seed} {' '.join(drawn)}"
    folder = local / "features" / (FOUND + hashlib.sha256(said.encode()).hexdigest())
    if (axes := _read(folder / AXES_FILE)) is not None:
        return axes
    axes = fixed_axes(features(), seed)
    write_whole(folder / SEEN, json.dumps(sorted(seen)) + "\n")  # first: who forgets a photo finds them by it
    buffer = io.BytesIO()
    mean = np.empty(0) if axes.mean is None else axes.mean
    np.savez(
        buffer, names=np.array(list(axes.shapes)), axes=axes.axes, offset=axes.offset, mean=mean, **_numbered(axes)
    )
    write_whole(folder / AXES_FILE, buffer.getvalue())
    return axes


def _numbered(axes: Axes) -> dict[str, Any]:
    return {str(number): array for number, array in enumerate(axes.shapes.values())}


def _read(path: Path) -> Axes | None:
    """Axes that were remembered; None where there are none, or they are damaged (zip checks its own sums)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            shapes = {str(name): file[str(number)] for number, name in enumerate(file["names"])}
            return Axes(file["axes"], file["offset"], file["mean"], shapes)
    except (OSError, ValueError, KeyError, EOFError, *BAD_ZIP):
        return None


def fixed_axes(features: Features, seed: int) -> Axes:
    """The axes that are found from the maps of a sample; they know the shapes of those.

    One thread does it: roots are remembered under the bits of the axes, which then are those of any number of cores.
    """
    name, place = map_names(features.arrays)
    maps, places = features.arrays[name], features.arrays.get(place)
    with one_blas_thread():
        found = find_axes(maps, np.arange(len(maps)), seed, places)
    shapes = {each: features.arrays[each][:0] for each in (name, place) if each in features.arrays}
    return Axes(found.axes, found.offset, found.mean, shapes)


def asked_of(member: Member, seen: Iterable[str]) -> tuple[Spec, tuple[str, ...] | None]:
    """The spec of the features that a member is asked with, and the names of the arrays that it wants; None: all.

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
