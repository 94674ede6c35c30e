"""From cached features and labels to a classifier: cross-validate the heads, choose one, train it on everything.

Only training photos come in here; the held-out set has no part in any choice. Folds keep near-duplicates together
and the class shares alike. Same inputs, same weights, bit for bit (CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssclass.classifier import Classifier
from ssclass.features import Features, FeatureSpec
from ssclass.folds import grouped_folds as grouped_folds
from ssclass.heads import HEADS, CrossValidation, Curves
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
    features = replace(features, groups=tuple(groups))
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
