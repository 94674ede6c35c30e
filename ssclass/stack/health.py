"""How the stack and the loop are: what `ssclass status` says besides champion and data."""

from __future__ import annotations

import re
from typing import Any

from ssclass.environment import prefect_login
from ssclass.names import RETRAIN, deployment_of, pool_of
from ssclass.secrets import without_secrets
from ssclass.settings import Settings
from ssclass.stack.manager import Manager
from ssclass.stack.parts import WORKERS, online
from ssclass.started import away
from ssclass.text import shown

PATIENCE = 5.0  # seconds for a server to answer


def loop(settings: Settings) -> dict[str, Any]:
    """Parts by name with their state, and the last and next retrain. A part that is away is said to be, not raised."""
    found: dict[str, Any] = {"parts": Manager(settings).states()}
    if settings.prefect_url is None:
        return found
    import requests

    pools = [pool_of(settings, called) for called in WORKERS.values()]

    def runs(states: list[str], order: str) -> list[Any]:
        body: dict[str, Any] = {
            "deployments": {"name": {"any_": [deployment_of(settings, RETRAIN)]}},
            "flows": {"name": {"any_": [RETRAIN]}},
            "flow_runs": {"state": {"type": {"any_": states}}},
            "sort": order,
            "limit": 1,
        }
        answer = requests.post(
            f"{settings.prefect_url}/flow_runs/filter", json=body, headers=prefect_login(), timeout=PATIENCE
        )
        answer.raise_for_status()
        return list(answer.json())

    try:
        last = runs(["COMPLETED", "FAILED", "CRASHED", "RUNNING", "CANCELLED"], "START_TIME_DESC")
        coming = runs(["SCHEDULED"], "EXPECTED_START_TIME_ASC")
        workers = {pool: len(online(settings.prefect_url, pool)) for pool in pools}
    except requests.RequestException as error:
        otherwise = f"away ({type(error).__name__}); `ssclass up` starts one, or correct prefect_url"
        found["prefect"] = away(settings, "prefect_url") or otherwise
        return found
    found["workers"] = workers
    found["last"] = _brief(last[0]) if last else None
    found["next"] = coming[0]["expected_start_time"] if coming else None
    return found


def _brief(run: dict[str, Any]) -> dict[str, Any]:
    """What people ask of a retrain: its state's name, when it started, and why it failed where it did."""
    state = run["state"]
    why = None
    if state["type"] in ("FAILED", "CRASHED"):
        said = str(state.get("message") or "no message")
        why = re.sub(r"^Flow run encountered an exception: (\w+: )?", "", said)
    return {"state": state["name"], "started": run["start_time"], "why": why and without_secrets(why)}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    said = []
    if found["parts"]:
        said.append("stack      " + ", ".join(f"{name} {state.lower()}" for name, state in found["parts"].items()))
        said += [
            f"           {name} does not stay up; see .ssclass/stack/logs/{name}.log"
            for name, state in found["parts"].items()
            if state in ("BACKOFF", "FATAL")
        ]
    if "prefect" in found:
        said.append(f"prefect    {found['prefect']}")
    if "workers" in found:
        last, coming = found["last"], found["next"]
        told = f"last {last['state'].lower()}, {_minute(last['started'])}" if last else "none yet"
        said.append(f"retrains   {told}; next {_minute(coming)}" if coming else f"retrains   {told}; none is scheduled")
        if last and last["why"]:
            said.append(f"           it {last['state'].lower()}: {shown(last['why'], 500)}")
        for pool, online in found["workers"].items():
            if not online:
                said.append(f"workers    none online in pool {pool}; start one: prefect worker start --pool {pool}")
    return said


def _minute(time: str | None) -> str:
    return (time or "not started")[:16].replace("T", " ") + (" UTC" if time else "")
