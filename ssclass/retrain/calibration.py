"""Whether champions' probabilities can be believed on what arrives, before they learn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssclass.retrain.statistics import CALIBRATION
from ssclass.workspace.ledger import State

RECENT = 10  # batches of a source that its running figures are of


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities of champions could be believed on the last batches of a source, before they learnt.

    `loss`: mean cross-entropy in nats, `usual_loss`: the same in cross-validation, None where no training noted it;
    `confidence`: mean probability of the `n` answers, of which the share `accuracy` was right.
    """

    batches: int
    n: int
    loss: float
    usual_loss: float | None
    confidence: float
    accuracy: float

    def told(self) -> str:
        """The figures in words."""
        usual = "" if self.usual_loss is None else f", {self.usual_loss:.3f} in cross-validation"
        return f"{self.confidence:.0%} sure on the mean and {self.accuracy:.0%} right; log loss {self.loss:.3f}{usual}"


def calibrations(state: State) -> dict[str, Calibration]:
    """Source → how its last `RECENT` batches were foretold, of those whose probabilities the ledger tells of."""
    found = {}
    for source, tests in tests_by_source(state).items():
        told = [test for test in tests if "loss" in test][-RECENT:]
        if told:
            n = sum(test["n"] for test in told)
            usual = [test for test in told if "usual_loss" in test]
            found[source] = Calibration(
                len(told),
                n,
                sum(test["loss"] * test["n"] for test in told) / n,
                sum(t["usual_loss"] * t["n"] for t in usual) / sum(t["n"] for t in usual) if usual else None,
                sum(test["confidence"] * test["n"] for test in told) / n,
                sum(test["right"] for test in told) / n,
            )
    return found


def tests_by_source(state: State) -> dict[str, list[Mapping[str, Any]]]:
    """Source → what champions did on its batches, oldest first."""
    tests: dict[str, list[Mapping[str, Any]]] = {}
    for batch, event in state.ingested.items():
        test = event.body.get("champion_test")
        if test and test["n"] and batch not in state.revoked:
            tests.setdefault(event.body.get("receipt", {}).get("source", "main"), []).append(test)
    return dict(sorted(tests.items()))


def cross_validated_calibration(candidate: Path) -> dict[str, float]:
    """What training noted of a candidate's calibration; nothing for one that was trained before it did, or adopted."""
    try:
        found = json.loads((candidate / "training.json").read_text(encoding="utf-8"))["calibration"]
        return {name: float(found[name]) for name in CALIBRATION}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
