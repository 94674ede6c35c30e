"""Erase what the study keeps of a photo that is to be forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Collection

from ssclass.study.experiment import StudyRuns
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace

PAGES, PAGES_TAG = "look", "look"
"""The folder of the pages that explain a run's model, and the tag of a run that has them: both have the name that
`ssclass explain` had first."""


def clean(workspace: Workspace, gone: Collection[str]) -> list[str]:
    """Delete finished rows that name a photo, and the pages of `ssclass explain --log`, which may show any photo.

    Rows are a memo and pages can be made again. Returns what was deleted.
    """
    deleted = []
    for path in sorted((workspace.private / "study").glob("*/row.json")):
        text = path.read_text(encoding="utf-8") + (path.parent / "result.json").read_text(encoding="utf-8")
        if any(sha256 in text for sha256 in gone):
            shutil.rmtree(path.parent)
            deleted.append(f"study/{path.parent.name}")
    for tracking in (Tracking.of(workspace), StudyRuns(workspace)):
        deleted += _erase_pages(tracking)
    return deleted


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
