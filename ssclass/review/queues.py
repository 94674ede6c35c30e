"""Photos that a person should look at: held-out mistakes, labels that are probably wrong, photos without a label.

A queue is a function in QUEUES; the page lists them in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ssclass.data.dataset import Dataset
from ssclass.retrain import results
from ssclass.retrain.result import Answers
from ssclass.review.doubtful import doubtful, place_of
from ssclass.study.suspects import Suspect
from ssclass.workspace.workspace import Workspace

DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class Item:
    """A photo to look at. `says`: what a model calls it, `sure`: with which probability.

    `held`: the held batch that has it, or the folder of a photo that `ssclass serve` kept, whose `label` and `says` are
    empty; empty for a photo of the data set.
    """

    sha256: str
    label: str
    says: str
    sure: float
    batch: str
    key: str
    held: str = ""

    @property
    def disagrees(self) -> bool:
        """Whether the model calls it something else than its label."""
        return self.says != self.label


@dataclass(frozen=True)
class Queue:
    """A list of photos with its name, and in a sentence what they have in common."""

    name: str
    title: str
    about: str
    find: Callable[[Workspace], list[Item]]


def mistakes(workspace: Workspace) -> list[Item]:
    """Held-out photos that the champion has wrong by their labels now, the surest first; none without a champion."""
    answers = champion_answers(workspace)
    return [] if answers is None else _wrong(answers, workspace.at().dataset)


def champion_answers(workspace: Workspace) -> Answers | None:
    """What the champion answered on the held-out photos of the newest decision that asked it, and can be had."""
    state = workspace.at().state
    for key, event in reversed(state.decisions.items()):
        asked = key == state.champion or (event.body["champion"] or {}).get("key") == state.champion
        if not asked or state.champion is None:
            continue
        result = results.kept(workspace, key)
        if result is not None:
            return result.candidate if key == state.champion else result.champion
    return None


def _wrong(answers: Answers, dataset: Dataset) -> list[Item]:
    here, found = dataset.by_sha256, []
    sure = answers.numbers.max(axis=1) if len(answers.photos) else np.zeros(0)
    for at in np.argsort(-sure, kind="stable"):
        row = here.get(answers.photos[at])
        says = answers.classes[answers.predicted[at]] if answers.predicted[at] >= 0 else "another class"
        if row is not None and row.label != says:
            found.append(Item(row.sha256, row.label, says, float(sure[at]), dataset.batch_of(row.sha256), row.key))
    return found


def of_suspects(found: Sequence[Suspect]) -> list[Item]:
    """Training photos as the cross-validation ranks them, those that it takes for wrong."""
    return [
        Item(each.sha256, each.label, each.suggested, 1 - each.quality, each.batch, each.key)
        for each in found
        if each.issue and each.label != each.suggested
    ]


def unlabelled(workspace: Workspace) -> list[Item]:
    """Photos that `ssclass serve` kept and nobody has labelled, the oldest first."""
    return [
        Item(photo.sha256, "", "", 0.0, "ssclass serve", photo.day.isoformat(), place_of(photo))
        for photo in doubtful(workspace)
    ]


QUEUES = {
    queue.name: queue
    for queue in (
        Queue(
            "mistakes",
            "Held-out mistakes",
            "Held-out photos that the champion calls something else than their label, the surest first. It has not "
            "learnt from them: either it is wrong, or the label is.",
            mistakes,
        ),
        Queue(
            DOUBTFUL,
            "Doubtful photos of the service",
            "Photos that the champion was not sure of when an app asked, kept by ssclass serve as their owners agreed. "
            "They have no label yet: those that get one here are sent as a new batch, to train on.",
            unlabelled,
        ),
    )
}
