"""The gate: may the candidate become the champion? A pure function; nothing is looked up in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclass.params import GateParams
from ssclass.workspace.ledger import PROMOTED, REJECTED


@dataclass(frozen=True)
class Precondition:
    """Something that must hold before any score counts; `remedy` says what to do when it does not."""

    name: str
    holds: bool
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and why in one sentence."""

    promote: bool
    reason: str

    @property
    def decision(self) -> str:
        """PROMOTED or REJECTED."""
        return PROMOTED if self.promote else REJECTED


def judge(
    labels: NDArray[np.integer],
    candidate: NDArray[np.integer],
    champion: NDArray[np.integer] | None,
    params: GateParams,
    preconditions: Sequence[Precondition] = (),
    classes: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> Verdict:
    """Promote if and only if the candidate has more held-out photos right, and every precondition holds.

    `labels`, `candidate`, `champion`: int [n], one held-out photo a place, class indices; -1 in a prediction
    is "no known class" and never right. `champion` is None only when the ledger knows none: then the
    candidate must beat the majority class by `params.floor_margin`, or by half of what is left above it where that is
    less. With `params.max_recall_loss`, no class's recall may fall by more than that below the champion's. With
    `params.guard_groups`, the candidate may not be behind where each group of near-copies has one vote, shared by its
    photos: `groups` has a group a photo. `classes` names the classes in the reason, else their indices do.
    """
    n = len(labels)
    if len(candidate) != n or (champion is not None and len(champion) != n):
        return Verdict(False, "the predictions are not of the same photos")
    for precondition in preconditions:
        if not precondition.holds:
            return Verdict(False, f"{precondition.name}: {precondition.remedy}")
    if n == 0:
        return Verdict(False, "no held-out photos yet")
    right = int((candidate == labels).sum())
    if champion is None:
        majority = int(np.bincount(labels).max())
        needed = majority / n + min(params.floor_margin, (1 - majority / n) / 2)
        beats = right / n > needed
        return Verdict(
            beats, f"first champion: {right} of {n} right, {'over' if beats else 'not over'} the floor of {needed:.1%}"
        )
    champion_right = int((champion == labels).sum())
    if params.max_recall_loss is not None:
        for label in np.unique(labels):
            of = labels == label
            ours, theirs = (int((answers[of] == label).sum()) for answers in (candidate, champion))
            if theirs - ours > params.max_recall_loss * of.sum() + 1e-9:
                name = classes[label] if len(classes) > label else f"class {label}"
                return Verdict(
                    False,
                    f"recall of {name}: {ours} of {of.sum()} right, the champion {theirs}; falls by more than "
                    f"{params.max_recall_loss:g} (gate.max_recall_loss)",
                )
    if params.guard_groups:
        _, group, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        once, before = (float(((answers == labels) / size[group]).sum()) for answers in (candidate, champion))
        if once < before - 1e-9:
            return Verdict(
                False,
                f"candidate {right}/{n}, champion {champion_right}/{n}, with one vote for each group of near-copies "
                f"{once:.1f}/{len(size)}, champion {before:.1f}/{len(size)} (gate.guard_groups)",
            )
    net = right - champion_right
    missing = params.min_net_wins - net
    said = f"needs at least {missing} more" if missing > 0 else f"{net} more right"
    return Verdict(net >= params.min_net_wins, f"candidate {right}/{n}, champion {champion_right}/{n}; {said}")
