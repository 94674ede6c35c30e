"""The study in MLflow: the experiment ``<model_name>-study``, one parent run a study, one child run a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssclass.code import code_commit, code_digest
from ssclass.retrain.result import Result
from ssclass.study.measure import Measured
from ssclass.study.rows import StudyRow
from ssclass.tracking.client import Tracking
from ssclass.workspace.workspace import Workspace

STUDY_TAG, ROW_TAG, KEY_TAG = "study_key", "row", "row_key"
PARENT_TAG = "mlflow.parentRunId"


class StudyRuns(Tracking):
    """The experiment of the studies; nothing here is ever registered."""

    columns = (
        "tags.`row`",
        "metrics.`accuracy`",
        "metrics.`cv_accuracy`",
        "metrics.`cv_accuracy_sd`",
        "metrics.`loss`",
        "metrics.`parameters_head`",
        "metrics.`megabytes`",
        "metrics.`milliseconds_32`",
        "tags.`data_version`",
    )

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace.settings)
        self.name = f"{workspace.settings.model_name}-study"

    def revision(self, result: Result) -> str:
        """The tag of a row's data version, as a row has no decision and hence no tag of one."""
        return result.data_version

    def parent(self, key: str, name: str) -> str:
        """Find the run of a study, or make it."""
        with self.named():
            found = self.client.search_runs([self.experiment_id], f"tags.{STUDY_TAG} = '{key}'")
            if found:
                return str(found[0].info.run_id)
            tags = {STUDY_TAG: key, **_source()}
            return str(self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id)

    def child(self, parent: str, measured: Measured) -> str | None:
        """Find the run of a finished row in a study; None when there is none."""
        own = {KEY_TAG: measured.result.key, ROW_TAG: measured.row, PARENT_TAG: parent}
        with self.named():
            found = self.client.search_runs(
                [self.experiment_id], " and ".join(f"tags.`{name}` = '{value}'" for name, value in own.items())
            )
            return str(found[0].info.run_id) if found else None

    def log_row(self, parent: str, row: StudyRow, measured: Measured, candidate: Path, digest: str) -> str:
        """Log a row as a child run, with its model; the tag of its key comes last, so that it marks a complete run."""
        with self.named():
            tags = {PARENT_TAG: parent, ROW_TAG: row.name, "head": measured.result.head, **_source()}
            tags |= {"data_version": measured.result.data_version, "mlflow.note.content": row.about}
            run_id = str(self.client.create_run(self.experiment_id, run_name=row.name, tags=tags).info.run_id)
        self.log_result(run_id, measured.result, row.params.model_dump(mode="json"), candidate, digest)
        self.log_metrics(run_id, metrics(measured))
        with self.named():
            self.client.set_terminated(run_id, "FINISHED")
            self.client.set_tag(run_id, KEY_TAG, measured.result.key)
        return run_id

    def log_metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        """Log metrics to a run; MLflow shows the last value of each."""
        with self.named():
            for name, value in values.items():
                self.client.log_metric(run_id, name, value)

    def conclude_study(self, parent: str, pages: Path, name: str) -> None:
        """Log the study's pages as artifacts of its run, and end the run."""
        with self.named():
            for path in sorted(pages.iterdir()):
                if path.is_file():
                    self.client.log_artifact(parent, str(path))
            self.client.update_run(parent, name=name)
            self.client.set_terminated(parent, "FINISHED")


def metrics(measured: Measured) -> dict[str, float]:
    """The metrics that a row has beside a retrain's; docs/formats.md defines each name."""
    low, high = measured.scores.accuracy_interval.low, measured.scores.accuracy_interval.high
    found: dict[str, Any] = {
        "accuracy_low": low,
        "accuracy_high": high,
        "cv_repeats": measured.repeats,
        "parameters_backbone": measured.parameters_backbone,
        "parameters_head": measured.parameters_head,
        "megabytes": measured.megabytes,
        **{f"milliseconds_{n}": value for n, value in measured.milliseconds.items()},
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def _source() -> dict[str, str]:
    tags = {"mlflow.source.name": "ssclass study", "mlflow.source.type": "JOB", "code": code_digest()}
    if commit := code_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags
