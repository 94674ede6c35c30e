"""From cached features and labels to a classifier: cross-validate the heads, choose one, fit it to everything.

Only training photos come in here; the held-out set has no part in any choice. Folds keep near-duplicates together
and the class shares alike. The same inputs give the same weights, bit for bit (CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssclass.errors import ParamsError
from ssclass.model.classifier import Classifier, FeaturesOf, Member
from ssclass.model.ensemble import combined
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.base import CrossValidation, Curves
from ssclass.model.heads.registry import HEADS, needs_maps, raced
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.params import ModelParams, Params


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained classifier with its head's name, the cross-validation that chose it, and its curves."""

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
    """Train one head on the features of one network.

    `labels` int [n] index `params.dataset.classes`; `groups` name the near-duplicate group of each photo; `progress`
    gets fits done and fits in all. Head `auto` becomes the head with the highest cross-validated accuracy, of equals
    the first in the order of `ssclass.model.heads.registry.AUTO`. BatchError when there is too little to
    cross-validate.
    """
    classes = params.dataset.classes
    features = replace(features, groups=tuple(groups))
    folds = grouped_folds(labels, groups, classes, params.train.folds, params.train.seed)
    names = raced(len(labels)) if params.model.head == "auto" else (params.model.head,)
    heads = {name: HEADS[name](max(spec.sizes), len(classes), params.train) for name in names}
    total, done = len(folds) * (len(heads) + bool(spec.before_blocks)) + 1, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    if spec.before_blocks:
        from ssclass.model.tuning import Tuner, through_tuned_blocks, tune_folds

        tuner = Tuner(spec, len(classes), params.train)
        tuned = tune_folds(tuner, features, labels, folds, tick)
        found = {
            name: head.cross_validate(tuned.features, tuned.labels, tuned.folds, tick) for name, head in heads.items()
        }
        cv = {name: tuned.gather(one) for name, one in found.items()}
        blocks, history = tuner.tune(features, labels, np.arange(len(labels)))
        spec = tuner.tuned(blocks)
        features = through_tuned_blocks(spec, features)
    else:
        cv = {name: head.cross_validate(features, labels, folds, tick) for name, head in heads.items()}
        history = {}
    best = max(names, key=lambda name: cv[name].mean)
    fitted = heads[best].fit(features, labels, cv[best])
    tick()
    member = Member(spec, best, fitted.model)
    return Trained(Classifier(classes, (member,)), best, cv, cv[best].curves | fitted.curves | history)


def plan(params: Params) -> list[tuple[FeatureSpec, str]]:
    """Pairs of a spec and a head that params.yaml asks to be trained: one, or one for each of ``model.members``.

    All see photos decoded alike, at the side that the largest wants, as they will in the exported model.
    """
    blocks = params.train.unfreeze_blocks
    pairs = params.model.pairs or [(params.features.backbone, params.model.head)]
    specs = [
        feature_spec(
            params.features.model_copy(update={"backbone": backbone}), maps=needs_maps(head), before_blocks=blocks
        )
        for backbone, head in pairs
    ]
    side = max(spec.size for spec in specs)
    if params.features.shape == "own" and any(spec.size != side for spec in specs):
        raise ParamsError(
            "features.sizes: null; members of unlike sizes cannot share photos in their own shape; name one size, [320]"
        )
    shared = [spec if spec.size == side else replace(spec, photo=side) for spec in specs]
    return [(spec, head) for spec, (_, head) in zip(shared, pairs, strict=True)]


def train_planned(
    features_of: FeaturesOf,
    labels: np.ndarray,
    groups: Sequence[str],
    planned: Sequence[tuple[FeatureSpec, str]],
    params: Params,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """Train all that `plan` named, each as :func:`train` does; `features_of` gives the training photos' features.

    Several members are cross-validated on the same folds. Their out-of-fold probabilities, combined, are the
    ensemble's cross-validation; `cv` has it first, then the members'.
    """
    if len(planned) == 1:
        spec, _ = planned[0]
        return train(features_of(spec), labels, groups, spec, params, progress)
    found = []
    for number, (spec, head) in enumerate(planned):

        def report(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(planned) * total)

        alone = params.model_copy(update={"model": ModelParams.model_validate({"head": head})})
        found.append(train(features_of(spec), labels, groups, spec, alone, report))
    how, classes = params.model.combine, params.dataset.classes
    classifier = Classifier(classes, tuple(member.classifier.members[0] for member in found), how)
    folds = grouped_folds(labels, groups, classes, params.train.folds, params.train.seed)
    together = combined([trained.cv[trained.head].probabilities for trained in found], how)
    cv = {classifier.head_name: CrossValidation.of(together, labels, folds)}
    for member, trained in zip(classifier.members, found, strict=True):
        cv[member.name] = replace(trained.cv[trained.head], curves=trained.history)
    return Trained(classifier, classifier.head_name, cv, {})
