"""The exports of the champion in force, beside it in MLflow: made after its promotion, checked, or refused.

No decision waits for them or fails by them: it is pushed, and the alias set, before one is made, and each is made in a
process of its own, as a converter may take much memory, hang or crash. An export is there once its tag is, which is
set last; what was killed half-way is made again by the next retrain, and so is what `ssclass verify` finds damaged.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssclass.environment import private_folder, quiet_libraries, temporary_folder
from ssclass.errors import FailedError, InputError, SsclassError, StoreError, TrackingError
from ssclass.secrets import without_secrets
from ssclass.serving.checked import export_model
from ssclass.serving.model import open_model
from ssclass.settings import load_settings
from ssclass.tracking.client import KEY_TAG, Tracking
from ssclass.tracking.exports import ATTACHED, FOLDER, REFUSED, SKIPPED, SUM_TAG, TAG, failures, lacking, pending
from ssclass.tracking.packaged import files_sum
from ssclass.workspace.workspace import Workspace

LIMIT = 1800.0  # seconds for one export; on a busy machine it takes one or two hundred
AWAY = 75  # exit code of a process that found a service away: the next retrain tries again
PROGRAM = (sys.executable, "-P", "-m", "ssclass.serving.attached")

log = logging.getLogger(__name__)


def attach_exports(workspace: Workspace) -> list[str]:
    """Make what the settings ask for of the champion in force and is not there; names of what was looked into.

    TrackingError when MLflow is away. Where another process in this folder does it, nothing happens.
    """
    from filelock import FileLock, Timeout

    tracking, state = Tracking.of(workspace), workspace.at().state
    version = tracking.version_of(state.champion) if state.champion else None
    if version is None:
        return []
    try:
        with FileLock(private_folder(workspace.settings) / "exports.lock", timeout=0):
            names = pending(workspace.settings, version.tags)
            for name in names:
                _attach(workspace, tracking, version, name)
            return names
    except Timeout:
        return []


def _attach(workspace: Workspace, tracking: Tracking, version: Any, name: str) -> None:
    """Make one export in a process of its own, and note on the version what became of it."""
    if (package := lacking(name)) is not None:
        remedy = f"`pip install {package}` where retrains run, or leave {name} out of exports in ssclass.toml"
        _say(tracking, version, name, f"{SKIPPED}: {package} is not installed; {remedy}")
        return
    code, said = _in_a_process(workspace, str(version.version), name)
    if code == AWAY:
        log.warning("version %s: %s is not exported yet: %s", version.version, name, said)
    elif code:
        times = failures(version.tags.get(f"{TAG}{name}")) + 1
        told = f"failed {times} time{'s' if times > 1 else ''}: {without_secrets(said) or 'no word'} (exit code {code})"
        log.warning("version %s: export %s %s", version.version, name, told)
        _say(tracking, version, name, told)


def _in_a_process(workspace: Workspace, number: str, name: str) -> tuple[int, str]:
    """Run :func:`main` in a process of its own; its exit code, and the last line of what it said."""
    command = [*PROGRAM, str(workspace.root), number, name]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return -9, f"not done within {LIMIT:.0f} s"
    return done.returncode, done.stderr.strip().rpartition("\n")[2]


def make(workspace: Workspace, number: str, name: str) -> None:
    """Export a registered version, and attach that to it, or note why it is refused.

    StoreError or TrackingError when S3 or MLflow is away: then nothing is noted.
    """
    tracking = Tracking.of(workspace)
    with tracking.named():
        version = tracking.client.get_model_version(tracking.name, number)
    kind, _, dtype = name.partition("-")
    with temporary_folder(workspace.settings) as scratch:
        folder = scratch / name
        try:
            made = export_model(workspace, open_model(number, workspace.settings), kind, dtype, folder, _quietly)
        except (StoreError, TrackingError):
            raise
        except (FailedError, InputError) as error:
            _say(tracking, version, name, f"{REFUSED}: {error}")
            return
        with tracking.named():
            # What an earlier try, or a stranger, left there would make its sum another.
            tracking.erase(tracking.client.get_run(version.run_id), f"{FOLDER}/{name}")
            tracking.client.log_artifacts(version.run_id, str(folder), f"{FOLDER}/{name}")
            tracking.client.set_model_version_tag(tracking.name, number, f"{TAG}{name}{SUM_TAG}", files_sum(folder))
    _say(tracking, version, name, f"{ATTACHED}: {summary(made)}")  # last: all of it is there


def summary(made: dict[str, Any]) -> str:
    """Size, and how far an export is from its model on the held-out photos, in words; `made`: its model.json."""
    found = made["check"]
    points = 100 * (found["right"] - found["model_right"]) / found["photos"]
    return (
        f"{found['bytes'] / 1e6:.1f} MB, accuracy {points:+.1f} points on {found['photos']} held-out photos, "
        f"probabilities within {found['largest_difference']:.1g}"
    )


def fetch(tracking: Tracking, version: Any, name: str, folder: Path) -> dict[str, Any] | None:
    """Copy an attached export into a new folder; its model.json, or None where there is none, or it is damaged."""
    from mlflow.exceptions import MlflowException

    if not version.tags.get(f"{TAG}{name}", "").startswith(ATTACHED):
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch, tracking.named():
        try:
            there = Path(tracking.client.download_artifacts(version.run_id, f"{FOLDER}/{name}", scratch))
        except (MlflowException, OSError):
            return None
        if files_sum(there) != version.tags.get(f"{TAG}{name}{SUM_TAG}"):
            return None
        made: dict[str, Any] = json.loads((there / "model.json").read_text(encoding="utf-8"))
        if made["decision_key"] != version.tags.get(KEY_TAG):
            return None
        shutil.move(there, folder)
    return made


def attached_to(workspace: Workspace, asked: str, name: str, folder: Path) -> dict[str, Any] | None:
    """The export that is attached to a version or to what an alias names, in a new folder; None where there is none."""
    from mlflow.exceptions import MlflowException

    if folder.exists() or Path(asked).is_dir():
        return None
    tracking = Tracking.of(workspace)
    with tracking.named():
        try:
            version = (
                tracking.client.get_model_version(tracking.name, asked)
                if asked.isdigit()
                else tracking.client.get_model_version_by_alias(tracking.name, asked)
            )
        except MlflowException:
            return None
    return fetch(tracking, version, name, folder)


def attach_anew(workspace: Workspace, tracking: Tracking, number: str, name: str) -> None:
    """Make an attached export again, whose files are damaged or gone. FailedError where it is not there afterwards."""
    with tracking.named():
        tracking.client.delete_model_version_tag(tracking.name, number, f"{TAG}{name}")
        version = tracking.client.get_model_version(tracking.name, number)
    _attach(workspace, tracking, version, name)
    with tracking.named():
        said = tracking.client.get_model_version(tracking.name, number).tags.get(f"{TAG}{name}", "")
    if not said.startswith(ATTACHED):
        raise FailedError(f"version {number}: {name} could not be made anew ({said or 'a service is away'})")


def _say(tracking: Tracking, version: Any, name: str, told: str) -> None:
    if version.tags.get(f"{TAG}{name}") != told[:5000]:
        with tracking.named():
            tracking.client.set_model_version_tag(tracking.name, version.version, f"{TAG}{name}", told[:5000])


def _quietly(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def main(folder: str, number: str, name: str) -> int:
    """Make one export of a workspace's version, in this process."""
    os.nice(10)  # what decides and serves goes first
    from filelock import FileLock, Timeout

    workspace = Workspace(load_settings(Path(folder)))
    quiet_libraries(workspace.settings)
    try:
        # The process of a retrain that was killed goes on: two would mix their files.
        with FileLock(private_folder(workspace.settings) / "export.lock", timeout=0):
            make(workspace, number, name)
    except Timeout:
        print("another process still exports; the next retrain looks again", file=sys.stderr)
        return AWAY
    except SsclassError as error:
        print(error, file=sys.stderr)
        return AWAY
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
