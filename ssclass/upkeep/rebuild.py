"""`ssclass rebuild`: MLflow's runs and registry anew, from the ledger in git and the candidates in DVC.

What a run told is computed again where its data and its model can still be had: the same answers on the same held-out
photos, hence the same metrics, figures and cards. Of the others, the ledger and metrics.json are told.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from ssclass.errors import NotFoundError, ParamsError, StoreError
from ssclass.model.adopted import open_classifier
from ssclass.retrain import results
from ssclass.retrain import train as learning
from ssclass.retrain.decide import right
from ssclass.retrain.scores import align, predicted
from ssclass.text import metric_word
from ssclass.tracking.client import DECISION_TAG, Tracking
from ssclass.tracking.report import model_card
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier

NUMBERS = ("accuracy", "loss", "recall", "precision", "f_measure", "calibration_error", "cv_accuracy", "cv_accuracy_sd")


@dataclass(frozen=True)
class Rebuilt:
    """A decision whose run was made anew. `note` says what of it could not be, or differs from the ledger."""

    key: str
    decision: str
    note: str = ""


def rebuild(workspace: Workspace, progress: Callable[[str, int, int], None] = learning.silent) -> list[Rebuilt]:
    """Make what MLflow lacks of the ledger's runs, versions and alias; what is there is left alone. Again: nothing."""
    made = []
    with workspace.turn():
        tracking, state = Tracking(workspace.settings), workspace.state()
        tracking.restore_experiment()
        cards: dict[str, str] = {}
        with _Past(workspace) as past:
            for event in state.decisions.values():
                key = event.body["key"]
                has_run = any(DECISION_TAG in run.data.tags for run in tracking.runs(key))
                if has_run and (key not in state.champions or tracking.version_of(key) is not None):
                    continue
                classifier, result, note = past.recall(event, progress)
                if not has_run:
                    _log(tracking, past, event, classifier, result)
                    made.append(Rebuilt(key, event.body["decision"], note))
                if result is not None and key in state.champions:
                    cards[key] = model_card(result, event, state.number_of(key))
        tracking.reconcile(state, lambda key: learning.champion_classifier(workspace, key), cards)
    return made


def _log(
    tracking: Tracking,
    past: _Past,
    event: Event,
    classifier: Classifier | Adopted | None,
    result: learning.Result | None,
) -> None:
    run_id = tracking.open_run(event.body["key"], event)
    params = past.params(event)
    if result is not None and classifier is not None:
        tracking.log_result(run_id, result, params, past.workspace.root / CANDIDATE, past.digest(), past.figures())
    else:
        tracking.log_numbers(run_id, past.numbers(event), params)
    tracking.conclude(event, result, run_id)


class _Past:
    """A clone of the workspace that goes back to one decision after the other."""

    def __init__(self, workspace: Workspace) -> None:
        self._now = workspace

    def __enter__(self) -> _Past:
        self._folder = TemporaryDirectory(dir=self._now.private)
        root = Path(self._folder.name) / "past"
        self._now.git("clone", "--quiet", "--no-checkout", str(self._now.root), str(root))
        self.workspace = Workspace(self._now.settings.model_copy(update={"workspace": root}))
        (root / ".ssclass").mkdir()
        features = self._now.private / "features"
        features.mkdir(exist_ok=True)
        (root / ".ssclass" / "features").symlink_to(features)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def recall(
        self, event: Event, progress: learning.Progress
    ) -> tuple[Classifier | Adopted | None, learning.Result | None, str]:
        """The classifier of a decision and what it answered, as far as they can be had, and what is to be said."""
        key = event.body["key"]
        self.workspace.git("checkout", "--quiet", "--force", "--detach", f"run/{key}")
        try:
            classifier, trained = self._candidate(key)
        except (StoreError, NotFoundError) as error:
            return None, None, f"no model: {error}"
        try:
            result = self._kept(key) or self._answer(event, classifier, trained, progress)
        except (StoreError, NotFoundError) as error:
            return classifier, None, f"no answers: {error}"
        ours, theirs = right(result)
        told = event.body["candidate"]["right"], (event.body["champion"] or {}).get("right")
        note = "" if (ours, theirs) == told else f"{ours} and {theirs} right, by the ledger {told[0]} and {told[1]}"
        return classifier, result, note

    def params(self, event: Event) -> dict[str, Any]:
        """What params.yaml said then; once it can no longer be checked, as it stands."""
        adopted = {"adopted": event.body["adopted"]} if "adopted" in event.body else {}
        try:
            return {**self.workspace.params.model_dump(mode="json"), **adopted}
        except ParamsError:
            return {**yaml.safe_load((self.workspace.root / "params.yaml").read_text(encoding="utf-8")), **adopted}

    def digest(self) -> str:
        """Of the data set of then; where a photo of it was forgotten since, a word to that effect."""
        try:
            return self.workspace.dataset().digest
        except StoreError:
            return "forgotten"

    def figures(self) -> dict[str, Figure]:
        """The contact sheet, where its photos are there."""
        try:
            return learning.contact_sheet(self.workspace)
        except StoreError:
            return {}

    def numbers(self, event: Event) -> dict[str, float]:
        """What the ledger and metrics.json tell of a run whose answers are gone."""
        body = event.body
        told = json.loads(self.workspace.git("show", f"run/{body['key']}:metrics.json"))
        found = {name: told[name] for name in NUMBERS if name in told}
        for label, each in told.get("class", {}).items():
            found |= {f"{name}_{metric_word(label)}": each[name] for name in ("recall", "precision", "f_measure")}
        found |= {"holdout_size": body["holdout"]["size"], "train_size": body["train_size"], "seconds": body["seconds"]}
        if body["champion"]:
            theirs = body["champion"]
            found |= {"champion_accuracy": theirs["accuracy"], "champion_loss": theirs["loss"]}
            found |= {name: body[name] for name in ("wins", "losses", "mcnemar_p")}
            found["accuracy_difference"] = body["candidate"]["accuracy"] - theirs["accuracy"]
        return {name: round(float(value), 4) for name, value in found.items()}

    def _candidate(self, key: str) -> tuple[Classifier | Adopted, dict[str, Any]]:
        folder = self.workspace.root / CANDIDATE
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with self.workspace.snapshot() as snapshot:
            for each in snapshot.files(CANDIDATE):
                snapshot.download(each.path, folder / Path(each.path).name)
        classifier = open_classifier(folder)
        return classifier, json.loads((folder / "training.json").read_text(encoding="utf-8"))

    def _kept(self, key: str) -> learning.Result | None:
        """The result itself, where this machine or S3 still has it."""
        if not results.fetch(self._now, key):
            return None
        return learning.Result.read(learning.result_folder(self._now, key) / "result.json")

    def _answer(
        self, event: Event, classifier: Classifier | Adopted, trained: dict[str, Any], progress: learning.Progress
    ) -> learning.Result:
        """The answers on the held-out photos of then, of the candidate and of the champion of then."""
        body, past = event.body, self.workspace
        dataset, classes = past.dataset(), past.params.dataset.classes
        rows = dataset.holdout

        def ask(model: Classifier | Adopted) -> tuple[Any, Any]:
            raw = learning.answers(past, model, rows, progress)
            return align(raw, model.classes, classes), predicted(raw, model.classes, classes)

        ours, called = ask(classifier)
        key = body["champion"]["key"] if body["champion"] else None
        theirs, their_calls = ask(learning.champion_classifier(self._now, key)) if key else (None, None)
        return learning.Result(
            key=body["key"],
            data_version=body["data_version"],
            classes=classes,
            head=body["head"],
            fingerprint=classifier.fingerprint,
            size=classifier.size,
            train_size=body["train_size"],
            holdout=tuple(row.sha256 for row in rows),
            batches=tuple(dataset.batch_of(row.sha256) for row in rows),
            labels=learning.flat(learning.label_index(rows, classes)),
            candidate=learning.nested(ours),
            candidate_class=learning.flat(called),
            champion_key=key,
            champion=None if theirs is None else learning.nested(theirs),
            champion_class=None if their_calls is None else learning.flat(their_calls),
            cross_validation=trained["cross_validation"],
            history=trained["history"],
            saved_alike=True,
            seconds={"retrain": body["seconds"]},
            sources=dataset.by_source(),
        )
