"""Which photos are learnt from and which are judged on. Near-duplicates stay together, class shares alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ssclass.errors import BatchError

Fold = tuple[np.ndarray, np.ndarray]  # row numbers: to learn from, to judge on
WATCHED = 6  # one photo in so many is set aside by a head that stops early


def grouped_folds(
    labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], folds: int, seed: int
) -> list[Fold]:
    """Row numbers to learn from and to judge on; fewer folds than asked for when a class has fewer groups.

    A class without photos is allowed (params.yaml may name it before its first batch), two classes must have some.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(groups)
    counts = {name: len(np.unique(names[labels == i])) for i, name in enumerate(classes)}
    usable = [count for count in counts.values() if count > 1]
    if len(usable) < 2:
        have = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise BatchError(
            f"training split: two classes need at least two different photos each (have {have}); submit more photos"
        )
    splitter = StratifiedGroupKFold(min(folds, *usable), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with a single group cannot be in every fold
        return [(learn, judge) for learn, judge in splitter.split(names, labels, names)]


def set_aside(labels: np.ndarray, groups: Sequence[str], learn: np.ndarray, seed: int) -> Fold:
    """Part of the rows `learn` to learn from, the others to watch the training by; none of them where they are too few.

    Both are training photos: what is judged on, and the held-out set, have no part in when a training stops.
    """
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    try:
        kept, watched = grouped_folds(labels[learn], [groups[row] for row in learn], classes, WATCHED, seed)[0]
    except BatchError:
        return learn, learn[:0]
    return learn[kept], learn[watched]
