"""`ssclass rebuild`: MLflow's runs and registry anew, from the ledger in git and the candidates in DVC.

What a run told is computed again where its data and its model can still be had: the same answers on the same held-out
photos, hence the same metrics, figures and cards. Of the others, the ledger and metrics.json are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ssclass.environment import temporary_folder
from ssclass.errors import NotFoundError, ParamsError, StoreError
from ssclass.model.adopted import open_classifier
from ssclass.retrain import results
from ssclass.retrain.predict import Progress, answer, decided_classifier, memo_of, silent
from ssclass.retrain.result import Result, make_result
from ssclass.retrain.train import contact_sheet
from ssclass.text import metric_word
from ssclass.tracking import publish
from ssclass.tracking.client import DECISION_TAG, Tracking
from ssclass.tracking.report import model_card
from ssclass.upkeep.artifacts import mend_models
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import Event
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = ("accuracy", "loss", "recall", "precision", "f_measure", "calibration_error", "cv_accuracy", "cv_accuracy_sd")


@dataclass(frozen=True)
class Rebuilt:
    """A decision whose run was made anew. `note` says what of it could not be, or differs from the ledger."""

    key: str
    decision: str
    note: str = ""


def rebuild(workspace: Workspace, progress: Progress = silent) -> list[Rebuilt]:
    """Make what MLflow lacks of the ledger's runs, versions and alias; what is whole is left alone. Again: nothing."""
    made = []
    with workspace.retraining():
        tracking, state = Tracking.of(workspace), workspace.newest().state
        tracking.restore_experiment()
        cards: dict[str, str] = {}
        for event in state.decisions.values():
            key = event.body["key"]
            run = tracking.run_of(event)
            has_run = run is not None and DECISION_TAG in run.data.tags
            if run is not None and has_run and run.info.status == "RUNNING":
                kept = results.kept(workspace, key)
                publish.conclude(workspace, tracking, state, event, kept, str(run.info.run_id))
            if has_run and (key not in state.champions or tracking.version_of(key) is not None):
                if key in state.champions and (names := mend_models(workspace, tracking, event)):
                    note = f"{' and '.join(names)} of its run written anew"
                    made.append(Rebuilt(key, event.body["decision"], note))
                continue
            with recalled(workspace, event, progress) as (version, folder, result, note):
                if not has_run:
                    if run is None:  # a version that there is is of a run that was purged, with its files
                        tracking.unregister(key)
                    _log(workspace, tracking, version, event, folder, result)
                    made.append(Rebuilt(key, event.body["decision"], note))
            if result is not None and key in state.champions:
                cards[key] = model_card(result, event, state.number_of(key))
        _, state = publish.set_alias(workspace, tracking, state, cards)
        publish.follow_challenger(workspace, tracking, state)
    return made


def _log(
    workspace: Workspace,
    tracking: Tracking,
    version: Version,
    event: Event,
    folder: Path | None,
    result: Result | None,
) -> None:
    run_id = tracking.open_run(event.body["key"], publish.clone_id(workspace), event)
    params = _params(version, event)
    if result is not None and folder is not None:
        tracking.log_result(run_id, result, params, folder, _digest(version), _figures(version))
    else:
        tracking.log_numbers(run_id, _numbers(version, event), params)
    publish.conclude(workspace, tracking, workspace.at().state, event, result, run_id)


@contextmanager
def recalled(
    workspace: Workspace, event: Event, progress: Progress
) -> Iterator[tuple[Version, Path | None, Result | None, str]]:
    """The version that a decision made, its candidate in a folder, what it answered, and what is to be said of it.

    The folder and the result are None where they can no longer be had; the folder is gone afterwards.
    """
    key = event.body["key"]
    version = workspace.decided(key)
    with temporary_folder(workspace.settings) as folder:
        try:
            version.copy(CANDIDATE, folder)
            open_classifier(folder)
        except (StoreError, NotFoundError) as error:
            yield version, None, None, f"no model: {error}"
            return
        try:
            result = results.kept(workspace, key) or _answered(workspace, version, event, folder, progress)
        except (StoreError, NotFoundError) as error:
            yield version, folder, None, f"no answers: {error}"
            return
        ours, theirs = result.candidate.right, result.champion and result.champion.right
        told = event.body["candidate"]["right"], (event.body["champion"] or {}).get("right")
        note = "" if (ours, theirs) == told else f"{ours} and {theirs} right, by the ledger {told[0]} and {told[1]}"
        yield version, folder, result, note


def _answered(workspace: Workspace, version: Version, event: Event, folder: Path, progress: Progress) -> Result:
    """The answers on the held-out photos of then, of the candidate and of the champion of then, computed again."""
    body, memo, rows = event.body, memo_of(workspace), version.dataset.holdout
    model = open_classifier(folder)
    trained = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    champion = None
    if body["champion"]:
        theirs = decided_classifier(workspace, body["champion"]["key"])
        champion = body["champion"]["key"], answer(version, memo, theirs, rows, progress)
    return make_result(
        key=body["key"],
        data_version=body["data_version"],
        dataset=version.dataset,
        model=model,
        head=body["head"],
        candidate=answer(version, memo, model, rows, progress),
        champion=champion,
        train_size=body["train_size"],
        cross_validation=trained["cross_validation"],
        history=trained["history"],
        saved_alike=True,
        seconds={"retrain": body["seconds"]},
    )


def _params(version: Version, event: Event) -> dict[str, Any]:
    """What params.yaml said then; once it can no longer be checked, as it stands."""
    adopted = {"adopted": event.body["adopted"]} if "adopted" in event.body else {}
    try:
        return {**version.params.model_dump(mode="json"), **adopted}
    except ParamsError:
        return {**yaml.safe_load(version.text("params.yaml")), **adopted}


def _digest(version: Version) -> str:
    """The digest of the data set of then; where a photo of it was forgotten since, a word to that effect."""
    try:
        return version.dataset.digest
    except StoreError:
        return "forgotten"


def _figures(version: Version) -> dict[str, Figure]:
    """The contact sheet, where its photos are there."""
    try:
        return contact_sheet(version)
    except StoreError:
        return {}


def _numbers(version: Version, event: Event) -> dict[str, float]:
    """What the ledger and metrics.json tell of a run whose answers are gone."""
    body = event.body
    told = json.loads(version.text("metrics.json"))
    found = {name: told[name] for name in NUMBERS if name in told}
    for label, scores in told.get("class", {}).items():
        found |= {f"{name}_{metric_word(label)}": scores[name] for name in ("recall", "precision", "f_measure")}
    found |= {"holdout_size": body["holdout"]["size"], "train_size": body["train_size"], "seconds": body["seconds"]}
    if body["champion"]:
        theirs = body["champion"]
        found |= {"champion_accuracy": theirs["accuracy"], "champion_loss": theirs["loss"]}
        found |= {name: body[name] for name in ("wins", "losses", "mcnemar_p")}
        found["accuracy_difference"] = body["candidate"]["accuracy"] - theirs["accuracy"]
    return {name: round(float(value), 4) for name, value in found.items()}
