"""`ssclass report`: the page of any decision, made from what is still there of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssclass.errors import NotFoundError, StoreError
from ssclass.files import write_whole
from ssclass.history.lineage import decision_key
from ssclass.pages.report import report
from ssclass.retrain import results
from ssclass.retrain.predict import Progress, silent
from ssclass.retrain.result import Result
from ssclass.tracking.client import Tracking
from ssclass.upkeep.rebuild import recalled
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Report:
    """A report that was written: of which decision, and where it lies. `data_version`: whose photos it shows."""

    key: str
    decision: str
    path: Path
    data_version: str


def write(workspace: Workspace, name: str | None, path: Path | None, progress: Progress = silent) -> Report:
    """Write the report of a decision (default: the last) to a file; NotFoundError when it is no decision.

    What both models answered is taken from here or from S3; where neither has it, they are asked again.
    """
    version = workspace.at()
    state = version.state
    if not state.decisions:
        raise NotFoundError(f"{workspace.root}: no decision yet, nothing to report; `ssclass retrain` makes the first")
    key = decision_key(name, state) if name else next(reversed(state.decisions))
    if key is None:
        raise NotFoundError(f"{name}: no run and no champion of this workspace; `ssclass history` lists them")
    event = state.decisions[key]
    page = report(version, event, _result(workspace, event, progress))
    path = path or Path(f"report-{key}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.html())
    return Report(key, event.body["decision"], path, version.data_version)


def _result(workspace: Workspace, event: Event, progress: Progress) -> Result | None:
    try:
        if (kept := results.kept(workspace, event.body["key"])) is not None:
            return kept
    except StoreError:
        return None
    with recalled(workspace, event, progress) as (_, _, result, _):
        return result


def log(workspace: Workspace, made: Report) -> str:
    """Put a report on the MLflow run of its decision; the run's id. NotFoundError where MLflow has no such run."""
    tracking = Tracking.of(workspace)
    run = tracking.run_of(workspace.at().state.decisions[made.key])
    if run is None:
        raise NotFoundError(
            f"{made.key}: MLflow at {workspace.settings.tracking_uri} has no run of it; `ssclass rebuild` makes it anew"
        )
    tracking.log_report(run.info.run_id, made.path.read_text(encoding="utf-8"), made.data_version)
    return str(run.info.run_id)
