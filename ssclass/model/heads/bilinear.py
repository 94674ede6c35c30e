"""The head `bilinear`: second-order pooling of a feature map, by the square root of a matrix, and a kernel on it.

The mean over a map says which channels are active, not which of them at the same place. With y_p the (reduced)
activations at place p, that is in S = sum_p w_p y_p y_p' (bilinear pooling: Lin, RoyChowdhury and Maji, ICCV 2015). A
few large eigenvalues drown the rest of S; its square root evens them out (MPN-COV: Li, Xie, Wang and Zuo, ICCV 2017),
so z = S^1/2 / ||S^1/2|| is what the kernel of `ssclass.model.heads.kernel` compares.

y_p: what `unit_roots` makes of the activations at place p, less its mean over the training photos' places, on their
`AXES` first principal axes. w_p: a Gaussian about the centre of the view, where the dish is. The root: S is divided by
its trace, then Newton-Schulz as in iSQRT-COV (Li, Xie, Wang and Gao, CVPR 2018, equation 4),

    T = (3 I - Q Y) / 2,    Y <- Y T,    Q <- T Q,    from Y = S, Q = I,

of which `STEPS` steps are enough: eigenvalues below a thousandth of the trace come out smaller than their root.
Multiplications only, so it is the same in NumPy here and as layers in the exported model.

The map of a photo takes 200 kB, its root 4: of a data set, roots on axes that are the same for all photos are
remembered in the place of maps (`ssclass.model.pooled`). They are ``320.out.root``, float16
[photos, AXES * (AXES + 1) / 2], see :func:`pack`. So photos that a fold tests have a part in the axes, though their
labels have none. On the study's photos, six times, cross-validation says .9564 +- .0060 with such axes, and .9570 +-
.0063 where each fold finds its own; the log losses are .113 and .114.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from ssclass.model.features import Features
from ssclass.model.folds import on_each_core, one_blas_thread
from ssclass.model.head_file import HeadGraph, Tensor
from ssclass.model.heads.kernel import KernelHead

AXES = 64  # 48 to 96 are a little worse on the study's photos, 32 is much (docs/models.md)
CENTRE = 0.6  # standard deviation of the Gaussian, in halves of the view's side
STEPS = 5  # 3 to 12 are alike on the study's photos; the paper has 5
PLACES = 10_000  # from which the axes are found: bounds time and memory
_FALL = -1 / (4 * CENTRE**2)  # of the logarithm of the root of a weight, with the square of the distance
ANSWERED = 1024  # photos that are answered from their roots at once
BLOCK = 32  # photos that are in memory as float32 at once: 13 MB of maps at 320 pixels, several times


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes: `axes` float32 [channels, AXES or fewer], orthonormal columns; `offset`: their mean along them.

    `mean` [channels] is that about which they were found; of the axes of a fitted head there is none. `shapes`: arrays
    of no photo, whose dtypes and shapes are those of the maps that they are for.
    """

    axes: np.ndarray
    offset: np.ndarray
    mean: np.ndarray | None = None
    shapes: Mapping[str, np.ndarray] = field(default_factory=dict)


class BilinearHead(KernelHead):
    """Kernel ridge regression on the square root of the channels' second moments, over the places of all views."""

    name = "bilinear"
    maps = True
    moments = ()
    gamma = 1.0  # 0.7 to 1.4 are alike on the study's photos (docs/models.md)

    @property
    def _place(self) -> str:
        """The name of the array that says where the places of a map are, where photos keep their shape."""
        return self.arrays[0].removesuffix("map") + "place"

    def _basis(self, features: Features, train: np.ndarray) -> Axes:
        return find_axes(features.arrays[self.arrays[0]], train, self.seed, features.arrays.get(self._place))

    @property
    def root(self) -> str:
        """The name of the array of remembered roots."""
        return root_name(self.arrays[0])

    def _ready(self, features: Features) -> tuple[Features, Any]:
        """Roots in the place of maps, and the axes that they are on: those that were remembered, or made here.

        Those made here are of all photos, and folds share them: axes are found without labels.
        """
        if features.axes is not None:
            return features, features.axes
        everything = np.arange(len(features))
        with one_blas_thread():
            axes = self._basis(features, everything)
        blocks = [everything[at : at + BLOCK] for at in range(0, len(features), BLOCK)]
        packed = np.concatenate(list(on_each_core(lambda rows: self._packed(features, rows, axes), blocks)))
        copies = {self.root: packed[:, 1:]} if packed.shape[1] > 1 else {}
        return replace(features, arrays=features.arrays | {self.root: packed[:, 0]}, augmented=copies), axes

    def _packed(self, features: Features, rows: np.ndarray, axes: Axes) -> np.ndarray:
        """Packed roots of photos and of their copies, float16 [n, 1 + copies, AXES * (AXES + 1) / 2]."""
        return pack(self._vectors(features, rows, axes))

    def _block(self, features: Features, rows: np.ndarray) -> np.ndarray:
        roots = features.arrays[self.root][rows][:, None]
        if self.root in features.augmented:
            roots = np.concatenate([roots, features.augmented[self.root][rows]], axis=1)
        return unit(roots)

    def _landmarks(self, z: np.ndarray) -> np.ndarray:
        return unpack(z)

    def _vectors(self, features: Features, rows: np.ndarray, basis: Axes) -> np.ndarray:
        def versions(name: str) -> list[np.ndarray]:
            """The array of the photos, and of each of their copies."""
            copies = np.moveaxis(features.augmented[name], 1, 0) if name in features.augmented else ()
            return [features.arrays[name], *copies]

        maps = versions(self.arrays[0])
        places = versions(self._place) if self._place in features.arrays else [None] * len(maps)
        return np.stack([pool(one, rows, basis, at) for one, at in zip(maps, places, strict=True)], axis=1)

    def _layers(self, graph: HeadGraph, arrays: Mapping[str, np.ndarray], basis: Axes) -> Tensor:
        return pool_layers(graph, arrays, self.arrays[0], basis, self._place if self._place in arrays else None)


def find_axes(maps: np.ndarray, train: np.ndarray, seed: int, place: np.ndarray | None = None) -> Axes:
    """Principal axes of the unit roots at a seeded draw of places of the photos `train`.

    maps: [n, views, h, w, channels], or, of photos in their own shape, [n, views, places, channels] with `place`
    [n, views, places, 2].
    """
    from scipy.linalg import eigh

    places = maps.reshape(len(maps), -1, maps.shape[-1])
    count = places.shape[1]  # places a photo
    drawn = np.arange(len(train) * count)
    if place is not None:  # those that only fill up the map are no places
        drawn = np.flatnonzero(inside(place[train]).reshape(-1))
    if len(drawn) > PLACES:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, PLACES, replace=False))
    roots = _roots(places[train[drawn // count], drawn % count])
    mean = roots.mean(axis=0)
    roots -= mean
    channels = len(mean)
    first = max(0, channels - AXES)
    _, axes = eigh(roots.T @ roots, subset_by_index=[first, channels - 1])
    axes = np.ascontiguousarray(axes, dtype=np.float32)
    return Axes(axes, mean @ axes, mean)


def pool(maps: np.ndarray, rows: np.ndarray, axes: Axes, place: np.ndarray | None = None) -> np.ndarray:
    """Pool the photos `rows` of maps to z: unit rows, float64 [n, AXES * AXES].

    maps: [photos, views, h, w, channels], or [photos, views, places, channels] with `place` [photos, views, places, 2].
    """
    fixed = None if place is not None else np.sqrt(place_weights(*maps.shape[1:4]))[:, None]
    found = []
    for at in range(0, len(rows), BLOCK):
        block = maps[rows[at : at + BLOCK]]
        roots = _roots(block.reshape(len(block), -1, block.shape[-1]))
        weights = fixed if place is None else _root_weights(place[rows[at : at + BLOCK]])
        y = (roots @ axes.axes - axes.offset) * weights
        y /= np.maximum(np.linalg.norm(y, axis=(1, 2), keepdims=True), 1e-6)  # then the trace of S is 1
        root = _square_root(y.transpose(0, 2, 1) @ y).reshape(len(block), -1).astype(np.float64)
        found.append(root / np.maximum(np.linalg.norm(root, axis=1, keepdims=True), 1e-12))
    return np.concatenate(found)


def pool_layers(
    graph: HeadGraph, arrays: Mapping[str, np.ndarray], name: str, axes: Axes, place: str | None = None
) -> Tensor:
    """Pool the maps of an array to z, [n, AXES * AXES], as :func:`pool` does, by layers; `place` names their places.

    `arrays`: any with the shapes and dtypes of these.
    """
    shape = arrays[name].shape[1:] if place is None else (arrays[name].shape[1], None, arrays[name].shape[-1])
    channels, wide = axes.axes.shape
    places = None if place is not None else math.prod(arrays[name].shape[1:4])
    one = np.eye(wide, dtype=np.float32)
    reshape = {"target_shape": [places or -1, channels]}
    seen = graph.input(name, shape, str(arrays[name].dtype))
    listed = graph.layer("Reshape", "places", seen, shape=(None, places, channels), **reshape)
    active = graph.layer("ReLU", "not_negative", listed)
    if place is None:
        weights = [np.sqrt(place_weights(*arrays[name].shape[1:4]))]
        unit_roots = graph.layer("UnitNormalization", "unit_roots", graph.layer("Sqrt", "roots", active))
        along = graph.dense("axes", unit_roots, [axes.axes, -axes.offset])
        settings = {"output_shape": [places, wide], "equation": "npd,p->npd"}
        weighed = _einsum(graph, "centre", along, weights, None, **settings)
    else:
        # In the order of their depth, see `ssclass.model.head_file`.
        at = graph.input(place, (arrays[place].shape[1], None, 2), str(arrays[place].dtype))
        roots = graph.layer("Sqrt", "roots", active)
        where = graph.layer("Reshape", "where", at, shape=(None, None, 2), target_shape=[-1, 2])
        unit_roots = graph.layer("UnitNormalization", "unit_roots", roots)
        distance = graph.layer("Square", "distance", where)
        along = graph.dense("axes", unit_roots, [axes.axes, -axes.offset])
        centre = graph.dense("centre", distance, [np.full((2, 1), _FALL)], "exponential")
        weighed = graph.layer("Multiply", "weighed", along, centre)
    width = places * wide if places else None
    flat = graph.layer("Reshape", "flat", weighed, shape=(None, width), target_shape=[width or -1])
    trace = graph.layer("UnitNormalization", "trace", flat)
    y = graph.layer("Reshape", "pairs", trace, shape=(None, places, wide), target_shape=[places or -1, wide])
    square = (None, wide, wide)
    root = graph.layer("Dot", "together", y, y, shape=square, axes=[1, 1])

    def step(x: Tensor) -> Tensor:  # (3 I - x) / 2
        settings = {"output_shape": [wide, wide], "equation": "nab,bc->nac"}
        return _einsum(graph, "step", x, [-0.5 * one, 1.5 * one], "ac", **settings)

    def times(x: Tensor, y: Tensor) -> Tensor:
        return graph.layer("Dot", "times", x, y, axes=[2, 1])

    inverse = None
    for number in range(STEPS):
        factor = step(root if inverse is None else times(inverse, root))
        root = times(root, factor)
        if number < STEPS - 1:
            inverse = factor if inverse is None else times(factor, inverse)
    z = graph.layer("Flatten", "root", root, shape=(None, wide * wide))
    return graph.layer("UnitNormalization", "unit", z)


def _einsum(
    graph: HeadGraph, name: str, given: Tensor, weights: list[np.ndarray], bias_axes: str | None, **settings: Any
) -> Tensor:
    """Call an EinsumDense layer, which leaves the shape as it is."""
    return graph.layer(
        "EinsumDense", name, given, weights=weights, activation="linear", bias_axes=bias_axes, **settings
    )


def axes_of(model: Any) -> Axes | None:
    """The axes of a fitted head; None where it has none under the name of :func:`pool_layers`."""
    try:
        axes, bias = model.get_layer("axes").get_weights()
    except ValueError:
        return None
    return Axes(axes, -bias)


def answers(model: Any, roots: np.ndarray) -> np.ndarray:
    """Probabilities float64 [n, classes] that a fitted head gives photos with these packed roots."""
    from scipy.special import softmax

    alike, offset = model.get_layer("kernel").get_weights()
    weights, bias = model.get_layer("probabilities").get_weights()
    alike = pack(alike.T, np.float32).T
    parts = [
        np.exp(unit(roots[at : at + ANSWERED]) @ alike + offset) @ weights + bias
        for at in range(0, len(roots), ANSWERED)
    ]
    return np.asarray(softmax(np.concatenate(parts or [np.empty((0, len(bias)))]).astype(np.float64), axis=1))


def root_name(name: str) -> str:
    """The name of the array of roots of the maps in an array with a name: ``320.out.root`` of ``320.out.map``."""
    return name.removesuffix("map") + "root"


def pack(z: np.ndarray, dtype: type = np.float16) -> np.ndarray:
    """Flattened symmetric matrices [..., d * d] as their diagonals and what is above: [..., d * (d + 1) / 2].

    What is above is times the root of 2, so that products of two of them are what they were.
    """
    side = math.isqrt(z.shape[-1])
    matrices = z.reshape(*z.shape[:-1], side, side)
    down, across, scale = _triangle(side)
    return np.asarray((matrices[..., down, across] + matrices[..., across, down]) * (scale / 2), dtype=dtype)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack`, float32 [n, d * d]."""
    side = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    down, across, scale = _triangle(side)
    z = np.empty((len(packed), side, side), np.float32)
    z[:, down, across] = z[:, across, down] = packed / scale
    return z.reshape(len(packed), -1)


def unit(packed: np.ndarray) -> np.ndarray:
    """Packed roots [..., d] at length one, float32: half precision leaves them a few parts of ten thousand off."""
    z = packed.astype(np.float32)
    z /= np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return z


@cache
def _triangle(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of a matrix's diagonal and of what is above it, and the scale of each."""
    down, across = np.triu_indices(side)
    return down, across, np.where(down == across, 1, math.sqrt(2)).astype(np.float32)


def place_weights(views: int, height: int, width: int) -> np.ndarray:
    """The weight w_p of each place of each view, float32 [views * height * width]; their sum is 1."""
    down, across = (np.exp(-(np.linspace(-1, 1, side) ** 2) / (2 * CENTRE**2)) for side in (height, width))
    weights = np.tile(np.outer(down, across).ravel(), views)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def inside(place: np.ndarray) -> np.ndarray:
    """Whether places [..., 2] are of the photo: the others only fill up its map."""
    return np.asarray((np.abs(place) <= 1).all(axis=-1))


def _root_weights(place: np.ndarray) -> np.ndarray:
    """The root of the weight of each place [n, views, places, 2], float32 [n, views * places, 1].

    Their sum is not 1, which the length of what they weigh makes up for.
    """
    roots = np.exp(_FALL * np.square(place).sum(axis=-1))
    return np.asarray(roots.reshape(len(place), -1, 1), dtype=np.float32)


def _roots(activations: np.ndarray) -> np.ndarray:
    """Unit roots as in `ssclass.model.heads.kernel`, but in float32, which is enough here and half the memory."""
    roots = np.sqrt(np.maximum(activations, 0, dtype=np.float32))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=-1, keepdims=True), 1e-6))


def _square_root(s: np.ndarray) -> np.ndarray:
    """Square roots of matrices [n, d, d] of trace 1, by Newton-Schulz."""
    one = np.eye(s.shape[-1], dtype=s.dtype)
    root, inverse = s, one
    for _ in range(STEPS):
        factor = 1.5 * one - 0.5 * (inverse @ root)
        root, inverse = root @ factor, factor @ inverse
    return np.asarray(root)
