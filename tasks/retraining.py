"""The tasks of the retrain flow. Small hashable things go in and out: a folder, a batch's name, a key."""

from __future__ import annotations

import os
from typing import Any

from prefect import task
from prefect.tasks import exponential_backoff

from ssclass import notices, progress
from ssclass.code import code_digest
from ssclass.data.batches import BatchRef
from ssclass.environment import quiet_libraries
from ssclass.errors import FailedError, LostRaceError, WorkspaceError
from ssclass.retrain import decide as deciding
from ssclass.retrain import ingest as arrivals
from ssclass.retrain import results
from ssclass.retrain import train as learning
from ssclass.retrain.ingest import Taken
from ssclass.retrain.train import Result
from ssclass.store import Store
from ssclass.tracking import publish as reporting
from ssclass.tracking.client import Tracking
from ssclass.workspace import clones
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import HELD, PROMOTED, REJECTED, Event
from ssclass.workspace.workspace import Workspace
from tasks import remote as dispatch

PATIENCE = float(os.environ.get("SSCLASS_PATIENCE", 60))  # seconds; Settings.patience for what is not a task


def _is_away(task: Any, run: Any, state: Any) -> bool:
    """Retry what something outside did not do; bad input and a lost race stay what they are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, FailedError) and not isinstance(error, LostRaceError)


outside: dict[str, Any] = {
    "retries": max(0, int(PATIENCE / 2 + 1).bit_length() - 1),  # 2, 4, 8 … seconds that add up to the patience
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_condition_fn": _is_away,
}


def workspace_at(where: str) -> Workspace:
    """The workspace in a folder, or this machine's clone of a git URL."""
    workspace = clones.workspace_at(where)
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # a worker's process: no command line has done it
        quiet_libraries(workspace.settings)
    return workspace


@task(**outside)
def find_batches(folder: str) -> list[BatchRef]:
    """Marked batches that are not in the data set and not held."""
    workspace = workspace_at(folder)
    return arrivals.waiting(Store(workspace.settings), workspace.state())


@task(**outside, task_run_name="take in {batch.id}")
def take_in(folder: str, batch: BatchRef) -> Taken:
    """Take one batch in, or hold it."""
    workspace = workspace_at(folder)
    taken = arrivals.take_in(workspace, batch)
    if taken.outcome == HELD:
        notices.tell(workspace.settings, "ssclass.batch.held", f"ssclass.batch.{batch.id}", reason=taken.reason)
    return taken


@task
def open_question(folder: str) -> str | None:
    """The decision key of the data, params and code as they are; None when it is decided or there is no data."""
    workspace = workspace_at(folder)
    dataset = workspace.dataset()
    state = workspace.state()
    key = learning.decision_key(dataset, workspace.params, state.revoked)
    return None if not dataset.used or key in state.decisions else key


@task
def check_key(folder: str, key: str) -> None:
    """Stop where this machine would train something else than was asked for."""
    workspace = workspace_at(folder)
    ours = learning.decision_key(workspace.dataset(), workspace.params, workspace.state().revoked)
    if ours != key:
        raise WorkspaceError(
            f"{key}: this machine's code ({code_digest()}) makes it {ours}; install the same ssclass on every worker"
        )


@task(**outside, task_run_name="adopt {key}")
def adopt(folder: str, key: str) -> str | None:
    """Take up a result that is finished and logged, here or in S3; the MLflow run, None when there is none."""
    workspace = workspace_at(folder)
    if not results.fetch(workspace, key) or learning.adopt(workspace, key) is None:
        return None
    return results.logged_run(workspace, key)


def trains_elsewhere(folder: str) -> bool:
    """Whether the settings name a deployment that trains."""
    return workspace_at(folder).settings.train_deployment is not None


@task(task_run_name="train {key} elsewhere")
def train_elsewhere(folder: str, key: str) -> str:
    """Have a worker train; returns the MLflow run once its result is adopted."""
    return dispatch.train(workspace_at(folder), key, lambda: adopt(folder, key))


@task(**outside, task_run_name="learn {key}")
def learn(folder: str, key: str) -> None:
    """Train a candidate; score it and the champion on the held-out photos; keep the result in S3."""
    workspace = workspace_at(folder)
    results.fetch(workspace, key)
    learning.learn(workspace, key, progress.report)
    results.keep(workspace, key)


@task(**outside, task_run_name="log {key}")
def log_run(folder: str, key: str) -> str:
    """Log the result to MLflow as a run without a decision; returns its id.

    Of a candidate that the gate would promote the whole model too: who trained it has its network in memory.
    """
    from ssclass.model.adopted import open_classifier

    workspace = workspace_at(folder)
    if (logged := results.logged_run(workspace, key)) is not None:
        return logged
    tracking, place = Tracking(workspace.settings), learning.result_folder(workspace, key)
    run_id = tracking.open_run(key)
    params = workspace.params.model_dump(mode="json")
    result, digest = Result.read(place / "result.json"), workspace.dataset().digest
    tracking.log_result(run_id, result, params, place / CANDIDATE, digest, learning.contact_sheet(workspace))
    if deciding.ask_gate(workspace, result).decision == PROMOTED:
        tracking.log_model(run_id, key, result.data_version, open_classifier(place / CANDIDATE))
    results.note_run(workspace, key, run_id)
    return run_id


@task(**outside, task_run_name="decide {key}")
def decide(folder: str, key: str, run_id: str) -> Event:
    """Ask the gate, and make its answer the ledger's: one commit, pushed."""
    workspace = workspace_at(folder)
    result = Result.read(learning.result_folder(workspace, key) / "result.json")
    event = deciding.record(workspace, result, run_id)
    if event.body["decision"] == REJECTED:
        notices.tell(
            workspace.settings,
            "ssclass.model.rejected",
            f"ssclass.model.{key}",
            **{name: event.body[name] for name in ("reason", "candidate", "champion", "batches")},
        )
    return event


@task(**outside)
def reconcile(folder: str) -> str | None:
    """Make MLflow say what the ledger says; returns the champion's registered version."""
    return reporting.reconcile(workspace_at(folder))


@task
def discard(folder: str, run_id: str) -> None:
    """Throw away the run of a result that another writer made superfluous."""
    Tracking(workspace_at(folder).settings).discard(run_id)


def tell_of_failure(folder: str, run: str, reason: str) -> None:
    """Tell people that a retrain ended without a decision."""
    settings = workspace_at(folder).settings
    notices.tell(settings, "ssclass.retrain.failed", f"ssclass.retrain.{run}", reason=reason[:1000])
