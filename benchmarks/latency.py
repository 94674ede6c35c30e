"""From a batch's marker to a decision, on a stack of its own: `python -m benchmarks.latency [BATCHES]`, default 7.

Prints JSON: medians, in seconds, over the batches after the first (which also computes what later ones remember),
each delivered once the one before is decided and no event is held back any more; then ten batches at once, and runs
that have nothing to learn. Drawings, 16 a batch, the linear head: what is measured is the way, not the training.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
from tenacity import retry, stop_after_delay, wait_fixed

from ssclass.data.batches import list_batches
from ssclass.demo.drawings import draw
from ssclass.environment import logins
from ssclass.settings import Settings, load_settings
from ssclass.stack.listening import QUIET
from ssclass.store import Store
from ssclass.workspace.origin import Origin


def ssclass(*arguments: str | Path) -> None:
    """Run a command, quietly."""
    subprocess.run([sys.executable, "-m", "ssclass", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def seconds(text: str) -> float:
    """ISO 8601 as seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def main(batches: int) -> None:
    """Deliver batch after batch, each once the one before is decided."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        ssclass("init", workspace)
        params = workspace / "params.yaml"
        params.write_text(params.read_text().replace("head: auto", "head: linear"))
        for git in (["commit", "-qam", "A quick head"], ["push", "-q", "origin", "main"]):
            subprocess.run(["git", "-C", str(workspace), *git], check=True)
        began = time.monotonic()
        ssclass("up", "--detach", "--workspace", workspace)
        print(f"stack up in {time.monotonic() - began:.0f} s", file=sys.stderr)
        try:
            found = [measure(workspace, f"batch-{number}", number) for number in range(batches)]
            crowd = burst(workspace)
            skipped = statistics.median(nothing_new(workspace) for _ in range(3))
        finally:
            ssclass("down", "--workspace", workspace)
    medians = {name: round(statistics.median(each[name] for each in found[1:]), 1) for name in found[0]}
    result = {"batches": batches - 1, "cpus": os.cpu_count(), "median_seconds_from_marker": medians, "burst": crowd}
    result |= {"seconds_of_a_skipped_run": round(skipped, 1)}
    print(json.dumps(result, indent=1))


def burst(workspace: Path, batches: int = 10) -> dict[str, float]:
    """Deliver batches one straight after the other; seconds from the first marker to the last decision, trainings."""
    settings, names = load_settings(workspace), [f"burst-{number}" for number in range(batches)]
    before = len(runs(settings, "train"))
    for number, name in enumerate(names):
        draw(workspace.parent / name, ("sandwich", "sushi"), 8, 500 + number)
        ssclass("submit", workspace.parent / name, "--id", name, "--workspace", workspace)
    markers = [seconds(ref.time) for ref in list_batches(Store(settings)) if ref.id in names]
    decided = {name: decision(settings, name) for name in names}
    return {
        "batches": batches,
        "seconds_to_deliver": round(max(markers) - min(markers), 1),
        "seconds_to_last_decision": round(max(decided.values()) - min(markers), 1),
        "trainings": len(runs(settings, "train")) - before,
    }


def nothing_new(workspace: Path) -> float:
    """Seconds of a retrain that has nothing to learn, from the beginning of the flow to its end."""
    settings = load_settings(workspace)
    while not runs(settings, "retrain")[0]["end_time"]:
        time.sleep(0.2)
    deployment = api(settings, "deployments/name/retrain/retrain")["id"]
    made = api(settings, f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]
    while True:
        for run in runs(settings, "retrain"):
            if run["id"] == made and run["end_time"]:
                return seconds(run["end_time"]) - seconds(run["start_time"])
        time.sleep(0.2)


def decision(settings: Settings, batch: str) -> float:
    """When a batch was decided on, once it is."""
    while True:
        for event in Origin(settings).state().decisions.values():
            if batch in event.body["batches"]:
                return seconds(event.at)
        time.sleep(0.2)


def runs(settings: Settings, flow: str) -> list[dict[str, str]]:
    """The flow's runs that have begun, newest first."""
    begun = {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED"]}}
    body = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": begun}, "sort": "START_TIME_DESC"}
    return list(api(settings, "flow_runs/filter", body))


@retry(stop=stop_after_delay(60), wait=wait_fixed(0.5), reraise=True)
def api(settings: Settings, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask Prefect, again while it is busy; with a body by POST."""
    url = f"{settings.prefect_url}/{path}"
    known = logins(settings)["prefect"]
    how: dict[str, Any] = {"auth": (known["user"], known["password"]), "timeout": 10}
    answer = requests.get(url, **how) if body is None else requests.post(url, json=body, **how)
    answer.raise_for_status()
    return answer.json()


def measure(workspace: Path, batch: str, seed: int) -> dict[str, float]:
    """Seconds from a batch's marker to its run, the end of its training, its decision."""
    photos = workspace.parent / batch
    draw(photos, ("sandwich", "sushi"), 8, seed)
    ssclass("submit", photos, "--id", batch, "--workspace", workspace)
    settings = load_settings(workspace)
    (marker,) = (seconds(ref.time) for ref in list_batches(Store(settings)) if ref.id == batch)
    decided = decision(settings, batch)
    retrain, train = runs(settings, "retrain")[0], runs(settings, "train")[0]
    found = {
        "run made": seconds(retrain["created"]) - marker,
        "run started": seconds(retrain["start_time"]) - marker,
        "training started": seconds(train["start_time"]) - marker,
        "training ended": seconds(train["end_time"]) - marker,
        "decision": decided - marker,
    }
    print(f"{batch}: { ({name: round(value, 1) for name, value in found.items()}) }", file=sys.stderr, flush=True)
    time.sleep(max(0.0, marker + QUIET + found["run made"] - time.time()))  # else the next would wait for that
    while not runs(settings, "retrain")[0]["end_time"]:
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
