"""What garbage is, and that of MLflow: runs that nobody will decide on, models that nobody serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ssclass.retrain.challenger import challenger_key
from ssclass.retrain.key import key_of
from ssclass.tracking.client import DECISION_TAG, KEY_TAG, Tracking
from ssclass.workspace.ledger import PROMOTED
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

KINDS = ("DVC objects", "model artifacts", "unfinished runs", "features", "results", "quarantine", "local caches")


@dataclass(frozen=True)
class Garbage:
    """Something that nothing points at. `kind`: one of KINDS; `where`: its address, or its path; `size` in bytes."""

    kind: str
    where: str
    size: int
    drop: Callable[[], None]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"kind": self.kind, "where": self.where, "size": self.size}


def runs_and_models(workspace: Workspace, version: Version, before: datetime) -> Iterator[Garbage]:
    """Runs that nobody will decide on, and the models of those, of rejected candidates and of runs in the trash.

    Of decided runs the rest stays, with all that it tells. A run that the ledger or a registered version names is
    nobody's garbage.
    """
    tracking, state = Tracking.of(workspace), version.state
    named = {event.body["run_id"] for event in state.decisions.values()}
    kept = {*state.champions, challenger_key(state)}
    asked = key_of(version) if version.dataset.used else None
    with tracking.named():
        named |= {each.run_id for each in tracking.client.search_model_versions(f"name = '{tracking.name}'")}
        for run in tracking.all_runs():
            key, decided = run.data.tags.get(KEY_TAG), run.data.tags.get(DECISION_TAG)
            is_named, is_champion = run.info.run_id in named, key in kept
            if run.info.start_time >= before.timestamp() * 1000 or (is_champion and (is_named or decided is not None)):
                continue  # whatever became of the run of a champion or the challenger: the ledger says that it is one
            thrown = run.info.lifecycle_stage == "deleted" and not is_named
            left = not thrown and not is_named and decided is None and key is not None and key != asked
            if thrown or left or (decided is not None and decided != PROMOTED):
                for model in tracking.models_of(run).values():
                    yield _model(tracking, model)
            if left:
                yield _run(tracking, run)


def _run(tracking: Tracking, run: Any) -> Garbage:
    """A run without a decision, of a question that is decided or no longer asked: its worker was killed."""
    name = f"run {run.info.run_id} of {run.data.tags[KEY_TAG]}"
    return Garbage("unfinished runs", name, 0, lambda: tracking.discard(run.info.run_id))


def _model(tracking: Tracking, model: Any) -> Garbage:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    artifacts = get_artifact_repository(model.artifact_location)

    def size(folder: str | None = None) -> int:
        listed = artifacts.list_artifacts(folder)
        return sum(size(each.path) if each.is_dir else each.file_size or 0 for each in listed)

    def drop() -> None:
        with tracking.named():
            artifacts.delete_artifacts()
            tracking.client.delete_logged_model(model.model_id)

    return Garbage("model artifacts", f"{model.name} of run {model.source_run_id}", size(), drop)
