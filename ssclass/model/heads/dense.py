"""The study's heads, T1, T2.0 and T2.1: one dense layer or two, trained on moments or on maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ssclass.model.features import Features
from ssclass.model.folds import Fold, split_validation
from ssclass.model.heads.base import CrossValidation, Curves, Fitted, Head, Tick
from ssclass.model.heads.gradient import DenseTrainer
from ssclass.model.schedules import needs_validation
from ssclass.params import TrainParams

HIDDEN = 256


class DenseHead(Head):
    """A head of the study, trained by `ssclass.model.heads.gradient`.

    `hidden`: units of a dense layer with batch norm before the last one; 0: there is none.
    """

    hidden: ClassVar[int] = 0
    moments = ("mean", "square")

    def __init__(self, size: int, classes: int, params: TrainParams) -> None:
        self.arrays = (f"{size}.out.map" if self.maps else f"{size}.out.mean",)
        self._training_arrays = self.arrays if self.maps else (*self.arrays, f"{size}.out.square")
        self.classes = classes
        self.params = params
        self._trainer: DenseTrainer | None = None

    def cross_validate(
        self, features: Features, labels: np.ndarray, folds: Sequence[Fold], tick: Tick
    ) -> CrossValidation:
        """Train once a fold, each time from the same seeded start."""
        arrays, augmented, trainer = self._ready(features)
        found = np.empty((len(labels), self.classes))
        curves = []
        for train, test in folds:
            rows = *self._validated(features, labels, train), test
            curves.append(trainer.fit(arrays, labels, *rows, augmented))
            found[test] = trainer.probabilities(arrays[0][test])
            tick()
        return CrossValidation.of(found, labels, folds, curves=_mean_curves(curves))

    def fit(self, features: Features, labels: np.ndarray, found: CrossValidation) -> Fitted:
        """Train on all rows."""
        arrays, augmented, trainer = self._ready(features)
        everything = np.arange(len(labels))
        rows = *self._validated(features, labels, everything), everything[:0]
        curves = trainer.fit(arrays, labels, *rows, augmented)
        return Fitted(trainer.export(self.arrays[0]), curves)

    def _validated(self, features: Features, labels: np.ndarray, train: np.ndarray) -> Fold:
        """The rows `train` as training rows and validation rows; none are for validation unless params ask for it."""
        if not needs_validation(self.params):
            return train, train[:0]
        return split_validation(labels, features.groups or features.sha256s, train, self.params.seed)

    def _ready(self, features: Features) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], DenseTrainer]:
        """The arrays of photos, those of their copies where there are some, and the trainer for them."""
        arrays = tuple(features.arrays[name] for name in self._training_arrays)
        augmented = tuple(features.augmented[name] for name in self._training_arrays if name in features.augmented)
        if self._trainer is None:
            self._trainer = DenseTrainer(arrays[0].shape[2:], self.hidden, self.classes, self.params)
        return arrays, augmented, self._trainer


class T1Head(DenseHead):
    """Batch norm, GAP, dropout, dense 256, batch norm, dropout, dense."""

    name = "T1"
    hidden = HIDDEN


class T20Head(DenseHead):
    """Batch norm, dropout, flatten, dense: a weight for each channel at each place of the map."""

    name = "T2.0"
    maps = True


class T21Head(DenseHead):
    """Batch norm, GAP, dropout, dense."""

    name = "T2.1"


def _mean_curves(folds: Sequence[Curves]) -> Curves:
    """Each curve's mean over the folds; where some stopped early, the mean over those that went on."""
    names, epochs = folds[0], max(len(fold["loss"]) for fold in folds)
    return {
        name: [
            float(np.mean([fold[name][epoch] for fold in folds if epoch < len(fold[name])])) for epoch in range(epochs)
        ]
        for name in names
    }
