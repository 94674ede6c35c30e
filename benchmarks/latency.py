"""From a batch's marker to a decision, on a stack of its own: `python -m benchmarks.latency [BATCHES]`, default 7.

Prints JSON: medians, in seconds, over the batches after the first (which also computes what later ones remember).
Drawings, 16 a batch, the linear head: what is measured is the way, not the training.
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

import requests

from ssclass.batches import list_batches
from ssclass.drawings import draw
from ssclass.settings import load_settings
from ssclass.stack.origin import Origin
from ssclass.store import Store


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
        finally:
            ssclass("down", "--workspace", workspace)
    medians = {name: round(statistics.median(each[name] for each in found[1:]), 1) for name in found[0]}
    print(json.dumps({"batches": batches - 1, "cpus": os.cpu_count(), "median_seconds_from_marker": medians}, indent=1))


def measure(workspace: Path, batch: str, seed: int) -> dict[str, float]:
    """Seconds from a batch's marker to its run, the end of its training, its decision."""
    photos = workspace.parent / batch
    draw(photos, ("sandwich", "sushi"), 8, seed)
    ssclass("submit", photos, "--id", batch, "--workspace", workspace)
    settings = load_settings(workspace)
    (marker,) = (seconds(ref.time) for ref in list_batches(Store(settings)) if ref.id == batch)
    while True:
        decided = [
            event for event in Origin(settings).state().decisions.values() if batch in event.body.get("batches", ())
        ]
        if decided:
            break
        time.sleep(0.2)

    def last(flow: str) -> dict[str, str]:
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC", "limit": 1}
        return dict(requests.post(f"{settings.prefect_url}/flow_runs/filter", json=body, timeout=10).json()[0])

    retrain, train = last("retrain"), last("train")
    found = {
        "run made": seconds(retrain["created"]) - marker,
        "run started": seconds(retrain["start_time"]) - marker,
        "training started": seconds(train["start_time"]) - marker,
        "training ended": seconds(train["end_time"]) - marker,
        "decision": seconds(decided[0].at) - marker,
    }
    print(f"{batch}: { ({name: round(value, 1) for name, value in found.items()}) }", file=sys.stderr, flush=True)
    while not last("retrain")["end_time"]:
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
