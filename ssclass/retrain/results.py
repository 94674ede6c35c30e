"""Finished results in S3, ``results/<decision key>/``: one machine trains, another decides, nobody trains twice.

``result.json`` is written after the files it speaks of, ``run.json`` (the MLflow run) after the run is complete;
each says by being there that what it stands for is done.
"""

from __future__ import annotations

import json
from pathlib import Path

from ssclass.files import write_whole
from ssclass.retrain.train import result_folder
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.workspace import Workspace

RESULT, RUN = "result.json", "run.json"


def keep(workspace: Workspace, key: str) -> None:
    """Put this machine's result into S3. Again: the same."""
    store, folder = Store(workspace.settings), result_folder(workspace, key)
    candidate = sorted(path.relative_to(folder) for path in (folder / CANDIDATE).rglob("*") if path.is_file())
    for name in (*candidate, Path("metrics.json"), Path(RESULT)):
        store.put(f"results/{key}/{name.as_posix()}", (folder / name).read_bytes())


def fetch(workspace: Workspace, key: str) -> bool:
    """Bring a result from S3 to this machine unless it is here; whether it is here now."""
    store, folder = Store(workspace.settings), result_folder(workspace, key)
    if (folder / RESULT).exists():
        return True
    last = store.get(f"results/{key}/{RESULT}")
    if last is None:
        return False
    for listed in store.list(f"results/{key}/"):
        name = listed.key.removeprefix(f"results/{key}/")
        if name not in (RESULT, RUN):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(listed.key) or b"")
    write_whole(folder / RESULT, last)
    return True


def note_run(workspace: Workspace, key: str, run_id: str) -> None:
    """Say in S3 which MLflow run holds the result; only once it does."""
    Store(workspace.settings).put(f"results/{key}/{RUN}", json.dumps({"run_id": run_id}).encode())


def logged_run(workspace: Workspace, key: str) -> str | None:
    """The MLflow run that holds the result; None when there is none, or it was thrown away."""
    found = Store(workspace.settings).get(f"results/{key}/{RUN}")
    if found is None:
        return None
    run_id = str(json.loads(found)["run_id"])
    return run_id if any(run.info.run_id == run_id for run in Tracking(workspace.settings).runs(key)) else None
