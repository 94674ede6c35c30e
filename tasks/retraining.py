"""The tasks of the retrain flow. Small hashable things go in and out: a folder, a batch's name, a key, a commit.

A task that writes is one transaction: when Prefect tries it again, it begins a new one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from prefect import task
from prefect.tasks import exponential_backoff

from ssclass import notices, progress
from ssclass.code import code_digest
from ssclass.collector import collect_seldom
from ssclass.data.batches import BatchRef
from ssclass.environment import quiet_libraries
from ssclass.errors import DistrustedError, FailedError, LostRaceError, OvertakenError, StoreError, WorkspaceError
from ssclass.retrain import decide as decisions
from ssclass.retrain import health, results
from ssclass.retrain import ingest as batches
from ssclass.retrain import key as keys
from ssclass.retrain import train as training
from ssclass.retrain.ingest import Ingested
from ssclass.secrets import redact
from ssclass.serving import attached
from ssclass.tracking import health as loop
from ssclass.tracking import publish
from ssclass.upkeep.finish import finish_forgetting
from ssclass.workspace import clones
from ssclass.workspace.git import GitRefusedError
from ssclass.workspace.ledger import HELD, REJECTED, Event
from ssclass.workspace.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)
_known: dict[str, Workspace] = {}


def workspace_at(where: str) -> Workspace:
    """The workspace in a folder, or this machine's clone of a git URL: one object in a process for each.

    What it has read of a commit, and its clients of S3 and MLflow, are then there for the next task.
    """
    workspace = clones.workspace_at(where)
    if where not in _known or _known[where].settings != workspace.settings:
        _known[where] = workspace
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # a worker's process: no command line has done it
        quiet_libraries(workspace.settings)
        collect_seldom()
    return _known[where]


def _is_away(task: Any, run: Any, state: Any) -> bool:
    """Retry what something outside did not do; bad input, a lost race and a refusal for good stay what they are."""
    error = state.result(raise_on_failure=False)
    for_good = LostRaceError | OvertakenError | GitRefusedError | DistrustedError
    return isinstance(error, FailedError) and not isinstance(error, for_good)


def outside(name: str | None = None) -> Callable[[F], F]:
    """Make a function a task that needs something outside: it is tried again for `patience` seconds of its workspace.

    The first argument of the function names the workspace. Pauses are 2, 4, 8 … seconds.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def redacted(*args: Any) -> Any:
            try:
                return function(*args)
            except Exception as error:  # Prefect keeps its words, and shows them to all who read there
                redact(error)
                raise

        made = task(
            task_run_name=name,
            retry_delay_seconds=exponential_backoff(backoff_factor=2),
            retry_condition_fn=_is_away,
            persist_result=False,  # asked again in the same run it looks again: Prefect gives back what it keeps
        )(redacted)

        @wraps(function)
        def call(folder: str, *args: Any) -> Any:
            patience = workspace_at(folder).settings.patience
            retries = max(0, int(patience / 2 + 1).bit_length() - 1)  # pauses that add up to the patience
            return made.with_options(retries=retries)(folder, *args)

        call.task = made  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


@outside()
def find_batches(folder: str) -> list[BatchRef]:
    """Marked batches that are to be taken in, at origin's newest commit."""
    workspace = workspace_at(folder)
    return batches.waiting(workspace.store, workspace.newest().state)


@outside()
def find_sent_again(folder: str) -> list[BatchRef]:
    """Batches that were sent again with other content, under an id that is in use."""
    workspace = workspace_at(folder)
    return batches.sent_again(workspace.store, workspace.at().state)


@outside("ingest {batch.id}")
def ingest(folder: str, batch: BatchRef) -> Ingested:
    """Take one batch in, or hold it."""
    workspace = workspace_at(folder)
    ingested = batches.ingest(workspace, batch)
    if ingested.outcome == HELD:
        notices.tell(workspace.settings, "ssclass.batch.held", f"ssclass.batch.{batch.id}", reason=ingested.reason)
    elif told := _alarms(workspace, batch.id):
        notices.tell(workspace.settings, "ssclass.batch.unlike", f"ssclass.batch.{batch.id}", reason="; ".join(told))
    return ingested


def _alarms(workspace: Workspace, batch: str) -> list[str]:
    """What a batch that was taken in makes a person look at. It is in already: nothing fails for it."""
    try:
        version = workspace.at()
        return health.told_by(version.state, version.dataset, batch)
    except Exception as error:
        log.warning("%s: its health is not told (%s)", batch, error)
        return []


@task(persist_result=False)
def pending_key(folder: str) -> tuple[str, str] | None:
    """The commit and the decision key of the question that is to be answered; None when it is, or there is no data."""
    version = workspace_at(folder).at()
    key = keys.pending_key(version)
    return None if key is None else (version.commit or "", key)


@task(persist_result=False)
def check_key(folder: str, commit: str, key: str) -> None:
    """Stop where this machine would train something else than was asked for."""
    ours = keys.key_of(workspace_at(folder).at(commit))
    if ours != key:
        raise WorkspaceError(
            f"{key}: this machine's code ({code_digest()}) makes it {ours}; install the same ssclass on every worker"
        )


@outside("restore the result of {key}")
def restore_result(folder: str, key: str) -> str | None:
    """Take up a result that is finished and logged, here or in S3; the MLflow run, None when there is none."""
    workspace = workspace_at(folder)
    return publish.logged_run(workspace, key) if results.fetch(workspace, key) else None


def trains_elsewhere(folder: str) -> bool:
    """Whether the settings name a deployment that trains."""
    return workspace_at(folder).settings.train_deployment is not None


@outside("train {key}")
def train(folder: str, commit: str, key: str) -> None:
    """Train a candidate; score it and the champion on the held-out photos; keep the result in S3."""
    workspace = workspace_at(folder)
    results.fetch(workspace, key)
    training.train(workspace, workspace.at(commit), key, progress.report)
    results.keep(workspace, key)


@outside("log {key}")
def log_run(folder: str, commit: str, key: str) -> str:
    """Log the result to MLflow as a run without a decision; returns its id."""
    workspace = workspace_at(folder)
    return publish.log_run(workspace, workspace.at(commit), key)


@outside("decide {key}")
def decide(folder: str, key: str, run_id: str) -> Event:
    """Ask the gate, and make its answer the ledger's: one commit, pushed."""
    workspace = workspace_at(folder)
    event = decisions.decide(workspace, key, run_id)
    if event.body["decision"] == REJECTED:
        notices.tell(
            workspace.settings,
            "ssclass.model.rejected",
            f"ssclass.model.{key}",
            **{name: event.body[name] for name in ("reason", "candidate", "champion", "batches")},
        )
    return event


@outside()
def reconcile(folder: str) -> str | None:
    """Make MLflow say what the ledger says, and finish what a `forget` began; the champion's registered version.

    What cannot be deleted now is tried again by the next retrain: no decision fails for it.
    """
    workspace = workspace_at(folder)
    version = publish.reconcile(workspace)
    try:
        finish_forgetting(workspace, alone=True)
    except StoreError as error:
        log.warning("what was forgotten is not gone everywhere yet: %s", error)
    return version


@task(persist_result=False, task_run_name="tell the loop's health")
def tell_health(folder: str) -> None:
    """Have MLflow tell how the loop does. Nothing fails for it, and the next retrain makes it up."""
    try:
        loop.tell_health(workspace_at(folder))
    except Exception as error:
        redact(error)
        log.warning("the loop's health is not in MLflow yet; the next retrain writes it: %s", error)


@task(persist_result=False, task_run_name="export the champion")
def attach_exports(folder: str) -> None:
    """Have the champion in force exported, where it is not yet. The decision stands: nothing fails for it."""
    try:
        attached.attach_exports(workspace_at(folder))
    except Exception as error:
        redact(error)
        log.warning("the champion is not exported yet; the next retrain tries again: %s", error)


@outside()
def discard(folder: str, run_id: str) -> None:
    """Throw away the run of a result that another writer made superfluous, unless the ledger names it."""
    publish.discard(workspace_at(folder), run_id)


def tell_of_failure(folder: str, run: str, reason: str) -> None:
    """Tell people that a retrain ended without a decision."""
    settings = workspace_at(folder).settings
    notices.tell(settings, "ssclass.retrain.failed", f"ssclass.retrain.{run}", reason=reason[:1000])
