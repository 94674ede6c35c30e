"""Finished results in S3, ``results/<decision key>/``: one machine trains, another decides, nobody trains twice.

``result.json`` is written after the files it speaks of, ``run.json`` (the MLflow run) after the run is complete;
each says by being there that what it stands for is done. What comes from there is not believed: names are checked
before anything is written, and `check` holds the answers against the data set.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from ssclass.errors import FailedError
from ssclass.retrain.predict import result_folder
from ssclass.retrain.result import RESULT, Result, label_index
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

RUN, METRICS = "run.json", "metrics.json"
_FILE = re.compile(rf"{METRICS}|{CANDIDATE}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,99}}")


def keep(workspace: Workspace, key: str) -> None:
    """Put this machine's result into S3. Doing it again changes nothing."""
    store, folder = workspace.store, result_folder(workspace, key)
    candidate = sorted(path.relative_to(folder) for path in (folder / CANDIDATE).rglob("*") if path.is_file())
    for name in (*candidate, Path(METRICS), Path(RESULT)):
        store.put(f"results/{key}/{name.as_posix()}", (folder / name).read_bytes())


def fetch(workspace: Workspace, key: str) -> bool:
    """Bring a result from S3 to this machine unless it is here; whether it is here now.

    FailedError names an object that has no business there: nothing is written then.
    """
    store, folder, prefix = workspace.store, result_folder(workspace, key), f"results/{key}/"
    if (folder / RESULT).exists():
        return True
    last = store.get(prefix + RESULT)
    if last is None:
        return False
    names = [listed.key.removeprefix(prefix) for listed in store.list(prefix)]
    files = [name for name in names if name not in (RESULT, RUN, "")]
    for name in files:
        if not _FILE.fullmatch(name):
            raise FailedError(
                f"s3://{store.bucket}/{prefix}{name!a}: no file of a result has this name; find out who writes to "
                "results/, "
                "and delete it"
            )
    partial = folder.with_name(f"{key}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in files:
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(prefix + name) or b"")
    (partial / RESULT).write_bytes(last)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return True


def read(workspace: Workspace, version: Version, key: str) -> Result:
    """The result of a decision key on this machine, held against the version that it is of.

    FailedError when it is of other photos, other labels, or another champion; it is thrown away then, and the next
    retrain trains anew.
    """
    folder = result_folder(workspace, key)
    result = Result.read(folder / RESULT)
    wrong = difference(result, version, key)
    if wrong is not None:
        shutil.rmtree(folder)
        raise FailedError(f"results/{key}/: {wrong}; it was thrown away here, `ssclass retrain` trains anew")
    return result


def difference(result: Result, version: Version, key: str) -> str | None:
    """What of a result is not what its version says, in words; None when all is."""
    classes, rows = version.params.dataset.classes, version.dataset.holdout
    if result.key != key:
        return f"it is the result of {result.key}"
    if result.classes != tuple(classes):
        return "its classes are not those of params.yaml"
    if result.holdout != tuple(row.sha256 for row in rows):
        return "the scored photos are not the held-out split of this data version"
    if not np.array_equal(result.candidate.labels, label_index(rows, classes)):
        return "its labels are not those of the data set"
    if result.champion_key != version.state.champion:
        return "it was compared with another champion"
    return None


def note_run(workspace: Workspace, key: str, run_id: str) -> None:
    """Say in S3 which MLflow run holds the result; only once it does."""
    workspace.store.put(f"results/{key}/{RUN}", json.dumps({"run_id": run_id}).encode())


def noted_run(workspace: Workspace, key: str) -> str | None:
    """The MLflow run that S3 says holds the result; None when it names none."""
    found = workspace.store.get(f"results/{key}/{RUN}", limit=10_000)
    try:
        return None if found is None else str(json.loads(found)["run_id"])
    except (ValueError, KeyError, TypeError):
        return None
