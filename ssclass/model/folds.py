"""Which photos a head is trained on and which it is tested on: near-duplicates together, class shares alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ssclass.errors import BatchError

Fold = tuple[np.ndarray, np.ndarray]  # row numbers: of the training photos, of the test photos
VALIDATION = 6  # one photo in so many is for validation, in a training that stops early


def grouped_folds(
    labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], folds: int, seed: int
) -> list[Fold]:
    """Row numbers to train on and to test on; fewer folds than asked for when a class has fewer groups.

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
        return [(train, test) for train, test in splitter.split(names, labels, names)]


def split_validation(labels: np.ndarray, groups: Sequence[str], train: np.ndarray, seed: int) -> Fold:
    """The rows `train` as two parts, for training and for validation; the second is empty where photos are too few.

    Both are training photos: test photos and the held-out set have no part in when a training stops.
    """
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    try:
        kept, validation = grouped_folds(labels[train], [groups[row] for row in train], classes, VALIDATION, seed)[0]
    except BatchError:
        return train, train[:0]
    return train[kept], train[validation]
