"""Multinomial logistic regression with an L2 penalty, along a path of strengths.

With z = (x - mean) / scale, `scale` one number for all channels (the root of their mean variance), minimise

    1/n sum_i -log softmax(W' z_i + b)[y_i]  +  strength / 2 * ||W||^2

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

STRENGTHS = tuple(float(f"{10 ** (half / 2):.2g}") for half in range(2, -7, -1))  # 10 to 1e-3, strong to weak


@dataclass(frozen=True, eq=False)
class LinearFit:
    """`kernel` float64 [d, classes] and `bias` float64 [classes], for x as it came."""

    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """float64 [n, classes] for x [n, d]."""
        from scipy.special import softmax

        return np.asarray(softmax(x @ self.kernel + self.bias, axis=1))


def fit_path(x: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]) -> Iterator[LinearFit]:
    """One fit a strength, each starting where the one before ended; x float64 [n, d], labels int [n]."""
    from scipy.optimize import minimize

    mean = x.mean(axis=0)
    scale = float(np.sqrt(x.var(axis=0).mean())) or 1.0
    z = (x - mean) / scale
    objective = _objective(z, np.eye(classes)[labels])
    at = np.zeros((x.shape[1] + 1) * classes)
    for strength in strengths:

        def value(flat: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
            loss, gradient = objective(flat.reshape(-1, classes), strength)
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
    return lambda weights, strength: traced(*data, weights, strength)


@cache
def _traced() -> Any:
    """Loss and gradient as one graph for all shapes."""
    import tensorflow as tf

    matrix = tf.TensorSpec((None, None), tf.float64)

    def loss_and_gradient(z: Any, target: Any, weights: Any, strength: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            kernel = weights[:-1]
            scores = z @ kernel + weights[-1]
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, scores))
            loss += strength / 2 * tf.reduce_sum(kernel**2)
        return loss, tape.gradient(loss, weights)

    return tf.function(loss_and_gradient, input_signature=[matrix, matrix, matrix, tf.TensorSpec((), tf.float64)])
