"""How good a model is on labelled photos, and how two models differ on the same ones. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.retrain.statistics import Interval, calibration_error, clopper_pearson, mcnemar_exact, paired_bootstrap

METRICS = ("loss", "accuracy", "recall", "precision", "f_measure")
"""The names of the whole-set metrics, the same in the CLI, MLflow, metrics.json and the docs."""


@dataclass(frozen=True)
class ClassScores:
    """One class: shares in [0, 1], `support` in photos."""

    recall: float
    precision: float
    f_measure: float
    support: int


@dataclass(frozen=True)
class Scores:
    """One model on `n` photos; recall, precision and F-measure are means over the classes that occur."""

    n: int
    right: int
    loss: float
    accuracy: float
    recall: float
    precision: float
    f_measure: float
    calibration_error: float
    accuracy_interval: Interval
    per_class: Mapping[str, ClassScores]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; the keys of metrics.json and of ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion on the same `n` photos. Reported; only the gate decides."""

    n: int
    wins: int
    losses: int
    difference: float
    difference_interval: Interval
    mcnemar_p: float


def score(probabilities: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str]) -> Scores:
    """Score probabilities (float [n, classes]) against labels (int [n], index of `classes`).

    Loss is the mean cross-entropy in nats, with probabilities clipped to 1e-7 as Keras does. Row i, column j
    of the confusion matrix counts photos of class i that were called class j. A share with an empty
    denominator is 0. ValueError for probabilities that are not finite or do not match the labels.
    """
    n, k = probabilities.shape
    if len(labels) != n or k != len(classes):
        raise ValueError(f"{n} x {k} probabilities do not fit {len(labels)} labels of {len(classes)} classes")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite")
    predicted = probabilities.argmax(axis=1) if n else np.zeros(0, int)
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits, support, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall = hits / np.maximum(support, 1)
    precision = hits / np.maximum(called, 1)
    f_measure = 2 * hits / np.maximum(support + called, 1)
    occurs = support > 0
    of_label = np.clip(probabilities[np.arange(n), labels], 1e-7, 1.0)

    def mean(values: NDArray[np.floating]) -> float:
        return float(values[occurs].mean()) if occurs.any() else 0.0

    right = int(hits.sum())
    return Scores(
        n=n,
        right=right,
        loss=float(-np.log(of_label).mean()) if n else 0.0,
        accuracy=right / n if n else 0.0,
        recall=mean(recall),
        precision=mean(precision),
        f_measure=mean(f_measure),
        calibration_error=calibration_error(probabilities.max(axis=1), predicted == labels) if n else 0.0,
        accuracy_interval=clopper_pearson(right, n),
        per_class={
            name: ClassScores(float(recall[i]), float(precision[i]), float(f_measure[i]), int(support[i]))
            for i, name in enumerate(classes)
        },
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def compare(candidate_right: NDArray[np.bool_], champion_right: NDArray[np.bool_]) -> Comparison:
    """Compare two models by which of the same photos each has right (bool [n], one order)."""
    difference = candidate_right.astype(float) - champion_right.astype(float)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        n=len(difference),
        wins=wins,
        losses=losses,
        difference=float(difference.mean()) if len(difference) else 0.0,
        difference_interval=paired_bootstrap(difference),
        mcnemar_p=mcnemar_exact(wins, losses),
    )


def align(probabilities: NDArray[np.floating], known: Sequence[str], classes: Sequence[str]) -> NDArray[np.floating]:
    """Reorder a model's columns (its own classes, `known`) to `classes`; float [n, classes].

    A class that the model does not know gets probability 0; columns of classes no longer asked for go.
    """
    aligned = np.zeros((len(probabilities), len(classes)))
    for column, name in enumerate(classes):
        if name in known:
            aligned[:, column] = probabilities[:, list(known).index(name)]
    return aligned


def predicted(probabilities: NDArray[np.floating], known: Sequence[str], classes: Sequence[str]) -> NDArray[np.integer]:
    """The class of each photo as an index of `classes`; -1 where the model says one that is not among them.

    Where a probability is not finite, the model says nothing: -1, too.
    """
    if not len(probabilities):
        return np.zeros(0, int)
    index = np.array([classes.index(name) if name in classes else -1 for name in known])
    return np.where(np.isfinite(probabilities).all(axis=1), index[probabilities.argmax(axis=1)], -1)


def slices(right: NDArray[np.bool_], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Right and total per slice: `names` gives each photo's slice (its class or its batch)."""
    of = np.asarray(names)
    return {str(name): (int(right[of == name].sum()), int((of == name).sum())) for name in np.unique(of)}
