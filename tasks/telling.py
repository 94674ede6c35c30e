"""What people see of a retrain in Prefect's pages: its name, log, final state, artifacts, tags and links.

Nothing here decides anything, and no retrain fails for it.
"""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from ssclass import progress
from ssclass.text import markdown_word, shown
from ssclass.tracking import publish
from tasks.retraining import workspace_at

if TYPE_CHECKING:
    from ssclass.retrain.outcome import Outcome

log = logging.getLogger(__name__)


def name_of_retrain() -> str:
    """What a run of the retrain is called: after the batch that woke it, or by its time."""
    given = flow_run.parameters
    if rerun := given.get("rerun"):
        return f"retrain again after a crash ({rerun})"
    if batch := given.get("batch"):
        others = int(given.get("count") or 1) - 1
        return f"retrain after {shown(batch, 100)}" + (f" and {others} more" if others > 0 else "")
    when = f"{flow_run.scheduled_start_time:%Y-%m-%d %H:%M} UTC"
    return f"{'scheduled ' if 'auto-scheduled' in (flow_run.tags or ()) else ''}retrain {when}"


def say(line: str) -> None:
    """Write a line into the run's log; nowhere where no run is under way."""
    with suppress(Exception):
        get_run_logger().info(shown(line, 1000))


@contextmanager
def logged(folder: str) -> Iterator[None]:
    """Tell the progress of what the block does on the run's page, on a worker; a command shows it itself.

    A step that takes longer than a few seconds is a line of the log again and again, and a bar among the artifacts.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        yield
        return
    with progress.lines(say, Bars(folder)):
        yield


class Bars:
    """Prefect's progress artifacts of a run, one a step. What cannot be told is in the log all the same."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._bars: dict[str, Any] = {}
        self._context = contextvars.copy_context()  # of the run: threads that report have none

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far a step is."""
        try:
            self._context.copy().run(self._show, what, done, total)
        except Exception as error:
            log.warning("%s: no bar of it (%s)", what, error)

    def _show(self, what: str, done: int, total: int) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share, said = 100 * done / max(1, total), f"{shown(what, 200)}: {done} of {total}"
        if what not in self._bars:
            self._bars[what] = create_progress_artifact(share, _key(self._folder, "progress"), said)
        else:
            update_progress_artifact(self._bars[what], share, said)
        if done >= total:
            del self._bars[what]


def ended(folder: str, outcome: Outcome) -> Any:
    """The final state of a retrain, named by its decision, with the reason as its message; it is told everywhere."""
    for each in outcome.batches:
        say(f"{each.batch}: {each.outcome}, {each.accepted} photos in, {each.refused} refused")
    say(f"{outcome.decision}: {outcome.reason}")
    for tell in (_batches, _card, _tag, _link):
        _harmless(tell, folder, outcome)
    return Completed(name=outcome.decision, message=shown(outcome.reason, 1000), data=outcome)


def _harmless(tell: Callable[[str, Outcome], None], folder: str, outcome: Outcome) -> None:
    try:
        tell(folder, outcome)
    except Exception as error:  # Prefect or MLflow is away: the decision stands in the ledger
        log.warning("%s: not told (%s)", tell.__name__.strip("_"), error)


def _key(folder: str, what: str) -> str:
    """The key of an artifact, under which Prefect shows one after the other; it says whose it is."""
    return f"{workspace_at(folder).settings.name}-{what}"


def _batches(folder: str, outcome: Outcome) -> None:
    if outcome.batches:
        rows = [
            {
                "batch": each.batch,
                "outcome": each.outcome,
                "photos in": each.accepted,
                "there already": each.duplicates,
                "refused": each.refused,
                "why": each.reason or "",
            }
            for each in outcome.batches
        ]
        create_table_artifact(rows, key=_key(folder, "batches"), description="The batches that this retrain took in")


def _card(folder: str, outcome: Outcome) -> None:
    if outcome.event is None:
        if outcome.batches:
            text = f"# {outcome.decision}\n\n{markdown_word(outcome.reason)}\n"
            create_markdown_artifact(text, key=_key(folder, "decision"), description=outcome.decision)
        return
    page, text = publish.page_and_card(workspace_at(folder), outcome.event["key"])
    where = f"[The run in MLflow]({page})\n\n" if page else ""
    create_markdown_artifact(where + text, key=_key(folder, "decision"), description=outcome.decision)


def _tag(folder: str, outcome: Outcome) -> None:
    if flow_run.id is not None:
        from prefect.client.orchestration import get_client

        new = [outcome.decision] if outcome.event is None else [outcome.decision, outcome.event["data_version"]]
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=[*(flow_run.tags or ()), *new])


def _link(folder: str, outcome: Outcome) -> None:
    """Have the run in MLflow name the run in Prefect."""
    settings = workspace_at(folder).settings
    if outcome.event is not None and settings.prefect_url and flow_run.id is not None:
        at = settings.prefect_url.rstrip("/").removesuffix("/api")
        publish.link(workspace_at(folder), outcome.event["run_id"], f"{at}/runs/flow-run/{flow_run.id}")
