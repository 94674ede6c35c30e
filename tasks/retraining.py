"""The tasks of the retrain flow. Small hashable things go in and out: a folder, a batch's name, a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.tasks import exponential_backoff

from ssclass import arrivals, deciding, learning, progress, reporting
from ssclass.arrivals import Taken
from ssclass.batches import BatchRef
from ssclass.errors import FailedError, LostRaceError
from ssclass.learning import Result
from ssclass.ledger import Event
from ssclass.settings import load_settings
from ssclass.store import Store
from ssclass.tracking import Tracking
from ssclass.workspace import Workspace

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


def workspace_at(folder: str) -> Workspace:
    """The workspace in a folder."""
    return Workspace(load_settings(Path(folder)))


@task(**outside)
def find_batches(folder: str) -> list[BatchRef]:
    """Marked batches that are not in the data set and not held."""
    workspace = workspace_at(folder)
    return arrivals.waiting(Store(workspace.settings), workspace.state())


@task(**outside, task_run_name="take in {batch.id}")
def take_in(folder: str, batch: BatchRef) -> Taken:
    """Take one batch in, or hold it."""
    return arrivals.take_in(workspace_at(folder), batch)


@task
def open_question(folder: str) -> str | None:
    """The decision key of the data, params and code as they are; None when it is decided or there is no data."""
    workspace = workspace_at(folder)
    dataset = workspace.dataset()
    state = workspace.state()
    key = learning.decision_key(dataset, workspace.params, state.revoked)
    return None if not dataset.rows or key in state.decisions else key


@task(**outside, task_run_name="learn {key}")
def learn(folder: str, key: str) -> Result:
    """Train a candidate; score it and the champion on the held-out photos."""
    return learning.learn(workspace_at(folder), key, progress.report)


@task(**outside, task_run_name="log {key}")
def log_run(folder: str, key: str) -> str:
    """Log the result to MLflow as a run without a decision; returns its id."""
    workspace = workspace_at(folder)
    tracking, place = Tracking(workspace.settings), learning.result_folder(workspace, key)
    run_id = tracking.open_run(key)
    params = workspace.params.model_dump(mode="json")
    tracking.log_result(
        run_id, Result.read(place / "result.json"), params, place / "model.keras", workspace.dataset().digest
    )
    return run_id


@task(**outside, task_run_name="decide {key}")
def decide(folder: str, key: str, run_id: str) -> Event:
    """Ask the gate, and make its answer the ledger's: one commit, pushed."""
    workspace = workspace_at(folder)
    result = Result.read(learning.result_folder(workspace, key) / "result.json")
    return deciding.record(workspace, result, run_id)


@task(**outside)
def reconcile(folder: str) -> str | None:
    """Make MLflow say what the ledger says; returns the champion's registered version."""
    return reporting.reconcile(workspace_at(folder))


@task
def discard(folder: str, run_id: str) -> None:
    """Throw away the run of a result that another writer made superfluous."""
    Tracking(workspace_at(folder).settings).discard(run_id)
