"""The schedule of a training by gradient: the learning rate of each step, and when to stop.

A schedule is a function of where the training is and of the validation losses so far, so that the same training has
the same rates whenever it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssclass.params import TrainParams

CYCLE = 8  # epochs from the lowest rate to the highest and back; Smith advises 4 to 20
LOWEST = 0.25  # of the highest rate, where a cycle begins: Smith's third to a quarter
WAIT = 5  # epochs without a lower validation loss, then a plateau is reached
DROP = 0.3  # what the rate is multiplied by there


def learning_rates(params: TrainParams, epoch: int, steps: int, losses: Sequence[float]) -> np.ndarray:
    """The rate of each step of an epoch (from 0), float32 [steps].

    `losses` are the validation losses of the epochs before, which only `plateau` uses. `train.learning_rate` is
    the highest rate of each schedule:

    constant: that rate. cosine: rate (1 + cos(pi t)) / 2, t the share of all steps that is done (Loshchilov and Hutter
    2017, without restarts). cyclical: triangular between a quarter of it and it, 8 epochs a cycle (Smith 2017).
    plateau: times 0.3 after each 5 epochs in which the validation loss has not become lower.
    """
    done = epoch + np.arange(steps) / steps  # in epochs
    if params.schedule == "cosine":
        share = (1 + np.cos(np.pi * done / params.epochs)) / 2
    elif params.schedule == "cyclical":
        share = LOWEST + (1 - LOWEST) * (1 - np.abs(2 * (done / CYCLE % 1) - 1))
    elif params.schedule == "plateau":
        share = np.full(steps, DROP ** plateaus(losses))
    else:
        share = np.ones(steps)
    return np.asarray(params.learning_rate * share, dtype=np.float32)


def plateaus(losses: Sequence[float]) -> int:
    """How often `WAIT` epochs went by without a lower loss."""
    lowest, waited, found = np.inf, 0, 0
    for loss in losses:
        if loss < lowest:
            lowest, waited = loss, 0
        else:
            waited += 1
            if waited == WAIT:
                waited, found = 0, found + 1
    return found


def needs_validation(params: TrainParams) -> bool:
    """Whether a training needs validation photos, as its schedule or its end depends on their loss."""
    return params.early_stopping > 0 or params.schedule == "plateau"


class EarlyStopping:
    """Ends a training after `patience` epochs without a lower validation loss, and brings the best weights back.

    With patience 0 it does neither. `state` are the Keras variables that make up the weights.
    """

    def __init__(self, patience: int, state: Sequence[Any]) -> None:
        self.patience = patience
        self._state = state
        self._lowest = np.inf
        self._waited = 0
        self._best: list[np.ndarray] | None = None

    def ends(self, loss: float) -> bool:
        """Take note of an epoch's validation loss, and say whether the training ends here."""
        if not self.patience:
            return False
        self._waited += 1
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = [variable.numpy() for variable in self._state]
        return self._waited >= self.patience

    def restore(self) -> None:
        """Put back the weights of the epoch with the lowest validation loss."""
        for variable, value in zip(self._state, self._best or (), strict=self._best is not None):
            variable.assign(value)
