"""The head `rbf`: kernel ridge regression on unit vectors, penalty and temperature chosen by leave-one-out.

A photo's pooled activations m (not negative) become z = sqrt(m) / ||sqrt(m)||: the square root tames the few channels
that are loud (the inner product of two such vectors is the Bhattacharyya coefficient of their activations).
Two photos are alike by k(x, z) = exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), since both have length one.

With targets t = +1 for the own class and -1 for the others, less their mean, and Phi the photos' features in the
space that the landmarks span (Nystroem: Phi = K_nm K_mm^-1/2; all photos are landmarks while there are at most
`LANDMARKS`, and then this is kernel ridge itself), minimise ||Phi w - t||^2 + l2 ||w||^2. The leave-one-out
residual is e_i = (t_i - f_i) / (1 - h_i), h the diagonal of the hat matrix (Allen's PRESS), so every penalty l2
is tried in closed form. A photo's altered copies are rows like it, of weight 1 / (1 + copies) each; it is left out with
them, which makes (t_i - f_i) and (1 - h_i) a vector and a matrix a photo, of which the photo's own entry counts. They
are no landmarks. Probabilities are softmax(f / temperature), the temperature being that with the lowest
leave-one-out log loss: it never changes which class wins.

Above `LANDMARKS` photos and copies, the folds of the cross-validation take the place of leave-one-out, and no more than
a block of photos is in memory (`ssclass.model.heads.ridge`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ssclass.model.features import Features
from ssclass.model.folds import Fold, grouped_folds, side_by_side
from ssclass.model.head_file import HeadGraph, Tensor
from ssclass.model.heads.base import CrossValidation, Fitted, Head, Tick, path_curves, pooled, tested_rows
from ssclass.model.heads.ridge import GAMMA, L2S, KernelFit, Many, kernel, partition, temperature
from ssclass.model.saved_head import SavedHead
from ssclass.params import TrainParams

LANDMARKS = 2000  # bounds memory, time and the model's size: 2,000 x 1,024 floats are 8 MB
OWN_FOLDS = 5  # of a fit to many photos that nothing was cross-validated for
TINY = 1e-9  # of the largest eigenvalue: directions below it are rounding (copies of one photo, say)


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
        self._found: Many | None = None

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Choose penalty and temperature of each fold by its own training photos; `l2` is the median penalty.

        Of many photos, `ssclass.model.heads.many` chooses both for all folds.
        """
        if self._rows(features) > LANDMARKS and partition(folds, len(labels)):
            self._found = self._among_many(features, labels, folds, tick)
            return self._found.validation
        found = np.empty((len(labels), self.classes))
        by_l2 = np.empty((len(L2S), len(labels), self.classes))
        chosen = []

        def test(fold: Fold) -> tuple[float, list[np.ndarray]]:
            basis = self._basis(features, fold[0])
            fits = self._fits(self._vectors(features, fold[0], basis), labels[fold[0]])
            z = self._vectors(features, fold[1], basis)[:, 0]
            return best(fits).l2, [fit.probabilities(z) for fit in fits]

        for (_, rows), (l2, answers) in zip(folds, side_by_side(test, folds, self._rows(features)), strict=True):
            for number, probabilities in enumerate(answers):
                by_l2[number, rows] = probabilities
            chosen.append(l2)
            found[rows] = by_l2[L2S.index(l2), rows]
            tick()
        curves = path_curves(L2S, by_l2, labels, tested_rows(folds))
        return CrossValidation.of(found, labels, folds, float(np.median(chosen)), curves)

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit to all rows; leave-one-out chooses the penalty again, of many photos it is cross-validation's."""
        if self._rows(features) > LANDMARKS:
            many = self._found
            if many is None or many.features is not features or not np.array_equal(many.labels, labels):
                many = self._among_many(features, labels, self._own_folds(features, labels), lambda: None)
            fit = many.fit()
            return Fitted(self._model(features, many.basis, replace(fit, landmarks=self._landmarks(fit.landmarks))))

        def fit_all(fold: Fold) -> tuple[Any, KernelFit]:
            basis = self._basis(features, fold[0])
            return basis, best(self._fits(self._vectors(features, fold[0], basis), labels))

        everything = np.arange(len(labels))
        ((basis, fit),) = side_by_side(fit_all, [(everything, everything[:0])], self._rows(features))
        return Fitted(self._model(features, basis, fit))

    def _among_many(self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick) -> Many:
        ready, basis = self._many(features)

        def vectors(rows: np.ndarray) -> np.ndarray:
            return self._block(ready, rows)

        return Many.of(vectors, features, labels, folds, self.classes, LANDMARKS, self.seed, self.gamma, basis, tick)

    def _own_folds(self, features: Features, labels: np.ndarray) -> list[Fold]:
        """Folds for a fit that no cross-validation came before."""
        classes = [str(number) for number in range(self.classes)]
        return grouped_folds(labels, features.groups or features.sha256s, classes, OWN_FOLDS, self.seed)

    def _many(self, features: Features) -> tuple[Features, Any]:
        """Features of many photos as `_block` wants them, and the basis of their vectors."""
        return features, None

    def _block(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of some photos and of their copies, float32 [n, 1 + copies, d], without a loop over the rest."""
        return self._vectors(features, rows, None).astype(np.float32)

    def _landmarks(self, z: np.ndarray) -> np.ndarray:
        """Landmarks as the layers have their unit vectors, given as `_block` has them."""
        return z

    def _rows(self, features: Features) -> int:
        """How many photos and copies of photos there are."""
        copies = features.augmented.get(self.arrays[0])
        return len(features) * (1 if copies is None else 1 + copies.shape[1])

    def _basis(self, features: Features, train: np.ndarray) -> Any:
        """What of the vectors has to be found from the photos `train` first; None: nothing."""
        return None

    @abstractmethod
    def _vectors(self, features: Features, rows: np.ndarray, basis: Any) -> np.ndarray:
        """Unit vectors of the photos `rows` and of their copies, float64 [n, 1 + copies, d]."""

    @abstractmethod
    def _layers(self, graph: HeadGraph, arrays: Mapping[str, np.ndarray], basis: Any) -> Tensor:
        """Add inputs, and the layers that make unit vectors [n, d] of them; `arrays` have the shapes and dtypes."""

    def _fits(self, z: np.ndarray, labels: np.ndarray) -> list[KernelFit]:
        return list(fit_path(z[:, 0], labels, self.classes, self.seed, augmented=z[:, 1:], gamma=self.gamma))

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


def landmark_rows(rows: int, seed: int) -> np.ndarray:
    """The row numbers of the landmarks among so many photos, in order: all of them, or a seeded draw of `LANDMARKS`."""
    if rows <= LANDMARKS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, LANDMARKS, replace=False))


def fit_path(
    z: np.ndarray,
    labels: np.ndarray,
    classes: int,
    seed: int,
    l2s: Sequence[float] = L2S,
    augmented: np.ndarray | None = None,
    gamma: float = GAMMA,
) -> Iterator[KernelFit]:
    """Yield one fit a penalty; z float64 [n, d], unit rows, labels int [n]. `seed` draws the landmarks.

    `augmented`: z of the altered copies of each photo, [n, copies, d]. `gamma`: g.
    """
    landmarks = z[landmark_rows(len(z), seed)]
    values, vectors = np.linalg.eigh(kernel(landmarks, landmarks, gamma))
    solid = values > TINY * values[-1]
    whiten = vectors[:, solid] / np.sqrt(values[solid])
    rows = z[:, None] if augmented is None else np.concatenate([z[:, None], augmented], axis=1)
    n, copies, _ = rows.shape  # the photo itself among them
    phi = kernel(rows.reshape(n * copies, -1), landmarks, gamma) @ whiten
    values, rotation = np.linalg.eigh(phi.T @ phi / copies)
    values, phi, whiten = np.maximum(values, 0), phi @ rotation, whiten @ rotation

    targets = 2.0 * np.eye(classes)[labels] - 1
    bias = targets.mean(axis=0)
    wanted = np.repeat(targets - bias, copies, axis=0)
    projected = phi.T @ wanted / copies
    blocks = phi.reshape(n, copies, -1)
    for l2 in l2s:
        shrink = 1 / (values + l2)
        weights = shrink[:, None] * projected
        rest = np.eye(copies) * (1 + 1e-9) - (blocks * shrink) @ blocks.transpose(0, 2, 1) / copies
        residual = np.linalg.solve(rest, (wanted - phi @ weights).reshape(n, copies, -1))[:, 0]
        yield KernelFit(
            landmarks,
            whiten @ weights,
            bias,
            temperature(targets - residual, labels),
            l2,
            float((residual**2).mean()),
            gamma,
        )


def best(fits: Sequence[KernelFit]) -> KernelFit:
    """The fit with the smallest leave-one-out residuals: their squares tell penalties apart, their signs hardly do."""
    return min(fits, key=lambda fit: fit.loss)
