"""Make MLflow say what the ledger says: the newest decision on its run, the champions in the registry, the alias."""

from __future__ import annotations

from ssclass.notices import tell
from ssclass.retrain.train import Result, champion_classifier, result_folder
from ssclass.tracking.client import DECISION_TAG, Tracking
from ssclass.tracking.report import model_card
from ssclass.workspace.ledger import PROMOTED, Event
from ssclass.workspace.workspace import Workspace


def reconcile(workspace: Workspace) -> str | None:
    """Finish whatever a killed run, a rollback or a hand in MLflow left different; returns the champion's version.

    TrackingError when MLflow cannot be reached. Doing it again changes nothing.
    """
    tracking, state = Tracking(workspace.settings), workspace.state()
    if not state.decisions:
        return None
    event = list(state.decisions.values())[-1]
    result = _conclude(workspace, tracking, event)
    cards = {}
    if result is not None and event.body["decision"] == PROMOTED:
        cards = {result.key: model_card(result, event, state.number_of(result.key))}
    before = tracking.alias()
    version = tracking.reconcile(state, lambda key: champion_classifier(workspace, key), cards)
    if version is not None and version != before:
        told = state.decisions[state.champion or ""].body
        tell(
            workspace.settings,
            "ssclass.model.promoted",
            f"ssclass.model.{told['key']}",
            version=version,
            **{name: told[name] for name in ("reason", "candidate", "champion", "batches")},
        )
    return version


def _conclude(workspace: Workspace, tracking: Tracking, event: Event) -> Result | None:
    """Put the newest decision on its run unless it is there; the result, where this machine has it."""
    key = event.body["key"]
    path = result_folder(workspace, key) / "result.json"
    result = Result.read(path) if path.exists() else None
    run = tracking.run_of(event)
    if run is not None and DECISION_TAG not in run.data.tags:
        tracking.conclude(event, result, str(run.info.run_id))
    return result
