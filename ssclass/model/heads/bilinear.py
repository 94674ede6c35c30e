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
Multiplications only, so it is the same in numpy here and as Keras layers in the exported model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.heads.kernel import KernelHead

AXES = 64  # 48 to 96 are a little worse on the study's photos, 32 is much (docs/models.md)
CENTRE = 0.6  # standard deviation of the Gaussian, in halves of the view's side
STEPS = 5  # 3 to 12 are alike on the study's photos; the paper has 5
PLACES = 10_000  # from which the axes are found: bounds time and memory
BLOCK = 32  # photos that are in memory as float32 at once: 13 MB of maps at 320 pixels, several times


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes: `axes` float32 [channels, AXES or fewer], orthonormal columns, about `mean` [channels]."""

    mean: np.ndarray
    axes: np.ndarray


class BilinearHead(KernelHead):
    """Kernel ridge regression on the square root of the channels' second moments, over the places of all views."""

    name = "bilinear"
    maps = True
    gamma = 1.0  # 0.7 to 1.4 are alike on the study's photos (docs/models.md)

    def _basis(self, features: Features, train: np.ndarray) -> Axes:
        return find_axes(features.arrays[self.arrays[0]], train, self.seed)

    def _vectors(self, features: Features, rows: np.ndarray, basis: Axes) -> np.ndarray:
        name = self.arrays[0]
        augmented = np.moveaxis(features.augmented[name], 1, 0) if name in features.augmented else ()
        return np.stack([pool(maps, rows, basis) for maps in (features.arrays[name], *augmented)], axis=1)

    def _layers(self, views: Any, basis: Axes) -> Any:
        return pool_layers(views, basis)


def find_axes(maps: np.ndarray, train: np.ndarray, seed: int) -> Axes:
    """Principal axes of the unit roots at a seeded draw of places of the photos `train`.

    maps: [n, views, h, w, channels].
    """
    from scipy.linalg import eigh

    places = maps.reshape(len(maps), -1, maps.shape[-1])
    count = places.shape[1]  # places a photo
    drawn = np.arange(len(train) * count)
    if len(drawn) > PLACES:
        drawn = np.sort(np.random.default_rng(seed).choice(len(drawn), PLACES, replace=False))
    roots = _roots(places[train[drawn // count], drawn % count])
    mean = roots.mean(axis=0)
    roots -= mean
    channels = len(mean)
    first = max(0, channels - AXES)
    _, axes = eigh(roots.T @ roots, subset_by_index=[first, channels - 1])
    return Axes(mean, np.ascontiguousarray(axes, dtype=np.float32))


def pool(maps: np.ndarray, rows: np.ndarray, axes: Axes) -> np.ndarray:
    """Pool the photos `rows` of maps [photos, views, h, w, channels] to z: unit rows, float64 [n, AXES * AXES]."""
    weights = np.sqrt(place_weights(*maps.shape[1:4]))[:, None]
    found = []
    for at in range(0, len(rows), BLOCK):
        block = maps[rows[at : at + BLOCK]]
        roots = _roots(block.reshape(len(block), -1, block.shape[-1]))
        y = (roots @ axes.axes - axes.mean @ axes.axes) * weights
        y /= np.maximum(np.linalg.norm(y, axis=(1, 2), keepdims=True), 1e-6)  # then the trace of S is 1
        root = _square_root(y.transpose(0, 2, 1) @ y).reshape(len(block), -1).astype(np.float64)
        found.append(root / np.maximum(np.linalg.norm(root, axis=1, keepdims=True), 1e-12))
    return np.concatenate(found)


def pool_layers(views: Any, axes: Axes) -> Any:
    """Pool a Keras tensor [n, views, h, w, channels] to z, [n, AXES * AXES], as :func:`pool` does, by Keras layers."""
    layers = import_keras().layers
    # What `keras.ops.sqrt` makes, under a fixed name: the saved bytes must not depend on what was built before.
    from keras.src.ops.numpy import Sqrt

    weights = place_weights(*views.shape[1:4])
    places, (channels, wide) = len(weights), axes.axes.shape
    active = layers.ReLU(name="not_negative")(layers.Reshape((places, channels), name="places")(views))
    roots = layers.UnitNormalization(name="unit_roots")(Sqrt(name="roots")(active))
    project = layers.Dense(wide, name="axes")
    weigh = layers.EinsumDense("npd,p->npd", (places, wide), name="centre")
    times = layers.Dot((2, 1), name="times")
    step = layers.EinsumDense("nab,bc->nac", (wide, wide), bias_axes="ac", name="step")  # (3 I - x) / 2
    flat = layers.Reshape((places * wide,), name="flat")(weigh(project(roots)))
    y = layers.Reshape((places, wide), name="pairs")(layers.UnitNormalization(name="trace")(flat))
    root = layers.Dot((1, 1), name="together")([y, y])
    inverse = None
    for number in range(STEPS):
        factor = step(root if inverse is None else times([inverse, root]))
        root = times([root, factor])
        if number < STEPS - 1:
            inverse = factor if inverse is None else times([factor, inverse])
    one = np.eye(wide, dtype=np.float32)
    project.set_weights([axes.axes, -axes.mean @ axes.axes])
    weigh.set_weights([np.sqrt(weights)])
    step.set_weights([-0.5 * one, 1.5 * one])
    return layers.UnitNormalization(name="unit")(layers.Flatten(name="root")(root))


def place_weights(views: int, height: int, width: int) -> np.ndarray:
    """The weight w_p of each place of each view, float32 [views * height * width]; their sum is 1."""
    down, across = (np.exp(-(np.linspace(-1, 1, side) ** 2) / (2 * CENTRE**2)) for side in (height, width))
    weights = np.tile(np.outer(down, across).ravel(), views)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


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
