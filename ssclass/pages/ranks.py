"""Curves of how well scores rank photos: what scikit-learn gives, whose import takes two seconds.

tests/test_distributions.py holds them against scikit-learn's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.floating]


def roc(own: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Curve, Curve]:
    """False and true positives, shares, float [points]; `own` bool [n] has both values, `scores` [n].

    Points on a straight line between their neighbours are left out.
    """
    true, false = _counts(own, scores)
    if len(true) > 2:
        bends = np.r_[True, (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), True]
        true, false = true[bends], false[bends]
    return np.r_[0.0, false / false[-1]], np.r_[0.0, true / true[-1]]


def precision_recall(own: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Curve, Curve]:
    """Precision and recall, float [points], recall falling to 0; `own` bool [n] is true somewhere, `scores` [n]."""
    true, false = _counts(own, scores)
    return np.r_[(true / (true + false))[::-1], 1.0], np.r_[(true / true[-1])[::-1], 0.0]


def average_precision(precision: Curve, recall: Curve) -> float:
    """The mean of the precisions, each weighted by what the recall rises there."""
    return float(-(np.diff(recall) * precision[:-1]).sum())


def _counts(own: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Curve, Curve]:
    """True and false positives at each score that occurs, from the highest on."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]  # of equal scores
    true = np.cumsum(own[order], dtype=np.float64)[last]
    return true, last + 1 - true
