"""`ssclass adopt`: a classifier that people had before becomes the first champion, if the gate lets it.

It is scored on the held-out photos, logged, decided on and registered like any candidate, and every later candidate is
compared with it on the same photos. Batches that wait are taken in first, without a training.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ssclass.code import code_digest
from ssclass.errors import InputError, OvertakenError
from ssclass.files import file_sha256
from ssclass.model.adopted import HEAD_NAME, NAMES, Adopted, check_probabilities, wrap
from ssclass.params import Params
from ssclass.retrain.decide import record
from ssclass.retrain.ingest import Ingested, ingest, waiting
from ssclass.retrain.key import FROZEN
from ssclass.retrain.predict import Progress, memo_of, probabilities, result_folder, silent
from ssclass.retrain.result import RESULT, Answers, Result, make_result
from ssclass.retrain.train import METRICS, Stopwatch, write_metrics, write_training
from ssclass.tracking import publish
from ssclass.tracking.client import Tracking
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import Event
from ssclass.workspace.transaction import Change
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Declared:
    """What a person says of a model: its file, its classes in the order of its outputs, how it wants its pixels."""

    path: Path
    classes: tuple[str, ...]
    preprocess: str
    logits: bool = False
    size: int | None = None


def adopt(workspace: Workspace, declared: Declared, progress: Progress = silent) -> tuple[Event, list[Ingested]]:
    """Score a model and let the gate decide; the decision, and the batches that were taken in before.

    InputError when there is a champion, no held-out photo yet, or no safe and fitting model in the file;
    OvertakenError when another writer changed data or champion meanwhile: then nothing has changed but the batches.
    """
    with workspace.retraining():
        version = workspace.newest()
        _check(version.params, declared)
        _no_champion(workspace, version)
        ingested = [ingest(workspace, ref) for ref in waiting(workspace.store, version.state)]
        version = workspace.newest()
        if not version.dataset.holdout:
            raise InputError(
                f"{workspace.root}: no held-out photos to score a model on; send labelled photos with `ssclass import "
                "DIR` or `ssclass submit DIR`, then adopt, before the first `ssclass retrain`"
            )
        result = _score(workspace, version, declared, progress)
        about = {
            "file": declared.path.name,
            "sha256": file_sha256(declared.path),
            "preprocess": declared.preprocess,
            "logits": declared.logits,
        }
        tracking = Tracking.of(workspace)
        run_id = tracking.open_run(result.key, publish.clone_id(workspace))
        params = version.params.model_dump(mode="json") | {"adopted": about}
        candidate = result_folder(workspace, result.key) / CANDIDATE
        tracking.log_result(run_id, result, params, candidate, version.dataset.digest)

        def write(change: Change) -> Event:
            newest = change.version
            if (decided := newest.state.decisions.get(result.key)) is not None:
                return decided
            _no_champion(workspace, newest)
            if _question(newest) != _question(version):
                raise OvertakenError(
                    f"{workspace.root}: another writer changed the data set or params meanwhile, or froze promotion or "
                    "let it go on; adopt again"
                )
            return record(change, result, run_id, about)

        event = workspace.write(write)
        publish.reconcile(workspace)
        return event, ingested


def _no_champion(workspace: Workspace, version: Version) -> None:
    if version.state.champion is not None:
        raise InputError(
            f"{workspace.root}: there is a champion, and a model is adopted only as the first; begin a new "
            "workspace with `ssclass init DIR`"
        )


def _check(params: Params, declared: Declared) -> None:
    if declared.preprocess not in NAMES:
        raise InputError(f"--preprocess: {declared.preprocess!r} is none of {', '.join(NAMES)}")
    classes = params.dataset.classes
    if unknown := [name for name in declared.classes if name not in classes]:
        raise InputError(
            f"--classes: {unknown[0]!r} is none of dataset.classes ({', '.join(classes)}); correct it, or name it in "
            "params.yaml"
        )
    if len(set(declared.classes)) != len(declared.classes):
        raise InputError("--classes: names a class twice; name each once, in the order of the model's outputs")


def _score(workspace: Workspace, version: Version, declared: Declared, progress: Progress) -> Result:
    """The model and its answers in the result folder, as a training would leave them."""
    watch, at = Stopwatch(), declared
    partial = workspace.private / "results" / "adopted.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / CANDIDATE).mkdir(parents=True)
    with watch.step("wrapping"):
        model = wrap(at.path, partial / CANDIDATE, at.classes, at.preprocess, logits=at.logits, size=at.size)
    key = _key(version, model)
    if key in version.state.decisions:
        raise InputError(f"{at.path}: decided on already, on these photos; `ssclass history` shows it")
    trained = {"head": HEAD_NAME, "train_size": 0, "cross_validation": {}, "history": {}}
    write_training(partial / CANDIDATE, trained)
    rows = version.dataset.holdout
    with watch.step("evaluation"):
        raw = probabilities(version, memo_of(workspace), model, rows, progress)
        check_probabilities(raw, at.path)
        candidate = Answers.of(model, raw, rows, version.params.dataset.classes)
        write_metrics(candidate, partial / CANDIDATE, partial / METRICS)
    result = make_result(
        key=key,
        data_version=version.data_version,
        dataset=version.dataset,
        model=model,
        head=HEAD_NAME,
        candidate=candidate,
        champion=None,
        train_size=0,
        cross_validation={},
        history={},
        saved_alike=True,  # `wrap` gave the model as it reads from what was saved
        seconds=watch.seconds,
    )
    result.write(partial / RESULT)
    folder = result_folder(workspace, key)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return result


def _key(version: Version, model: Adopted) -> str:
    """The decision key (hex, 16) of a model that was not trained here; which class each output is, is in it."""
    text = " ".join([_question(version), model.fingerprint, *model.classes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _question(version: Version) -> str:
    """What the answer depends on beside the model: rows, params, code, and whether promotion is frozen."""
    frozen = f"{FROZEN} " if version.state.frozen is not None else ""
    return f"{frozen}adopt {version.dataset.digest} {version.params.result_digest} {code_digest()}"
