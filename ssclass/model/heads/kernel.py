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
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.folds import Fold, side_by_side
from ssclass.model.heads.base import CrossValidation, Fitted, Head, Tick, path_curves, pooled, tested_rows
from ssclass.params import TrainParams

GAMMA = 4.0  # g; 2 to 4 are alike on the study's photos (docs/models.md)
L2S = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # .1 to .001 are alike on the study's photos
LANDMARKS = 2000  # bounds memory, time and the model's size: 2,000 x 1,024 floats are 8 MB
TINY = 1e-9  # of the largest eigenvalue: directions below it are rounding (copies of one photo, say)


@dataclass(frozen=True, eq=False)
class KernelFit:
    """`landmarks` float64 [m, d], unit rows; `weights` [m, classes] and `bias` [classes] give f; see above.

    `l2`: the penalty. `loss`: the mean squared leave-one-out residual. `gamma`: g.
    """

    landmarks: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    temperature: float
    l2: float
    loss: float
    gamma: float

    def probabilities(self, z: np.ndarray) -> np.ndarray:
        """Probabilities float64 [n, classes] for unit rows z [n, d]."""
        from scipy.special import softmax

        scores = kernel(z, self.landmarks, self.gamma) @ self.weights + self.bias
        return np.asarray(softmax(scores / self.temperature, axis=1))


class KernelHead(Head):
    """Kernel ridge regression on unit vectors that stand for the photos; subclasses say what the vectors are.

    `gamma`: g of the kernel.
    """

    gamma: ClassVar[float]

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.map" if self.maps else f"{size}.out.mean",)
        self.classes = classes
        self.seed = params.seed

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Choose penalty and temperature of each fold by its own training photos; `l2` is the median penalty."""
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
        """Fit to all rows; leave-one-out chooses the penalty again."""

        def fit_all(fold: Fold) -> tuple[Any, KernelFit]:
            basis = self._basis(features, fold[0])
            return basis, best(self._fits(self._vectors(features, fold[0], basis), labels))

        everything = np.arange(len(labels))
        ((basis, fit),) = side_by_side(fit_all, [(everything, everything[:0])], self._rows(features))
        return Fitted(self._model(features, basis, fit))

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
    def _layers(self, inputs: Mapping[str, Any], basis: Any) -> Any:
        """Keras layers that make the unit vectors, [n, d], of Keras tensors [n, views, …] by their arrays' names."""

    def _inputs(self, features: Features) -> dict[str, tuple[int | None, ...]]:
        """The arrays that the model takes, and their shapes, a photo."""
        return {self.arrays[0]: (None, features.arrays[self.arrays[0]].shape[-1])}

    def _fits(self, z: np.ndarray, labels: np.ndarray) -> list[KernelFit]:
        return list(fit_path(z[:, 0], labels, self.classes, self.seed, augmented=z[:, 1:], gamma=self.gamma))

    def _model(self, features: Features, basis: Any, fit: KernelFit) -> Any:
        """The fit as a Keras model: layers to unit vectors, Dense exponential (the kernel), Dense softmax."""
        keras = import_keras()
        inputs = {
            name: keras.Input(shape, name=name, dtype=str(features.arrays[name].dtype))
            for name, shape in self._inputs(features).items()
        }
        alike = keras.layers.Dense(len(fit.landmarks), activation="exponential", name="kernel")
        dense = keras.layers.Dense(self.classes, activation="softmax", name="probabilities")
        output = dense(alike(self._layers(inputs, basis)))
        # exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), x and z being of length one
        alike.set_weights([2 * fit.gamma * fit.landmarks.T, np.full(len(fit.landmarks), -2 * fit.gamma)])
        dense.set_weights([fit.weights / fit.temperature, fit.bias / fit.temperature])
        return keras.Model(inputs, output, name="head")


class RbfHead(KernelHead):
    """Kernel ridge regression on the square roots of the pooled features, averaged over views."""

    name = "rbf"
    gamma = GAMMA

    def _vectors(self, features: Features, rows: np.ndarray, basis: None) -> np.ndarray:
        return unit_roots(pooled(features, self.arrays[0])[rows])

    def _layers(self, inputs: Mapping[str, Any], basis: None) -> Any:
        """GAP over views, root, unit length."""
        # What `keras.ops.sqrt` makes, under a fixed name: the saved bytes must not depend on what was built before.
        from keras.src.ops.numpy import Sqrt

        layers, views = import_keras().layers, inputs[self.arrays[0]]
        mean = layers.ReLU(name="not_negative")(layers.GlobalAveragePooling1D(name="views")(views))
        return layers.UnitNormalization(name="unit")(Sqrt(name="roots")(mean))


def unit_roots(mean: np.ndarray) -> np.ndarray:
    """Turn activations [..., d] into z as above, float64 [..., d]; a row of zeros stays one."""
    roots = np.sqrt(np.maximum(mean, 0, dtype=np.float64))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=-1, keepdims=True), 1e-12))


def kernel(x: np.ndarray, z: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """The kernel k of each row of x with each row of z; `gamma`: g."""
    return np.asarray(np.exp(2 * gamma * (x @ z.T - 1)))


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
    landmarks = z
    if len(z) > LANDMARKS:
        landmarks = z[np.sort(np.random.default_rng(seed).choice(len(z), LANDMARKS, replace=False))]
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
            _temperature(targets - residual, labels),
            l2,
            float((residual**2).mean()),
            gamma,
        )


def best(fits: Sequence[KernelFit]) -> KernelFit:
    """The fit with the smallest leave-one-out residuals: their squares tell penalties apart, their signs hardly do."""
    return min(fits, key=lambda fit: fit.loss)


def _temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.02 to 50, at which softmax(scores / temperature) has the lowest log loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(scores / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded").x))
