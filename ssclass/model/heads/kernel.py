"""The head `rbf`: kernel ridge regression on unit vectors, penalty and temperature chosen by cross-validation.

A photo's pooled activations m (not negative) become z = sqrt(m) / ||sqrt(m)||: the square root tames the few channels
that are loud (the inner product of two such vectors is the Bhattacharyya coefficient of their activations).
Two photos are alike by k(x, z) = exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), since both have length one.

With targets t = +1 for the own class and -1 for the others, less their mean, and Phi the photos' features in the
space that the landmarks span (Nystroem: Phi = K_nm K_mm^-1/2; all photos are landmarks while there are at most
`LANDMARKS`, and then this is kernel ridge itself), minimise ||Phi w - t||^2 + l2 ||w||^2. How it is solved, for all
penalties and folds at once, is in `ssclass.model.heads.ridge`. A photo's altered copies are rows like it, of weight
1 / (1 + copies) each; they are left out with it, and are no landmarks. Probabilities are softmax(f / temperature), the
temperature being that with the lowest log loss out of fold: it never changes which class wins.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ssclass.errors import BatchError
from ssclass.model.features import Features
from ssclass.model.folds import Fold, grouped_folds
from ssclass.model.head_file import HeadGraph, Tensor
from ssclass.model.heads.base import CrossValidation, Fitted, Head, Tick, path_curves, pooled, tested_rows
from ssclass.model.heads.ridge import GAMMA, L2S, KernelFit, Solved, partition
from ssclass.model.saved_head import SavedHead
from ssclass.params import TrainParams

LANDMARKS = 2000  # bounds memory, time and the model's size: 2,000 x 1,024 floats are 8 MB
OWN_FOLDS = 5  # of a fit that nothing was cross-validated for


class KernelHead(Head):
    """Kernel ridge regression on unit vectors that stand for the photos; subclasses say what the vectors are.

    `gamma`: g of the kernel. Neither Keras nor TensorFlow has a part in it.
    """

    numpy = True
    gamma: ClassVar[float]

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.map" if self.maps else f"{size}.out.mean",)
        self.classes = classes
        self.seed = params.seed
        self._found: Solved | None = None

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Choose penalty and temperature for all folds by the photos out of fold.

        Where blocks were tuned for each fold, and so features are others in each, a fold chooses by its training
        photos, which are then cross-validated themselves; `l2` is the median penalty.
        """
        if partition(folds, len(labels)):
            self._found = self._solved(features, labels, folds, tick)
            return self._found.validation
        found = np.empty((len(labels), self.classes))
        by_l2 = np.empty((len(L2S), len(labels), self.classes))
        chosen = []
        for train, test in folds:
            learnt = features.rows(train)
            inside = self._solved(learnt, labels[train], self._own_folds(learnt, labels[train]), lambda: None)
            z = self._vectors(features, test, inside.basis)[:, 0]
            for number, fit in enumerate(inside.fits()):
                by_l2[number, test] = replace(fit, landmarks=self._landmarks(fit.landmarks)).probabilities(z)
            chosen.append(inside.validation.l2 or 0.0)
            found[test] = by_l2[L2S.index(chosen[-1]), test]
            tick()
        curves = path_curves(L2S, by_l2, labels, tested_rows(folds))
        return CrossValidation.of(found, labels, folds, float(np.median(chosen)), curves)

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit to all rows with the penalty and the temperature of the cross-validation of the same features."""
        solved = self._found
        if solved is None or solved.features is not features or not np.array_equal(solved.labels, labels):
            solved = self._solved(features, labels, self._own_folds(features, labels), lambda: None)
        fit = solved.fit()
        return Fitted(self._model(features, solved.basis, replace(fit, landmarks=self._landmarks(fit.landmarks))))

    def _solved(self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick) -> Solved:
        ready, basis = self._ready(features)

        def vectors(rows: np.ndarray) -> np.ndarray:
            return self._block(ready, rows)

        return Solved.of(vectors, features, labels, folds, self.classes, LANDMARKS, self.seed, self.gamma, basis, tick)

    def _own_folds(self, features: Features, labels: np.ndarray) -> list[Fold]:
        """Folds for a fit that no cross-validation came before; by lot where a class has too few photos for others."""
        classes = [str(number) for number in range(self.classes)]
        try:
            return grouped_folds(labels, features.groups or features.sha256s, classes, OWN_FOLDS, self.seed)
        except BatchError:
            count = min(OWN_FOLDS, len(labels))
            tested = np.random.default_rng(self.seed).permutation(len(labels)) % count
            return [(np.flatnonzero(tested != number), np.flatnonzero(tested == number)) for number in range(count)]

    def _ready(self, features: Features) -> tuple[Features, Any]:
        """Features as `_block` wants them, and the basis of their vectors."""
        return features, None

    def _block(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of some photos and of their copies, float32 [n, 1 + copies, d], without a loop over the rest."""
        return self._vectors(features, rows, None).astype(np.float32)

    def _landmarks(self, z: np.ndarray) -> np.ndarray:
        """Landmarks as the layers have their unit vectors, given as `_block` has them."""
        return z

    @abstractmethod
    def _vectors(self, features: Features, rows: np.ndarray, basis: Any) -> np.ndarray:
        """Unit vectors of the photos `rows` and of their copies, float64 [n, 1 + copies, d]."""

    @abstractmethod
    def _layers(self, graph: HeadGraph, arrays: Mapping[str, np.ndarray], basis: Any) -> Tensor:
        """Add inputs, and the layers that make unit vectors [n, d] of them; `arrays` have the shapes and dtypes."""

    def _model(self, features: Features, basis: Any, fit: KernelFit) -> SavedHead:
        """The fit as a head: layers to unit vectors, Dense exponential (the kernel), Dense softmax."""
        graph = HeadGraph()
        shapes = features.axes.shapes if features.axes is not None else {}
        z = self._layers(graph, {**shapes, **features.arrays}, basis)
        # exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), x and z being of length one
        products = [2 * fit.gamma * fit.landmarks.T, np.full(len(fit.landmarks), -2 * fit.gamma)]
        alike = graph.dense("kernel", z, products, "exponential")
        scores = [fit.weights / fit.temperature, fit.bias / fit.temperature]
        return SavedHead(graph.config("head", graph.dense("probabilities", alike, scores, "softmax")), graph.tensors)


class RbfHead(KernelHead):
    """Kernel ridge regression on the square roots of the pooled features, averaged over views."""

    name = "rbf"
    gamma = GAMMA

    def _vectors(self, features: Features, rows: np.ndarray, basis: None) -> np.ndarray:
        return unit_roots(pooled(features, self.arrays[0], rows))

    def _layers(self, graph: HeadGraph, arrays: Mapping[str, np.ndarray], basis: None) -> Tensor:
        """GAP over views, root, unit length."""
        name = self.arrays[0]
        channels = int(arrays[name].shape[-1])
        views = graph.input(name, (None, channels), str(arrays[name].dtype))
        mean = graph.layer("GlobalAveragePooling1D", "views", views, shape=(None, channels))
        roots = graph.layer("Sqrt", "roots", graph.layer("ReLU", "not_negative", mean))
        return graph.layer("UnitNormalization", "unit", roots)


def unit_roots(mean: np.ndarray) -> np.ndarray:
    """Turn activations [..., d] into z as above, float64 [..., d]; a row of zeros stays one."""
    roots = np.sqrt(np.maximum(mean, 0, dtype=np.float64))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=-1, keepdims=True), 1e-12))
