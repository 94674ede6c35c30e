"""The retrain: take in what waits, train if that is news, and promote only what is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow

from flows.train import train
from ssclass.errors import FailedError, LostRaceError
from ssclass.retrain.ingest import Taken
from ssclass.workspace.ledger import HELD, SKIPPED
from tasks import retraining as step

RERUNS = 3
RACES = 10
"""Lost pushes after which a retrain gives up; each means that another writer got its work done."""
LOOKS = 5
"""What arrives while batches are taken in joins the same training; after so many looks it is left to the next one."""


@dataclass(frozen=True)
class Outcome:
    """What a retrain came to: a decision with its reason, and what became of each batch."""

    decision: str
    reason: str
    batches: tuple[Taken, ...] = ()
    event: dict[str, Any] | None = None
    version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what ``ssclass retrain --json`` prints."""
        return asdict(self)


def failed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people of a retrain that ended without a decision."""
    step.tell_of_failure(flow_run.parameters["workspace"], flow_run.name, state.message or state.name)


@flow(name="retrain", flow_run_name="retrain {batch}", validate_parameters=False, on_failure=[failed])
def retrain(workspace: str, batch: str | None = None, count: int = 0, rerun: int = 0) -> Outcome:
    """Take in every waiting batch and decide.

    `batch` and `count` are what woke us: hints for people, nothing depends on them. `rerun`: how many runs in a row
    crashed before this one.
    """
    if rerun > RERUNS:
        raise FailedError(f"{rerun} retrains in a row crashed; look at their logs and at the workers' memory")
    taken: list[Taken] = []
    for _ in range(RACES):
        with step.workspace_at(workspace).turn():
            try:
                return attempt(workspace, taken)
            except LostRaceError:
                continue
    raise LostRaceError(f"{workspace}: lost the race to push {RACES} times; see who else writes to origin")


def learned(workspace: str, key: str) -> str:
    """The MLflow run of a finished result: one that is there already, or what a training leaves."""
    run_id = step.adopt(workspace, key)
    if run_id is None and step.trains_elsewhere(workspace):
        run_id = step.train_elsewhere(workspace, key)
    return run_id or train(workspace, key)


def attempt(workspace: str, taken: list[Taken]) -> Outcome:
    """One try, from origin's newest commit; LostRaceError when another writer was faster."""
    for _ in range(LOOKS):
        waiting = step.find_batches(workspace)
        if not waiting:
            break
        for each in waiting:
            taken.append(step.take_in(workspace, each))

    key = step.open_question(workspace)
    if key is None:
        version = step.reconcile(workspace)
        held = [each for each in taken if each.outcome == HELD]
        if held:
            return Outcome(
                HELD, "; ".join(f"{each.batch}: {each.reason}" for each in held), tuple(taken), version=version
            )
        return Outcome(SKIPPED, "nothing new to learn from", tuple(taken), version=version)

    run_id = learned(workspace, key)
    try:
        event = step.decide(workspace, key, run_id)
    except LostRaceError:
        step.discard(workspace, run_id)
        raise
    return Outcome(event.body["decision"], event.body["reason"], tuple(taken), event.body, step.reconcile(workspace))
