"""Runs of MLflow: one a retrain, open until its decision is pushed, with all that a person compares models by."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssclass.tracking.connection import Connection
from ssclass.tracking.packaged import KEY_TAG as KEY_TAG
from ssclass.tracking.packaged import SUM_TAG, write_model
from ssclass.workspace.ledger import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.retrain.result import Result

DECISION_TAG, OWNER_TAG = "decision", "clone"
REPORT, REPORT_TAG = "report.html", "report"
"""The report among a run's artifacts, and the tag of a run that has one: the data version whose photos it shows."""
CANDIDATE, MODEL = "candidate", "model"
"""Names of the logged models of a run: what was trained, of every candidate; the whole, of what is promoted."""


class Runs(Connection):
    """The runs of the experiment."""

    def runs(self, key: str) -> list[Any]:
        """The runs of a decision key, newest first."""
        with self.named():
            return list(
                self.client.search_runs(
                    [self.experiment_id], f"tags.{KEY_TAG} = '{key}'", order_by=["attributes.start_time DESC"]
                )
            )

    def run_of(self, event: Event) -> Any | None:
        """The run of a decision, as :meth:`find_run` finds it.

        A run that the ledger names is nobody's garbage: where it lies in the trash, it is taken out again.
        """
        run = self.find_run(event)
        if run is not None and run.info.lifecycle_stage == "deleted":
            with self.named():
                self.client.restore_run(run.info.run_id)
        return run

    def find_run(self, event: Event) -> Any | None:
        """The run of a decision: the one that the ledger names, or where MLflow was rebuilt the one with its key."""
        from mlflow.exceptions import MlflowException

        with self.named():
            try:
                run = self.client.get_run(event.body["run_id"])
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                run = None
            if run is not None and run.info.experiment_id == self.experiment_id:
                return run
        return next((run for run in self.runs(event.body["key"]) if DECISION_TAG in run.data.tags), None)

    def open_runs(self) -> list[Any]:
        """Runs that nobody concluded, or not to the end: those of retrains under way, or killed; oldest first."""
        with self.named():
            return list(
                self.client.search_runs(
                    [self.experiment_id], "attributes.status = 'RUNNING'", order_by=["attributes.start_time ASC"]
                )
            )

    def open_run(self, key: str, owner: str, decided: Event | None = None) -> str:
        """A run for a key, without a decision yet.

        `owner` names the clone that opens it: one that it left open for the same key, killed, is thrown away. Those of
        others stay, as they may be under way. `decided`: the decision long made that the run is to tell of, with its
        own time and code.
        """
        for run in self.runs(key):
            if DECISION_TAG not in run.data.tags and run.data.tags.get(OWNER_TAG) == owner:
                self.discard(run.info.run_id)
        with self.named():
            tags = {KEY_TAG: key, OWNER_TAG: owner}
            tags |= _source_tags() if decided is None else {"code": decided.body["code"]}
            began = None if decided is None else _milliseconds(decided.at)
            run = self.client.create_run(self.experiment_id, began, tags, run_name=f"{key} (running)")
            return str(run.info.run_id)

    def all_runs(self) -> list[Any]:
        """Every run of the experiment, those in the trash included; newest first."""
        from mlflow.entities import ViewType

        found, token = [], None
        with self.named():
            while True:
                page = self.client.search_runs([self.experiment_id], "", ViewType.ALL, 1000, page_token=token)
                found += list(page)
                if not (token := page.token):
                    return found

    def erase(self, run: Any, path: str) -> bool:
        """Delete an artifact of a run; whether there was one."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self.named():
            artifacts = get_artifact_repository(run.info.artifact_uri)
            there = path in {each.path for each in artifacts.list_artifacts(path.rpartition("/")[0])}
            if there:
                artifacts.delete_artifacts(path)
            return there

    def discard(self, run_id: str) -> None:
        """Throw a run away. Ask the ledger first: `publish.discard` does."""
        with self.named():
            self.client.delete_run(run_id)

    def log_result(
        self,
        run_id: str,
        result: Result,
        params: dict[str, Any],
        candidate: Path,
        digest: str,
        figures: Mapping[str, Figure] | None = None,
    ) -> None:
        """Everything about a result but its decision: params, metrics, curves, figures, dataset, the folder candidate/.

        `figures`, by file name: more of them than the result gives.
        """
        from ssclass.model import compute
        from ssclass.tracking import report

        with self.named():
            self.log_numbers(run_id, report.metrics(result), params, report.curves(result))
            with tempfile.TemporaryDirectory() as folder:
                for name, figure in {**report.figures(result), **(figures or {})}.items():
                    figure.savefig(Path(folder) / name, dpi=100)
                self.client.log_artifacts(run_id, folder, "figures")
            self.client.set_tag(run_id, "device", compute.described())
            self._log_dataset(run_id, result, digest)
            self._log_candidate(run_id, result, candidate)

    def log_numbers(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        params: dict[str, Any],
        curves: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Metrics, curves of metrics by step, and params (nested ones dotted)."""
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        steps = [(name, value, step) for name, curve in (curves or {}).items() for step, value in enumerate(curve)]
        with self.named():
            self.client.log_batch(
                run_id,
                metrics=[
                    Metric(name, float(value), now, step)
                    for name, value, step in (*((name, value, 0) for name, value in metrics.items()), *steps)
                ],
                params=[Param(name, str(value)[:500]) for name, value in _flat(params)],
            )

    def revision(self, result: Result) -> str:
        """The git revision of the workspace that has the data of a result."""
        return f"run/{result.key}"

    def _log_dataset(self, run_id: str, result: Result, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sizes = {"train_size": result.train_size, "holdout_size": len(result.holdout)}
        given = [("training", result.data_version, digest, sizes)]
        if result.holdout:
            held_out = f"{result.data_version} held out", result.holdout_digest, {"holdout_size": len(result.holdout)}
            given.append(("evaluation", *held_out))
        inputs = [
            DatasetInput(
                Dataset(
                    name=name,
                    digest=of[:36],
                    source_type="dvc",
                    source=json.dumps({"git": self.revision(result), "path": "data"}),
                    profile=json.dumps(profile),
                ),
                [InputTag("mlflow.data.context", use)],
            )
            for use, name, of, profile in given
        ]
        self.client.log_inputs(run_id, inputs)

    def _log_candidate(self, run_id: str, result: Result, folder: Path) -> None:
        """What was trained, as a logged model; of its backbone only the name: it is not stored anew each time."""
        from mlflow.entities import LoggedModelOutput

        made = self.client.create_logged_model(
            self.experiment_id, CANDIDATE, run_id, tags={KEY_TAG: result.key, "data_version": result.data_version}
        )
        self.client.log_model_artifacts(made.model_id, str(folder))
        self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
        self.client.finalize_logged_model(made.model_id, "READY")

    def log_model(self, run_id: str, key: str, data_version: str, classifier: Classifier | Adopted) -> None:
        """The whole model of a champion, or of what is about to be one, for whoever serves it."""
        from mlflow.entities import LoggedModelOutput

        with self.named():
            made = self.client.create_logged_model(
                self.experiment_id, MODEL, run_id, tags={KEY_TAG: key, "data_version": data_version}
            )
            self.restore_model(made, key, data_version, classifier)
            self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
            self.client.finalize_logged_model(made.model_id, "READY")

    def restore_model(self, model: Any, key: str, data_version: str, classifier: Classifier | Adopted) -> None:
        """Write the files of a champion's logged model under its id: who serves it need not know that they were lost.

        The sum of the files is noted last: until then they are not those that MLflow names.
        """
        from mlflow.models import Model
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        made = Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        about = {KEY_TAG: key, "data_version": data_version}
        with tempfile.TemporaryDirectory() as folder, self.named():
            path = Path(folder) / MODEL
            files = write_model(path, classifier, about, made)
            artifacts = get_artifact_repository(model.artifact_location)
            for stale in artifacts.list_artifacts():  # of an older layout, or of nobody's
                if not (path / stale.path).exists():
                    artifacts.delete_artifacts(stale.path)
            self.client.log_model_artifacts(model.model_id, str(path))
            self.client.set_logged_model_tags(model.model_id, {SUM_TAG: files})

    def models_of(self, run: Any) -> dict[str, Any]:
        """The logged models of a run that are whole, by name: `candidate`, and `model` once it was promoted."""
        logged = self.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=20
        )
        return {each.name: each for each in logged if str(each.status) == "READY"}

    def log_report(self, run_id: str, html: str, data_version: str) -> None:
        """Put the report of a decision on its run; `data_version`: the one whose photos it shows, for `forget`."""
        with self.named():
            self.client.set_tag(run_id, REPORT_TAG, data_version)  # first: `ssclass forget` finds the report by it
            self.client.log_text(run_id, html, REPORT)

    def conclude(self, event: Event, result: Result | None, run_id: str, decided: Sequence[Event]) -> None:
        """Put a pushed decision on its run, and end it; with the card where the result is at hand.

        `decided`: the decisions up to this one, for the figure of how candidates and champions came on.
        """
        from ssclass.tracking import report

        body = event.body
        tags = {  # MLflow's columns are in the order in which tags were set; five are in sight at 1280 pixels
            DECISION_TAG: body["decision"],
            "reason": body["reason"],
            **report.compared(event),
            "data_version": body["data_version"],
            "batches": ", ".join(body["batches"]),
            "head": body["head"],
        }
        with self.named():
            if len(decided) > 1 and (figure := report.over_time(decided)) is not None:
                self.client.log_figure(run_id, figure, "figures/over_time.png")
            for name, value in tags.items():
                self.client.set_tag(run_id, name, value[:5000])
            if result is not None:
                text = report.card(result, event)
                self.client.log_text(run_id, text, "decision.md")
                self.client.set_tag(run_id, "mlflow.note.content", text)
            self.client.update_run(run_id, name=report.run_name(event))
            self.client.set_terminated(run_id, "FINISHED", _milliseconds(event.at))  # last: all of this is done


def _milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _source_tags() -> dict[str, str]:
    from ssclass.code import code_commit, code_digest

    tags = {"mlflow.source.name": "ssclass retrain", "mlflow.source.type": "JOB", "code": code_digest()}
    if commit := code_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags
