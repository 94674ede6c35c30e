"""Make MLflow say what the ledger says: a run for each result, decisions on their runs, champions, the alias."""

from __future__ import annotations

import logging
import uuid

from ssclass import notices
from ssclass.environment import private_folder
from ssclass.errors import DistrustedError, FailedError, SsclassError, StoreError, WorkspaceError
from ssclass.files import write_whole
from ssclass.pages.report import report
from ssclass.retrain import results
from ssclass.retrain.challenger import challenger
from ssclass.retrain.decide import ask_gate
from ssclass.retrain.predict import decided_classifier, result_folder
from ssclass.retrain.result import Result
from ssclass.retrain.train import contact_sheet
from ssclass.tracking.client import Tracking
from ssclass.tracking.report import card, model_card
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import PROMOTED, Event, State
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

log = logging.getLogger(__name__)

PAGE_TAG = "prefect_run"
"""The tag of a run in MLflow with the address of its retrain in Prefect."""
ROUNDS = 5
"""Champions that persons and other machines may put in force while the alias is set, one after the other."""


def log_run(workspace: Workspace, version: Version, key: str) -> str:
    """Log a result to MLflow as a run without a decision; its id. A run that has the result already is taken.

    Of a candidate that the gate would promote the whole model too: who trained it has its network in memory.
    """
    from ssclass.model.adopted import open_classifier

    if (logged := logged_run(workspace, key)) is not None:
        return logged
    tracking, folder = Tracking.of(workspace), result_folder(workspace, key)
    result = results.read(workspace, version, key)
    run_id = tracking.open_run(key, clone_id(workspace))
    params = version.params.model_dump(mode="json")
    tracking.log_result(run_id, result, params, folder / CANDIDATE, version.dataset.digest, contact_sheet(version))
    if ask_gate(version, result).decision == PROMOTED:
        tracking.log_model(run_id, key, result.data_version, open_classifier(folder / CANDIDATE))
    results.note_run(workspace, key, run_id)
    return run_id


def logged_run(workspace: Workspace, key: str) -> str | None:
    """The MLflow run that holds the result of a key; None when there is none, or it was thrown away."""
    run_id = results.noted_run(workspace, key)
    return run_id if any(run.info.run_id == run_id for run in Tracking.of(workspace).runs(key)) else None


def page_and_card(workspace: Workspace, key: str) -> tuple[str | None, str]:
    """The page of a decision's run on the MLflow server (None where there is no server), and its card, markdown."""
    tracking, event = Tracking.of(workspace), workspace.at().state.decisions[key]
    result = _result(workspace, key)
    text = f"# {event.body['decision']}: {event.body['reason']}\n" if result is None else card(result, event)
    return tracking.run_page(event.body["run_id"]), text


def link(workspace: Workspace, run_id: str, page: str) -> None:
    """Have a run in MLflow name the page of the retrain that made it."""
    tracking = Tracking.of(workspace)
    with tracking.named():
        tracking.client.set_tag(run_id, PAGE_TAG, page)


def discard(workspace: Workspace, run_id: str) -> None:
    """Throw away a run of ours whose question another writer answered, or changed; never one that the ledger names."""
    events = workspace.newest().state.decisions.values()
    if run_id not in {event.body["run_id"] for event in events}:
        Tracking.of(workspace).discard(run_id)


def clone_id(workspace: Workspace) -> str:
    """A name for this clone, made once: its own leftovers are told from other machines' work by it."""
    path = private_folder(workspace.settings) / "clone"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    return path.read_text()


def reconcile(workspace: Workspace) -> str | None:
    """Finish whatever a killed run, a rollback or a hand in MLflow left different; returns the champion's version.

    TrackingError when MLflow cannot be reached. Doing it again changes nothing.
    """
    tracking, state = Tracking.of(workspace), workspace.at().state
    if not state.decisions:
        return None
    cards = _conclude(workspace, tracking, state)
    before = tracking.alias()
    version, state = set_alias(workspace, tracking, state, cards)
    follow_challenger(workspace, tracking, state)
    if version is not None and version != before:
        told = state.decisions[state.champion or ""].body
        notices.tell(
            workspace.settings,
            "ssclass.model.promoted",
            f"ssclass.model.{told['key']}",
            version=version,
            **{name: told[name] for name in ("reason", "candidate", "champion", "batches")},
        )
    return version


def set_alias(
    workspace: Workspace, tracking: Tracking, state: State, cards: dict[str, str] | None = None
) -> tuple[str | None, State]:
    """Point the alias at the champion of origin's newest ledger; the champion's version, and that ledger's state.

    MLflow has no compare-and-set: origin is read again after the alias was set, until it says what the alias says.
    """
    for _ in range(ROUNDS):
        version = tracking.register(state, lambda key: decided_classifier(workspace, key), cards)
        if version is None:
            return None, state
        if tracking.alias() != version:
            tracking.set_alias(version)
        newest = _newest(workspace, state)
        if newest.champion == state.champion:
            return version, newest
        state = newest
    raise FailedError(
        f"{workspace.root}: the champion changed {ROUNDS} times while the alias was set; see who else does"
    )


def set_challenger(workspace: Workspace, tracking: Tracking, state: State) -> None:
    """Point the alias `challenger` at the ledger's challenger, or at nothing; where it is right nothing is written."""
    event = challenger(state)
    if tracking.challenger() != (event and event.body["key"]):
        tracking.set_challenger(event, lambda key: decided_classifier(workspace, key))


def follow_challenger(workspace: Workspace, tracking: Tracking, state: State) -> None:
    """The same, where more is at stake than the challenger: nothing fails for it, and the next retrain tries again."""
    try:
        set_challenger(workspace, tracking, state)
    except SsclassError as error:
        log.warning("the alias `challenger` is not as the ledger says: %s", error)


def _newest(workspace: Workspace, state: State) -> State:
    """The ledger as origin has it now; where a person's changes are in this folder's way, what we know of it."""
    try:
        return workspace.newest().state
    except WorkspaceError:
        return state


def _conclude(workspace: Workspace, tracking: Tracking, state: State) -> dict[str, str]:
    """Put each decision on its run unless it is there; descriptions for champions whose result this machine has."""
    from ssclass.tracking.client import DECISION_TAG

    open_runs = {str(run.info.run_id) for run in tracking.open_runs()}
    newest = next(reversed(state.decisions))
    cards = {}
    for key, event in state.decisions.items():
        if key != newest and event.body["run_id"] not in open_runs:
            continue
        result = _result(workspace, key)
        if result is not None and event.body["decision"] == PROMOTED:
            cards[key] = model_card(result, event, state.number_of(key))
        run = tracking.run_of(event)
        if run is not None and (DECISION_TAG not in run.data.tags or run.info.status == "RUNNING"):
            conclude(workspace, tracking, state, event, result, str(run.info.run_id))
    return cards


def conclude(
    workspace: Workspace, tracking: Tracking, state: State, event: Event, result: Result | None, run_id: str
) -> None:
    """Put a pushed decision on its run, with its report, and end the run. Whoever does it, the run says the same."""
    log_report(workspace, tracking, event, result, run_id)
    tracking.conclude(event, result, run_id, state.decided_until(event.body["key"]))


def log_report(workspace: Workspace, tracking: Tracking, event: Event, result: Result | None, run_id: str) -> None:
    """Put the report of a decision among the artifacts of its run, with the photos that may be shown now."""
    version = workspace.at()
    tracking.log_report(run_id, report(version, event, result).html(), version.data_version)


def _result(workspace: Workspace, key: str) -> Result | None:
    """The result of a decision; None where it cannot be had: a card less, the decision is told all the same."""
    try:
        return results.kept(workspace, key)
    except (StoreError, DistrustedError):
        return None
