"""What all heads have in common: their interface, and the figures of a cross-validation.

A head is fitted to cached features and ends as a small model of Keras's standard layers. Its inputs are the feature
arrays that it names, each float32 [n, views, channels] or, for a map, float16 [n, views, h, w, channels]; its output is
float32 [n, classes], probabilities, averaged over the views. Two classes are the case N = 2 of softmax: a sigmoid of z
is the softmax of (0, z).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ssclass.model.features import Features
from ssclass.model.folds import Fold
from ssclass.params import TrainParams

Curves = dict[str, list[float]]
Tick = Callable[[], None]  # called once after each fit


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a head makes of photos that it was not fitted to.

    `probabilities` float64 [n, classes], out of fold, of the rows that some fold tests; `accuracy` one value a fold;
    `l2` the strength of the penalty that was chosen, for heads that have one; `curves` per epoch, or per strength, the
    mean over folds.
    """

    accuracy: tuple[float, ...]
    probabilities: np.ndarray
    l2: float | None = None
    curves: Curves = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[Fold],
        l2: float | None = None,
        curves: Curves | None = None,
    ) -> CrossValidation:
        """The cross-validation with these out-of-fold probabilities; their accuracy on each fold is computed here."""
        by_fold = tuple(accuracy(probabilities[test], labels[test]) for _, test in folds)
        return cls(by_fold, probabilities, l2, curves or {})

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean(self.accuracy))

    @property
    def sd(self) -> float:
        """Standard deviation of the accuracy over the folds (n - 1)."""
        return float(np.std(self.accuracy, ddof=1))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted head: a Keras model, or one that NumPy computes; and its curves while it was fitted."""

    model: Any
    curves: Curves = field(default_factory=dict)


class Head(ABC):
    """A kind of head; `arrays` are the names of the feature arrays that the fitted model takes.

    `maps`: it needs feature maps, which are computed for heads of that kind only. `moments`: which of the pooled arrays
    it is fitted to. `numpy`: the fitted head is one that NumPy computes, not a Keras model.
    """

    name: ClassVar[str]
    maps: ClassVar[bool] = False
    numpy: ClassVar[bool] = False
    moments: ClassVar[tuple[str, ...]] = ("mean",)
    arrays: tuple[str, ...]

    @abstractmethod
    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        """A head on features of views of `size` x `size` pixels."""

    @abstractmethod
    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Fit to the training rows of each fold and predict its test rows; labels int [n]."""

    @abstractmethod
    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Fit to all rows, with what cross-validation chose."""


def tested_rows(folds: Sequence[Fold]) -> np.ndarray:
    """The rows that some fold tests, in order; where blocks were tuned for each fold, not all of them."""
    return np.sort(np.concatenate([test for _, test in folds]))


def pooled(features: Features, name: str, rows: np.ndarray | None = None) -> np.ndarray:
    """An array of the photos and of their copies, the mean over views: float64 [n, 1 + copies, channels].

    The photo comes first. `rows`: of these photos alone.
    """
    which = slice(None) if rows is None else rows
    photos = features.arrays[name][which].mean(axis=1, dtype=np.float64)[:, None]
    if name not in features.augmented:
        return np.asarray(photos)
    return np.concatenate([photos, features.augmented[name][which].mean(axis=2, dtype=np.float64)], axis=1)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, nats; probabilities below 1e-12 count as that."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of the rows whose most probable class is their label."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def path_curves(l2s: Sequence[float], probabilities: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Curves:
    """Log loss and accuracy along a path of penalties, for probabilities [penalties, n, classes] of some rows.

    The first curve, ``strength``, holds the penalties: the name is part of what runs in MLflow have.
    """
    return {
        "strength": list(l2s),
        "cv_loss": [log_loss(one[rows], labels[rows]) for one in probabilities],
        "cv_accuracy": [accuracy(one[rows], labels[rows]) for one in probabilities],
    }
