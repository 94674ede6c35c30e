"""Erase what the study and MLflow keep of photos that were forgotten: rows, pages, contact sheets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping

from ssclass.environment import write_private
from ssclass.retrain.result import RESULT
from ssclass.study.experiment import StudyRuns
from ssclass.tracking.client import DECISION_TAG, KEY_TAG, Tracking
from ssclass.tracking.runs import REPORT, REPORT_TAG
from ssclass.workspace.workspace import Workspace

STEPS = "review/steps.json"
"""In the private folder: what a person decided in `ssclass review` and has not sent yet."""
SHEET = "figures/augmentation.png"
PAGES, PAGES_TAG = "look", "look"
"""The folder of the pages that explain a run's model, and the tag of a run that has them: both have the name that
`ssclass explain` had first."""


def clean_rows(workspace: Workspace, photos: Collection[str]) -> list[str]:
    """Delete finished rows that name a photo which is none of these, all that there are; what was deleted.

    Rows are a memo: they can be measured again.
    """
    deleted = []
    for path in sorted((workspace.private / "study").glob("*/row.json")):
        try:
            names = [*json.loads(path.read_text())["train"], *json.loads((path.parent / RESULT).read_text())["holdout"]]
        except (OSError, ValueError, KeyError, TypeError):
            names = [""]  # not readable, so no row either
        if not set(names) <= set(photos):
            shutil.rmtree(path.parent)
            deleted.append(f"study/{path.parent.name}")
    return deleted


def clean_steps(workspace: Workspace, photos: Collection[str]) -> list[str]:
    """Take photos that are none of these out of the steps of a review; what was rewritten.

    Which photo was forgotten is not known here, so what was decided of photos of held batches goes too.
    """
    path = workspace.private / STEPS
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
        kept = [step for step in steps if len(step["target"]) != 64 or step["target"] in photos]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):  # not readable, so nobody can send it
        path.unlink()
        return [STEPS]
    if kept == steps:
        return []
    write_private(path, json.dumps(kept))
    return [STEPS]


def erase_pages(workspace: Workspace) -> list[str]:
    """Delete the pages of `ssclass explain --log`, which may show any photo; they can be made again."""
    return [where for tracking in (Tracking.of(workspace), StudyRuns(workspace)) for where in _erase_pages(tracking)]


def erase_sheets(workspace: Workspace, keys: Collection[str], asked: str | None) -> list[str]:
    """Delete contact sheets, in which training photos may be seen: of the runs of these decisions, and of runs that
    nobody decided on, but for those of the question that is asked now."""
    tracking, erased = Tracking.of(workspace), []
    with tracking.named():
        if tracking.client.get_experiment_by_name(tracking.name) is None:
            return []
        for run in tracking.all_runs():
            key, decided = run.data.tags.get(KEY_TAG), DECISION_TAG in run.data.tags
            if (key in keys or (not decided and key != asked)) and tracking.erase(run, SHEET):
                erased.append(f"run {run.info.run_id}: {SHEET}")
    return erased


def erase_reports(workspace: Workspace, forgotten: Mapping[str, int]) -> list[str]:
    """Delete reports in which a forgotten photo may be seen; `ssclass report --log` makes them anew without it.

    `forgotten`: decision → the number of the data version in which photos that it learnt from, or was judged by, were
    forgotten. A report that was made since shows none. Of runs that nobody decided on every older report goes.
    """
    tracking, erased = Tracking.of(workspace), []
    newest = max(forgotten.values(), default=0)
    with tracking.named():
        if not forgotten or tracking.client.get_experiment_by_name(tracking.name) is None:
            return []
        for run in tracking.all_runs():
            tags = run.data.tags
            if REPORT_TAG not in tags:
                continue
            since = forgotten.get(tags.get(KEY_TAG, ""), 0 if DECISION_TAG in tags else newest)
            if int(tags[REPORT_TAG].rpartition("/")[2]) < since and tracking.erase(run, REPORT):
                erased.append(f"run {run.info.run_id}: {REPORT}")
    return erased


def _erase_pages(tracking: Tracking) -> list[str]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    erased = []
    with tracking.named():
        if tracking.client.get_experiment_by_name(tracking.name) is None:
            return []
        for run in tracking.client.search_runs([tracking.experiment_id], f"tags.{PAGES_TAG} = 'yes'"):
            get_artifact_repository(run.info.artifact_uri).delete_artifacts(PAGES)
            tracking.client.delete_tag(run.info.run_id, PAGES_TAG)
            erased.append(f"run {run.info.run_id}: {PAGES}/")
    return erased
