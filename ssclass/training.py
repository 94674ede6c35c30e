"""From cached features and labels to a classifier: cross-validate the heads, choose one, train it on everything.

Only training photos come in here; the held-out set has no part in any choice. Folds keep near-duplicates together
and the class shares alike. Same inputs, same weights, bit for bit (CPU).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ssclass.classifier import Classifier
from ssclass.errors import BatchError
from ssclass.features import Features, FeatureSpec
from ssclass.heads import HEADS, CrossValidation, Curves, Fold
from ssclass.params import Params


@dataclass(frozen=True, eq=False)
class Trained:
    """A classifier, why this head, and how it learnt."""

    classifier: Classifier
    head: str
    cv: dict[str, CrossValidation]
    history: Curves


def train(
    features: Features,
    labels: np.ndarray,
    groups: Sequence[str],
    spec: FeatureSpec,
    params: Params,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """The classifier that these training photos give.

    `labels` int [n] index `params.dataset.classes`; `groups` name the near-duplicate group of each photo; `progress`
    gets fits done and fits in all. With head `auto` the head with the higher cross-validated accuracy is taken, of
    equals the first in the order linear, T1, rbf. BatchError when there is too little to cross-validate.
    """
    classes = params.dataset.classes
    folds = grouped_folds(labels, groups, classes, params.train.folds, params.train.seed)
    names = list(HEADS) if params.model.head == "auto" else [params.model.head]
    heads = {name: HEADS[name](max(spec.sizes), len(classes), params.train) for name in names}
    total, done = len(folds) * len(heads) + 1, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    cv = {name: head.cross_validate(features, labels, folds, tick) for name, head in heads.items()}
    best = max(names, key=lambda name: cv[name].mean)
    fitted = heads[best].fit(features, labels, cv[best])
    tick()
    return Trained(Classifier(classes, spec, best, fitted.model), best, cv, cv[best].curves | fitted.curves)


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
