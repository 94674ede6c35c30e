"""From cached features and labels to a classifier: cross-validate the heads, choose one, train it on everything.

Only training photos come in here; the held-out set has no part in any choice. Folds keep near-duplicates together
and the class shares alike. Same inputs, same weights, bit for bit (CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssclass.model.classifier import Classifier, Look, Member
from ssclass.model.ensemble import combined
from ssclass.model.features import Features, FeatureSpec, feature_spec
from ssclass.model.folds import grouped_folds as grouped_folds
from ssclass.model.heads.heads import AUTO, HEADS, CrossValidation, Curves, judged, needs_maps
from ssclass.params import ModelParams, Params


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
    """The classifier that these training photos give: one network and one head.

    `labels` int [n] index `params.dataset.classes`; `groups` name the near-duplicate group of each photo; `progress`
    gets fits done and fits in all. With head `auto` the head with the higher cross-validated accuracy is taken, of
    equals the first in the order of `AUTO`. BatchError when there is too little to cross-validate.
    """
    classes = params.dataset.classes
    features = replace(features, groups=tuple(groups))
    folds = grouped_folds(labels, groups, classes, params.train.folds, params.train.seed)
    names = AUTO if params.model.head == "auto" else (params.model.head,)
    heads = {name: HEADS[name](max(spec.sizes), len(classes), params.train) for name in names}
    total, done = len(folds) * (len(heads) + bool(spec.cut)) + 1, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    if spec.cut:
        from ssclass.model.tuning import Tuner, through_tail, tuned_lessons

        tuner = Tuner(spec, len(classes), params.train)
        lessons = tuned_lessons(tuner, features, labels, folds, tick)
        found = {
            name: head.cross_validate(lessons.features, lessons.labels, lessons.folds, tick)
            for name, head in heads.items()
        }
        cv = {name: lessons.gather(each) for name, each in found.items()}
        tail, history = tuner.tune(features, labels, np.arange(len(labels)))
        spec = tuner.tuned(tail)
        features = through_tail(spec, features)
    else:
        cv = {name: head.cross_validate(features, labels, folds, tick) for name, head in heads.items()}
        history = {}
    best = max(names, key=lambda name: cv[name].mean)
    fitted = heads[best].fit(features, labels, cv[best])
    tick()
    member = Member(spec, best, fitted.model)
    return Trained(Classifier(classes, (member,)), best, cv, cv[best].curves | fitted.curves | history)


def plan(params: Params) -> list[tuple[FeatureSpec, str]]:
    """What is to be trained: a spec and a head, or one pair for each of ``model.members``.

    All see photos decoded alike, at the side that the largest wants, as they will in the exported model.
    """
    cut = params.train.unfreeze_blocks
    pairs = params.model.pairs or [(params.features.backbone, params.model.head)]
    specs = [
        feature_spec(params.features.model_copy(update={"backbone": backbone}), maps=needs_maps(head), cut=cut)
        for backbone, head in pairs
    ]
    side = max(spec.size for spec in specs)
    shared = [spec if spec.size == side else replace(spec, photo=side) for spec in specs]
    return [(spec, head) for spec, (_, head) in zip(shared, pairs, strict=True)]


def train_planned(
    look: Look,
    labels: np.ndarray,
    groups: Sequence[str],
    planned: Sequence[tuple[FeatureSpec, str]],
    params: Params,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """As `train`, of all that `plan` names; `look` gives the features of the training photos.

    Several members are cross-validated on the same folds, and what they say together on each photo that they did not
    learn from is the ensemble's cross-validation. Its `cv` has the members' too, the ensemble's first.
    """
    if len(planned) == 1:
        spec, _ = planned[0]
        return train(look(spec), labels, groups, spec, params, progress)
    found = []
    for number, (spec, head) in enumerate(planned):

        def report(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(planned) * total)

        alone = params.model_copy(update={"model": ModelParams.model_validate({"head": head})})
        found.append(train(look(spec), labels, groups, spec, alone, report))
    how, classes = params.model.combine, params.dataset.classes
    classifier = Classifier(classes, tuple(each.classifier.members[0] for each in found), how)
    folds = grouped_folds(labels, groups, classes, params.train.folds, params.train.seed)
    together = combined([each.cv[each.head].probabilities for each in found], how)
    cv = {classifier.head_name: judged(together, labels, folds, None, {})}
    for member, each in zip(classifier.members, found, strict=True):
        cv[member.name] = replace(each.cv[each.head], curves=each.history)
    return Trained(classifier, classifier.head_name, cv, {})
