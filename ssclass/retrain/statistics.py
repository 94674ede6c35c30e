"""The statistics that a decision card reports. Pure functions over counts and vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclass.distributions import binomial_interval, fair_coin


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval, inclusive."""

    low: float
    high: float


def clopper_pearson(right: int, n: int, level: float = 0.95) -> Interval:
    """Exact binomial interval of a share of `right` in `n` (Clopper & Pearson, Biometrika 1934)."""
    return Interval(*binomial_interval(right, n, level)) if n else Interval(0.0, 1.0)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact McNemar p of discordant counts: binomial with p = 1/2 over `wins + losses`."""
    return fair_coin(wins, losses)


def paired_bootstrap(difference: NDArray[np.floating], seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of paired per-photo differences, 10,000 resamples.

    `difference`: float [n], candidate right minus champion right, each in {-1, 0, 1}. As only three values
    occur, a resample is one multinomial draw over their counts.
    """
    n = len(difference)
    if n == 0:
        return Interval(-1.0, 1.0)
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=10_000)
    means = draws @ values / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: mean of |accuracy - confidence| over equal-width bins, weighted by size.

    `confidence`: float [n] in [0, 1], the probability of the predicted class; `right`: bool [n].
    Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 5.
    """
    if len(right) == 0:
        return 0.0
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(right))


CALIBRATION = ("loss", "confidence", "calibration_error")


def calibration(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float] | None:
    """How far probabilities can be believed: on photos that the model was not fitted to. None where there are none.

    `probabilities` [n, classes], `labels` int [n]. `loss`: mean cross-entropy in nats, clipped as Keras does;
    `confidence`: mean probability of the answers, which is their accuracy where they can be believed;
    `calibration_error`: :func:`calibration_error`.
    """
    if len(probabilities) != len(labels) or not len(labels) or not np.isfinite(probabilities).all():
        return None
    best = probabilities.max(axis=1)
    of_label = np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)
    return {
        "loss": float(-np.log(of_label).mean()),
        "confidence": float(best.mean()),
        "calibration_error": calibration_error(best, probabilities.argmax(axis=1) == labels),
    }


def sure_above(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float] | None:
    """From which probability on an answer is sure, by answers on photos that the model was not fitted to.

    `probabilities` [n, classes], `labels` int [n]. The `threshold` is the lowest above which half as many are wrong
    as of all answers; `share` of the answers are at or above it, and `accuracy` of those are right. None where there
    are no such answers.
    """
    if len(probabilities) != len(labels) or not len(labels) or not np.isfinite(probabilities).all():
        return None
    best = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    order = np.argsort(best, kind="stable")
    best, right = best[order], right[order]
    starts = np.flatnonzero(np.r_[True, np.diff(best) > 0])  # of equal probabilities all are sure, or none
    remaining = len(best) - starts
    wrong = np.cumsum((~right)[::-1])[::-1][starts]
    enough = np.flatnonzero(wrong / remaining <= (~right).mean() / 2)
    if not len(enough):  # the most probable answer of all is wrong
        return {"threshold": 1.0, "share": 0.0, "accuracy": 0.0}
    at = int(enough[0])
    sure = int(remaining[at])
    threshold = float(best[starts[at]]) if starts[at] else 0.0
    return {"threshold": threshold, "share": sure / len(best), "accuracy": 1 - float(wrong[at]) / sure}
