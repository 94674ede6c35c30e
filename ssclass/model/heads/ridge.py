"""Kernel ridge regression: its fit, and how it is found for all penalties and folds, a block of photos at a time.

`ssclass.model.heads.kernel` has what is minimised. Phi'Phi and Phi't are sums over photos of
k k' and k t, k being the kernel of a photo with each landmark, so that blocks are read one after the other and none is
kept. Folds share the landmarks: the sums over all photos less those over the photos that a fold tests are the sums over
its training photos. So the kernel of each photo is computed twice, for the sums and for its answers, however many
folds and penalties there are. Landmarks are chosen without labels, and the span of those that a fold
tests has nothing to say about their labels: of all photos as landmarks it is the span of the others that a fit is in.

Landmarks are the middles of photos that are alike, not photos by lot: few of them then do what many do by lot
(docs/scale.md has figures).

Penalty and temperature are those with the smallest squared residual and log loss of the photos out of fold, which keeps
near-duplicates together. Copies of a photo are rows of weight 1 / (1 + copies).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssclass.model.folds import Fold, on_each_core, one_blas_thread
from ssclass.model.heads.base import CrossValidation, Tick, path_curves

GAMMA = 4.0  # g; 2 to 4 are alike on the study's photos (docs/models.md)
L2S = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # .1 to .001 are alike on the study's photos
POOL = 5  # photos for each landmark that landmarks are found from
MOVES = 5  # of the landmarks to the middle of the photos that are nearest to them
SOLID = 1e-7  # of the largest eigenvalue: vectors of float32 say nothing about directions below it
BLOCK = 512  # photos whose kernel is in memory at once: 8 MB with 2,000 landmarks

Vectors = Callable[[np.ndarray], np.ndarray]  # row numbers to unit vectors, float32 [n, 1 + copies, d]


@dataclass(frozen=True, eq=False)
class KernelFit:
    """`landmarks` float [m, d], unit rows; `weights` [m, classes] and `bias` [classes] give f; see above.

    `l2`: the penalty. `loss`: the mean squared residual of photos that were left out. `gamma`: g.
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


def kernel(x: np.ndarray, z: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """The kernel k of each row of x with each row of z; `gamma`: g."""
    return np.asarray(np.exp(2 * gamma * (x @ z.T - 1)))


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.02 to 50, at which softmax(scores / temperature) has the lowest log loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(scores / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded").x))


def partition(folds: Sequence[Fold], rows: int) -> bool:
    """Whether each of so many rows is tested by one fold and trained on by all others."""
    tested = np.concatenate([test for _, test in folds])
    whole = all(len(train) + len(test) == rows for train, test in folds)
    return whole and np.array_equal(np.sort(tested), np.arange(rows))


def middles(vectors: Vectors, rows: int, count: int, seed: int) -> np.ndarray:
    """At most `count` landmarks among so many rows, unit rows float32 [m, d]: middles of photos that are alike.

    Spherical k-means (Dhillon and Modha, Machine Learning 42, 2001) on a seeded draw of `POOL` photos a landmark, from
    a seeded draw of photos. Where photos are few, they are the landmarks themselves.
    """
    from scipy.sparse import csr_array

    if rows <= count:
        return np.asarray(vectors(np.arange(rows))[:, 0])
    draw = np.random.default_rng(seed)
    pool = np.sort(draw.choice(rows, min(rows, POOL * count), replace=False))
    z = np.concatenate([vectors(pool[at : at + BLOCK])[:, 0] for at in range(0, len(pool), BLOCK)])
    found = z[np.sort(draw.choice(len(z), count, replace=False))]
    for _ in range(MOVES):
        nearest = np.concatenate([(z[at : at + BLOCK] @ found.T).argmax(axis=1) for at in range(0, len(z), BLOCK)])
        members = csr_array((np.ones(len(z), z.dtype), (nearest, np.arange(len(z)))), shape=(count, len(z)))
        moved = members @ z
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        found = np.where(lengths > 0, moved / np.maximum(lengths, 1e-12), found)
    return np.asarray(found)


def whitening(alike: np.ndarray) -> np.ndarray:
    """A root of the inverse of the landmarks' kernel K_mm with each other, float64 [m, r], of its solid directions."""
    values, directions = np.linalg.eigh(alike)
    solid = values > SOLID * values[-1]
    return np.asarray(directions[:, solid] / np.sqrt(values[solid]))


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over photos, float64: of p p' [r, r], p t' [r, classes], p [r], t [classes], and how many photos.

    p is a photo's kernel with the landmarks times `whitening`: its row of Phi.
    """

    gram: np.ndarray
    wanted: np.ndarray
    kernels: np.ndarray
    targets: np.ndarray
    photos: int

    @classmethod
    def over(
        cls,
        rows: np.ndarray,
        vectors: Vectors,
        targets: np.ndarray,
        landmarks: np.ndarray,
        whiten: np.ndarray,
        gamma: float,
    ) -> Sums:
        """The sums over these rows; targets [all rows, classes], `whiten` [m, r].

        Either the rows are whitened or their sums, whichever takes fewer multiplications.
        """
        few = len(rows) < 2 * len(landmarks)
        width, classes = whiten.shape[1] if few else len(landmarks), targets.shape[1]
        gram, wanted, kernels = np.zeros((width, width)), np.zeros((width, classes)), np.zeros(width)
        for at in range(0, len(rows), BLOCK):
            block = rows[at : at + BLOCK]
            z = vectors(block)
            copies = z.shape[1]
            k = kernel(z.reshape(-1, z.shape[-1]), landmarks, gamma).astype(np.float64)
            if few:
                k = k @ whiten
            gram += k.T @ k / copies
            wanted += k.T @ np.repeat(targets[block], copies, axis=0) / copies
            kernels += k.sum(axis=0) / copies
        if not few:
            gram, wanted, kernels = whiten.T @ (gram @ whiten), whiten.T @ wanted, whiten.T @ kernels
        return cls(gram, wanted, kernels, targets[rows].sum(axis=0), len(rows))

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """These sums and others, or, with `sign` -1, without others."""
        return Sums(
            self.gram + sign * other.gram,
            self.wanted + sign * other.wanted,
            self.kernels + sign * other.kernels,
            self.targets + sign * other.targets,
            self.photos + sign * other.photos,
        )

    def solve(self, whiten: np.ndarray, l2s: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the landmarks [m, penalties, classes] and bias [classes]."""
        from scipy.linalg import cho_factor, cho_solve

        bias = self.targets / self.photos
        wanted = self.wanted - np.outer(self.kernels, bias)
        found = []
        for l2 in l2s:
            made = np.array(self.gram, order="F")  # as LAPACK wants it, which then works in it
            made[np.diag_indices_from(made)] += l2
            factor = cho_factor(made, overwrite_a=True, check_finite=False)
            found.append(whiten @ cho_solve(factor, wanted, check_finite=False))
        return np.stack(found, axis=1), bias


@dataclass(frozen=True, eq=False)
class Solved:
    """A cross-validation of all penalties, and what a fit to all of them needs of it.

    `features` and `labels` are what it was made of; `basis` is what their vectors are on. `temperatures` and `losses`
    (mean squared residuals out of fold) are those of each penalty.
    """

    features: Any
    labels: np.ndarray
    basis: Any
    landmarks: np.ndarray
    whiten: np.ndarray
    sums: Sums
    gamma: float
    validation: CrossValidation
    temperatures: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        features: Any,
        labels: np.ndarray,
        folds: Sequence[Fold],
        classes: int,
        count: int,
        seed: int,
        gamma: float,
        basis: Any,
        tick: Tick,
    ) -> Solved:
        """Try every penalty on every fold; `count` landmarks are found among the photos, by `seed`."""
        from scipy.special import softmax

        landmarks = middles(vectors, len(labels), count, seed)
        with one_blas_thread():
            whiten = whitening(kernel(landmarks, landmarks, gamma).astype(np.float64))
        targets = 2.0 * np.eye(classes)[labels] - 1
        scores = np.empty((len(L2S), len(labels), classes))

        def add(fold: Fold) -> Sums:
            return Sums.over(fold[1], vectors, targets, landmarks, whiten, gamma)

        def test(number: int) -> None:
            """Solve for the sums without a fold's, and let the fold's photos have their scores."""
            weights, bias = total.plus(parts[number], -1).solve(whiten, L2S)
            flat = weights.reshape(len(landmarks), -1).astype(np.float32)
            for at in range(0, len(folds[number][1]), BLOCK):
                rows = folds[number][1][at : at + BLOCK]
                found = kernel(vectors(rows)[:, 0], landmarks, gamma) @ flat
                scores[:, rows] = found.reshape(len(rows), len(L2S), classes).transpose(1, 0, 2) + bias

        parts = list(on_each_core(add, folds))
        total = functools.reduce(Sums.plus, parts)
        for _ in on_each_core(test, range(len(folds))):
            tick()
        losses = tuple(float(np.square(targets - each).mean()) for each in scores)
        best = int(np.argmin(losses))
        warmth = tuple(temperature(each, labels) for each in scores)
        by_l2 = np.stack([softmax(each / warm, axis=1) for each, warm in zip(scores, warmth, strict=True)])
        curves = path_curves(L2S, by_l2, labels, np.arange(len(labels)))
        validation = CrossValidation.of(by_l2[best], labels, folds, L2S[best], curves)
        return cls(features, labels, basis, landmarks, whiten, total, gamma, validation, warmth, losses)

    def fit(self) -> KernelFit:
        """The fit to all photos with the penalty and the temperature that were chosen."""
        return self.fits([L2S.index(self.validation.l2 or 0.0)])[0]

    def fits(self, numbers: Sequence[int] = range(len(L2S))) -> list[KernelFit]:
        """A fit to all photos for each penalty of these places in `L2S`, with its temperature."""
        l2s = [L2S[number] for number in numbers]
        with one_blas_thread():
            weights, bias = self.sums.solve(self.whiten, l2s)
        return [
            KernelFit(self.landmarks, weights[:, at], bias, self.temperatures[of], L2S[of], self.losses[of], self.gamma)
            for at, of in enumerate(numbers)
        ]
