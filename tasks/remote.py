"""Have a Prefect deployment train, and wait for it: by a key, so that asking again finds the run that is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import task

from ssclass.errors import FailedError
from ssclass.workspace.workspace import Workspace
from tasks.retraining import restore_result, workspace_at

ATTEMPTS = 3  # trainings of one key that may crash or fail before the retrain gives up
POLL = 1.0  # seconds
AWAY = 600.0  # seconds that the Prefect server may be away: the worker goes on without it

T = TypeVar("T")


@task(task_run_name="train {key} elsewhere", persist_result=False)
def train_elsewhere(folder: str, commit: str, key: str) -> str:
    """Have a worker train; the MLflow run of the result, once it can be taken up."""
    return train(workspace_at(folder), commit, key, lambda: restore_result(folder, key))


def train(workspace: Workspace, commit: str, key: str, result: Callable[[], str | None]) -> str:
    """Run the training deployment until `result` finds what it leaves; FailedError after `ATTEMPTS` runs without.

    A retrain that was killed while it waited, and its successor, ask by the same key: the run is found, not doubled.
    Runs that had failed before we asked are passed over: what made them fail may be gone.
    """
    from prefect.deployments import run_deployment

    name = workspace.settings.train_deployment
    assert name is not None
    where = workspace.settings.git or workspace.origin
    said, tried, number = "", 0, 0
    while tried < ATTEMPTS:
        number += 1
        asked = f"{key}-{number}"

        def ask(asked: str = asked) -> Any:
            return run_deployment(
                name,
                parameters={"workspace": where, "key": key, "commit": commit},
                idempotency_key=asked,
                as_subflow=False,  # the child outlives us, and is nobody's but the key's
                timeout=0,
            )

        run = _patiently(ask)
        over = run.state is not None and run.state.is_final()
        state = run.state if over else _ended(run.id)
        if state.is_completed() and (run_id := result()) is not None:
            return run_id
        if not over:
            tried += 1
            said = f"{run.name}: {state.name}{f', {state.message}' if state.message else ''}"
    raise FailedError(
        f"training {key} by {name} failed {ATTEMPTS} times (last: {said}); see its logs in the Prefect UI"
    )


def _ended(run_id: Any) -> Any:
    """The final state of a flow run, once it has one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        while True:
            state = _patiently(lambda: client.read_flow_run(run_id).state)
            if state is not None and state.is_final():
                return state
            time.sleep(POLL)


def _patiently(call: Callable[[], T]) -> T:
    """What `call` gives; again while Prefect is away, or answers that it cannot now, for `AWAY` seconds."""
    import httpx
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    def passes(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code >= 500 or error.response.status_code == 429
        return isinstance(error, httpx.TransportError)

    retrying = Retrying(
        retry=retry_if_exception(passes), stop=stop_after_delay(AWAY), wait=wait_fixed(2 * POLL), reraise=True
    )
    return retrying(call)
