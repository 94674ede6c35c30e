"""Kernel ridge regression on unit vectors, with its strength and temperature chosen by leave-one-out.

A photo's pooled activations m (not negative) become z = sqrt(m) / ||sqrt(m)||: the square root tames the few channels
that are loud (the inner product of two such vectors is the Bhattacharyya coefficient of their activations).
Two photos are alike by k(x, z) = exp(-g ||x - z||^2) = exp(2 g x'z - 2 g), since both have length one.

With targets t = +1 for the own class and -1 for the others, less their mean, and Phi the photos' features in the
space that the landmarks span (Nystroem: Phi = K_nm K_mm^-1/2; all photos are landmarks while there are at most
`LANDMARKS`, and then this is kernel ridge itself), minimise ||Phi w - t||^2 + strength ||w||^2. The leave-one-out
residual is e_i = (t_i - f_i) / (1 - h_i), h the diagonal of the hat matrix (Allen's PRESS), so every strength is
tried in closed form. A photo's altered copies are rows like it, of weight 1 / (1 + copies) each; it is left out with
them, which makes (t_i - f_i) and (1 - h_i) a vector and a matrix a photo, of which the photo's own entry counts. They
are no landmarks. Probabilities are softmax(f / temperature), the temperature being that with the lowest
leave-one-out log loss: it never changes which class wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 4.0  # g; 2 to 4 are alike on the study's photos (docs/models.md)
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # .1 to .001 are alike on the study's photos
LANDMARKS = 2000  # bounds memory, time and the model's size: 2,000 x 1,024 floats are 8 MB
TINY = 1e-9  # of the largest eigenvalue: directions below it are rounding (copies of one photo, say)


@dataclass(frozen=True, eq=False)
class KernelFit:
    """`landmarks` float64 [m, d], unit rows; `weights` [m, classes] and `bias` [classes] give f; see above.

    `loss`: the mean squared leave-one-out residual. `width`: g.
    """

    landmarks: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    temperature: float
    strength: float
    loss: float
    width: float

    def probabilities(self, z: np.ndarray) -> np.ndarray:
        """float64 [n, classes] for unit rows z [n, d]."""
        from scipy.special import softmax

        scores = kernel(z, self.landmarks, self.width) @ self.weights + self.bias
        return np.asarray(softmax(scores / self.temperature, axis=1))


def unit_roots(mean: np.ndarray) -> np.ndarray:
    """z as above, float64 [..., d], of activations [..., d]; a row of zeros stays one."""
    roots = np.sqrt(np.maximum(mean, 0, dtype=np.float64))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=-1, keepdims=True), 1e-12))


def kernel(x: np.ndarray, z: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """k of each row of x with each row of z; `width`: g."""
    return np.asarray(np.exp(2 * width * (x @ z.T - 1)))


def fit_strengths(
    z: np.ndarray,
    labels: np.ndarray,
    classes: int,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    copies: np.ndarray | None = None,
    width: float = WIDTH,
) -> Iterator[KernelFit]:
    """One fit a strength; z float64 [n, d], unit rows, labels int [n]. `seed` draws the landmarks.

    `copies`: z of the altered copies of each photo, [n, copies, d]. `width`: g.
    """
    landmarks = z
    if len(z) > LANDMARKS:
        landmarks = z[np.sort(np.random.default_rng(seed).choice(len(z), LANDMARKS, replace=False))]
    values, vectors = np.linalg.eigh(kernel(landmarks, landmarks, width))
    solid = values > TINY * values[-1]
    whiten = vectors[:, solid] / np.sqrt(values[solid])
    rows = z[:, None] if copies is None else np.concatenate([z[:, None], copies], axis=1)
    n, each, _ = rows.shape
    phi = kernel(rows.reshape(n * each, -1), landmarks, width) @ whiten
    values, turn = np.linalg.eigh(phi.T @ phi / each)
    values, phi, whiten = np.maximum(values, 0), phi @ turn, whiten @ turn

    targets = 2.0 * np.eye(classes)[labels] - 1
    bias = targets.mean(axis=0)
    wanted = np.repeat(targets - bias, each, axis=0)
    projected = phi.T @ wanted / each
    blocks = phi.reshape(n, each, -1)
    for strength in strengths:
        shrink = 1 / (values + strength)
        weights = shrink[:, None] * projected
        rest = np.eye(each) * (1 + 1e-9) - (blocks * shrink) @ blocks.transpose(0, 2, 1) / each
        residual = np.linalg.solve(rest, (wanted - phi @ weights).reshape(n, each, -1))[:, 0]
        yield KernelFit(
            landmarks,
            whiten @ weights,
            bias,
            _temperature(targets - residual, labels),
            strength,
            float((residual**2).mean()),
            width,
        )


def best(fits: Sequence[KernelFit]) -> KernelFit:
    """The fit with the smallest leave-one-out residuals: their squares tell strengths apart, their signs hardly do."""
    return min(fits, key=lambda fit: fit.loss)


def _temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.02 to 50, at which softmax(scores / temperature) has the lowest log loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(scores / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded").x))
