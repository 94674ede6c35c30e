"""The bytes of a champion's models in MLflow: whether they can be fetched and are whole, and writing them anew."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssclass.retrain.predict import decided_classifier
from ssclass.tracking.client import CANDIDATE, MODEL, Tracking
from ssclass.tracking.packaged import broken
from ssclass.workspace.dvc import CANDIDATE as FOLDER
from ssclass.workspace.ledger import Event
from ssclass.workspace.objects import Tracked
from ssclass.workspace.workspace import Workspace


def damage(tracking: Tracking, model: Any, key: str, candidate: Collection[Tracked]) -> str | None:
    """What is wrong with a logged model of a decision; None when nothing is. `candidate`: its files, as DVC has them.

    The model `candidate` must be those files, by md5. Of the whole model the key and the sum that MLflow names are
    checked, and the sums inside its files, which is all that models of older versions have. TrackingError when MLflow
    cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with TemporaryDirectory() as folder, tracking.named():
        try:
            there = Path(get_artifact_repository(model.artifact_location).download_artifacts("", folder))
        except (MlflowException, OSError):
            return "its files cannot be fetched"
        return _other_files(there, candidate) if model.name == CANDIDATE else broken(there, key, model.tags)


def _other_files(there: Path, candidate: Collection[Tracked]) -> str | None:
    for each in candidate:
        path = there / each.path.removeprefix(f"{FOLDER}/")
        if not path.is_file():
            return f"{path.name} is gone"
        if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != each.md5:
            return f"{path.name} has other bytes than DVC's at run/…"
    return None


def restore(workspace: Workspace, tracking: Tracking, model: Any, event: Event) -> None:
    """Write the files of a logged model anew, from the candidate in DVC; StoreError where that is gone too."""
    key = event.body["key"]
    if model.name == MODEL:
        tracking.restore_model(model, key, event.body["data_version"], decided_classifier(workspace, key))
        return
    with TemporaryDirectory() as folder:
        workspace.decided(key).copy(FOLDER, Path(folder))
        with tracking.named():
            tracking.client.log_model_artifacts(model.model_id, folder)


def mend_models(workspace: Workspace, tracking: Tracking, event: Event) -> list[str]:
    """Write anew whatever is damaged of a champion's logged models; their names."""
    key = event.body["key"]
    run = tracking.run_of(event)
    if run is None:
        return []
    files = workspace.decided(key).files(FOLDER)
    mended = []
    for model in tracking.models_of(run).values():
        if damage(tracking, model, key, files) is not None:
            restore(workspace, tracking, model, event)
            mended.append(str(model.name))
    return mended
