"""The champion as a service answers with it: found by its alias, verified, opened, and warm.

MLflow's alias says which version it is. Whether that may answer, the ledger says: the version must be that of a
decision which promoted it, and its files those that were logged for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssclass.data.shapes import Size
from ssclass.errors import NotFoundError, SsclassError, TrackingError
from ssclass.model.engine import Engine, probe_images
from ssclass.serving.model import open_folder, read_about
from ssclass.serving.quick import open_quick
from ssclass.tracking.client import ALIAS, CANDIDATE, KEY_TAG, MODEL, Tracking
from ssclass.tracking.glance import Named
from ssclass.tracking.packaged import broken
from ssclass.workspace.ledger import State
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Champion:
    """A champion that answers. `sure`: the probability from which on its answer is sure; None where nothing says it.

    `unsure_share`: the share of its answers in cross-validation that were not sure.
    """

    name: str
    named: Named
    classes: tuple[str, ...]
    engine: Engine
    sure: float | None
    unsure_share: float | None = None

    @property
    def size(self) -> Size:
        """What photos are decoded to."""
        return self.engine.size


def named(tracking: Tracking) -> Named | None:
    """The version that the alias points at; None when there is no model or no alias. TrackingError."""
    from mlflow.exceptions import MlflowException

    with tracking.named():
        try:
            found = tracking.client.get_model_version_by_alias(tracking.name, ALIAS)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return Named(str(found.version), str(found.tags.get(KEY_TAG, "")), str(found.run_id))


def open_champion(workspace: Workspace, tracking: Tracking, asked: Named) -> Champion:
    """Verify a version and open it, ready to answer at full speed.

    NotFoundError says why it must not answer; TrackingError when MLflow cannot be reached.
    """
    who = f"version {asked.version} of {tracking.name}"
    event = _state(workspace, asked.key).decisions.get(asked.key)
    if event is None or asked.key not in _state(workspace, asked.key).champions:
        raise NotFoundError(
            f"{who}: the ledger has no decision {asked.key or '(none is named)'} that promoted it; `ssclass rebuild` "
            "makes the registry say what the ledger says"
        )
    with TemporaryDirectory() as scratch, tracking.named():
        run = tracking.run_of(event)
        models = tracking.models_of(run) if run is not None else {}
        if MODEL not in models:
            raise NotFoundError(f"{who}: its run has no model; `ssclass rebuild` makes it anew")
        folder = _fetched(models[MODEL], Path(scratch) / MODEL)
        if (wrong := broken(folder, asked.key, models[MODEL].tags)) is not None:
            raise NotFoundError(f"{who}: {wrong}; `ssclass verify --repair` writes it anew")
        _, classes, size, _ = read_about(folder)
        engine = _quick(workspace, asked.key, classes, size)
        if engine is None:
            engine = open_folder(who, folder).engine
        sure, unsure = _sure(models.get(CANDIDATE), Path(scratch) / CANDIDATE)
    engine.predict(probe_images(size)[:1])
    return Champion(tracking.name, asked, classes, engine, sure, unsure)


def _quick(workspace: Workspace, key: str, classes: tuple[str, ...], size: Size) -> Engine | None:
    """The engine of what was trained, in a runtime; None where there is none here: the registered model has all."""
    try:
        quick = open_quick(workspace, key)
    except SsclassError:
        return None
    return quick.engine if quick is not None and (quick.classes, quick.engine.size) == (classes, size) else None


def _state(workspace: Workspace, key: str) -> State:
    """The ledger as this clone has it, or where that does not know the decision yet, as origin has it."""
    state = workspace.at().state
    if key in state.champions:
        return state
    try:
        return workspace.newest().state
    except SsclassError:  # origin is away: what is known here counts
        return state


def _fetched(model: Any, folder: Path) -> Path:
    """The files of a logged model, copied: what is verified is what is opened."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder.mkdir()
    try:
        return Path(get_artifact_repository(model.artifact_location).download_artifacts("", str(folder)))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"the files of {model.name} {model.model_id} cannot be fetched ({error})") from error


def _sure(candidate: Any, folder: Path) -> tuple[float | None, float | None]:
    """From which probability on an answer is sure, and the share that is not, as training noted by cross-validation."""
    if candidate is None:
        return None, None
    try:
        record = json.loads((_fetched(candidate, folder) / "training.json").read_text(encoding="utf-8"))
        share = record["sure"].get("share")
        return float(record["sure"]["threshold"]), None if share is None else 1 - float(share)
    except (TrackingError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None
