"""The head `linear`: multinomial logistic regression with an L2 penalty, along a path of penalties.

With z = (x - mean) / scale, `scale` one number for all channels (the root of their mean variance), minimise

    1/n sum_i -log softmax(W' z_i + b)[y_i]  +  l2 / 2 * ||W||^2

over W [d, classes] and b. The bias is free. One scale for all channels, not one for each: giving every channel the
same variance made no difference to accuracy on the study's photos and raised the log loss (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ssclass.model.backbones import import_keras
from ssclass.model.features import Features
from ssclass.model.folds import Fold
from ssclass.model.heads.base import CrossValidation, Fitted, Head, Tick, path_curves, pooled, tested_rows
from ssclass.params import TrainParams

L2S = tuple(float(f"{10 ** (half / 2):.2g}") for half in range(2, -7, -1))  # 10 to 1e-3, strong to weak


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Coefficients for features that are not scaled: `kernel` float64 [d, classes], `bias` float64 [classes]."""

    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float64 [n, classes] for x [n, d]."""
        from scipy.special import softmax

        return np.asarray(softmax(x @ self.kernel + self.bias, axis=1))


class LinearHead(Head):
    """L2-regularised multinomial logistic regression on the mean over views of the pooled features."""

    name = "linear"

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.mean",)
        self.classes = classes

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Try every penalty on every fold, and choose the one with the lowest out-of-fold log loss."""
        x = pooled(features, self.arrays[0])
        found = np.empty((len(L2S), len(labels), self.classes))
        for train, test in folds:
            for number, fit in enumerate(self._path(x[train], labels[train], L2S)):
                found[number, test] = fit.probabilities(x[test, 0])
            tick()
        curves = path_curves(L2S, found, labels, tested_rows(folds))
        best = int(np.argmin(curves["cv_loss"]))
        return CrossValidation.of(found[best], labels, folds, L2S[best], curves)

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit to all rows with the penalty that cross-validation chose."""
        path = [l2 for l2 in L2S if l2 >= (found.l2 or 0)]
        *_, fit = self._path(pooled(features, self.arrays[0]), labels, path)
        return Fitted(self._model(fit))

    def _path(self, x: np.ndarray, labels: np.ndarray, l2s: Sequence[float]) -> Iterator[LinearFit]:
        """Fits to x float64 [n, 1 + copies, d]: photos and copies are rows alike.

        As each photo has as many copies, each photo counts as much as before.
        """
        rows = x.reshape(-1, x.shape[-1])
        return fit_path(rows, np.repeat(labels, x.shape[1]), self.classes, l2s)

    def _model(self, fit: LinearFit) -> Any:
        """The fit as a Keras model: GAP over views, Dense softmax."""
        keras = import_keras()
        views = keras.Input((None, len(fit.kernel)), name=self.arrays[0])
        dense = keras.layers.Dense(self.classes, activation="softmax", name="probabilities")
        output = dense(keras.layers.GlobalAveragePooling1D(name="views")(views))
        dense.set_weights([fit.kernel, fit.bias])
        return keras.Model({self.arrays[0]: views}, output, name="head")


def fit_path(x: np.ndarray, labels: np.ndarray, classes: int, l2s: Sequence[float]) -> Iterator[LinearFit]:
    """Yield one fit a penalty, each starting where the one before ended; x float64 [n, d], labels int [n]."""
    from scipy.optimize import minimize

    mean = x.mean(axis=0)
    scale = float(np.sqrt(x.var(axis=0).mean())) or 1.0
    z = (x - mean) / scale
    objective = _objective(z, np.eye(classes)[labels])
    at = np.zeros((x.shape[1] + 1) * classes)
    for l2 in l2s:

        def value(flat: np.ndarray, l2: float = l2) -> tuple[float, np.ndarray]:
            loss, gradient = objective(flat.reshape(-1, classes), l2)
            return float(loss), gradient.numpy().ravel()

        at = minimize(value, at, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-9, "gtol": 1e-5}).x
        kernel, bias = at.reshape(-1, classes)[:-1] / scale, at.reshape(-1, classes)[-1]
        yield LinearFit(kernel, bias - mean @ kernel)


def _objective(z: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray, float], tuple[Any, Any]]:
    """The loss and its gradient in [W; b], float64 [d + 1, classes], for one data set."""
    import_keras()
    import tensorflow as tf

    data = tf.constant(z), tf.constant(target)
    traced = _traced()
    return lambda weights, l2: traced(*data, weights, l2)


@cache
def _traced() -> Any:
    """The loss and its gradient as one graph for all shapes."""
    import tensorflow as tf

    matrix = tf.TensorSpec((None, None), tf.float64)

    def loss_and_gradient(z: Any, target: Any, weights: Any, l2: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            kernel = weights[:-1]
            scores = z @ kernel + weights[-1]
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, scores))
            loss += l2 / 2 * tf.reduce_sum(kernel**2)
        return loss, tape.gradient(loss, weights)

    return tf.function(loss_and_gradient, input_signature=[matrix, matrix, matrix, tf.TensorSpec((), tf.float64)])
