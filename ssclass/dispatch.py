"""Have a Prefect deployment train, and wait for it: by a key, so that asking again finds the run that is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ssclass.errors import FailedError
from ssclass.workspace import Workspace

ATTEMPTS = 3  # trainings of one key that may crash or fail before the retrain gives up
POLL = 3.0  # seconds


def train(workspace: Workspace, key: str, adopt: Callable[[], str | None]) -> str:
    """Run the training deployment until `adopt` finds its result; FailedError after `ATTEMPTS` runs without one.

    A retrain that was killed while it waited, and its successor, ask by the same key: the run is found, not doubled.
    """
    from prefect.deployments import run_deployment

    settings = workspace.settings
    name = settings.train_deployment
    assert name is not None
    where = settings.git or workspace.git("remote", "get-url", "origin")
    said = ""
    for attempt in range(1, ATTEMPTS + 1):
        run: Any = run_deployment(
            name,
            parameters={"workspace": where, "key": key, "commit": workspace.head},
            idempotency_key=f"{key}-{workspace.state().champion or 'first'}-{attempt}",
            as_subflow=False,  # the child outlives us, and is nobody's but the key's
            timeout=0,
        )
        state = _wait(run.id)
        if state.is_completed() and (run_id := adopt()) is not None:
            return run_id
        said = f"{run.name}: {state.name}{f', {state.message}' if state.message else ''}"
    raise FailedError(
        f"training {key} by {name} failed {ATTEMPTS} times (last: {said}); see its logs in the Prefect UI"
    )


def _wait(run_id: Any) -> Any:
    """The final state of a flow run. A Prefect server that is away is waited for: the worker goes on without it."""
    import httpx
    from prefect.client.orchestration import get_client

    while True:
        try:
            with get_client(sync_client=True) as client:
                while True:
                    state = client.read_flow_run(run_id).state
                    if state is not None and state.is_final():
                        return state
                    time.sleep(POLL)
        except httpx.TransportError:
            time.sleep(POLL)
