"""The retrain: take in what waits, train if there is something new, and promote only what is better."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.train import train
from ssclass.errors import FailedError, LostRaceError, OvertakenError
from ssclass.retrain.ingest import Ingested
from ssclass.retrain.outcome import Outcome
from ssclass.workspace.ledger import HELD
from tasks import retraining as step
from tasks import telling
from tasks.remote import train_elsewhere

RERUNS = 3
QUESTIONS = 10
"""Questions that other writers changed while they were answered, after which a retrain gives up."""
ROUNDS = 5
"""What arrives while batches are taken in joins the same training; after so many rounds it is left to the next one."""


def failed(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people of a retrain that ended without a decision."""
    step.tell_of_failure(flow_run.parameters["workspace"], flow_run.name, state.message or state.name)


@flow(
    name="retrain",
    flow_run_name=telling.name_of_retrain,
    validate_parameters=False,
    on_failure=[failed],
    persist_result=True,  # an Outcome, as JSON: whoever started the run by Prefect can have it
    result_serializer="json",
)
def retrain(workspace: str, batch: str | None = None, count: int = 0, rerun: int = 0) -> Outcome:
    """Take in every waiting batch and decide.

    Args:
        workspace: The workspace: its folder on the worker's machine, or the URL of its git origin.
        batch: The batch that this run was started for. A name for people: every waiting batch is taken in.
        count: How many batches had arrived by then. For people, too.
        rerun: How many runs in a row crashed before this one.
    """
    with telling.logged(workspace):
        told = telling.ended(workspace, decided(workspace, rerun))
        step.tell_health(workspace)
        step.attach_exports(workspace)  # last, and without the folder's lock: nobody waits for it
        return told  # type: ignore[no-any-return]


def decided(workspace: str, rerun: int) -> Outcome:
    """What a retrain comes to, asked again while other writers change the question."""
    if rerun > RERUNS:
        raise FailedError(f"{rerun} retrains in a row crashed; look at their logs and at the workers' memory")
    ingested: list[Ingested] = []
    with step.workspace_at(workspace).retraining():
        for _ in range(QUESTIONS):
            try:
                return attempt(workspace, ingested)
            except (LostRaceError, OvertakenError) as error:
                lost = error
    raise LostRaceError(
        f"{workspace}: other writers were faster {QUESTIONS} times ({lost}); see who else writes to origin"
    )


def attempt(workspace: str, ingested: list[Ingested]) -> Outcome:
    """Take in what waits, and answer the question that is open then; OvertakenError when it changed meanwhile."""
    for _ in range(ROUNDS):
        waiting = step.find_batches(workspace)
        if not waiting:
            break
        for batch in waiting:
            ingested.append(step.ingest(workspace, batch))
    for batch in step.find_sent_again(workspace):
        ingested.append(step.ingest(workspace, batch))

    pending = step.pending_key(workspace)
    if pending is None:
        version = step.reconcile(workspace)
        held = [batch for batch in ingested if batch.outcome == HELD]
        if held:
            reason = "; ".join(f"{batch.batch}: {batch.reason}" for batch in held)
            return Outcome(HELD, reason, tuple(ingested), version=version)
        return Outcome.skipped(tuple(ingested), version)

    commit, key = pending
    telling.say(f"decision {key}: there is something new to learn from")
    run_id = trained(workspace, commit, key)
    try:
        event = step.decide(workspace, key, run_id)
    except (LostRaceError, OvertakenError):
        step.discard(workspace, run_id)
        raise
    if event.body["run_id"] != run_id:  # another writer answered the same question first
        step.discard(workspace, run_id)
    return Outcome(event.body["decision"], event.body["reason"], tuple(ingested), event.body, step.reconcile(workspace))


def trained(workspace: str, commit: str, key: str) -> str:
    """The MLflow run of a finished result: one that is there already, or what a training leaves."""
    run_id = step.restore_result(workspace, key)
    if run_id is None and step.trains_elsewhere(workspace):
        run_id = train_elsewhere(workspace, commit, key)
    return run_id or train(workspace, key, commit)
