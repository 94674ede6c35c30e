"""`ssclass adopt`: a classifier that people had before becomes the first champion, if the gate lets it.

It is scored on the held-out photos, logged, decided on and registered like any candidate, and every later candidate is
compared with it on the same photos. Batches that wait are taken in first, without a training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ssclass.code import code_digest, code_json
from ssclass.errors import InputError
from ssclass.files import file_sha256
from ssclass.model.adopted import HEAD_NAME, NAMES, Adopted, check_probabilities, wrap
from ssclass.params import Params
from ssclass.retrain import train as learning
from ssclass.retrain.decide import record
from ssclass.retrain.ingest import Taken, take_in, waiting
from ssclass.retrain.scores import align, predicted
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.tracking.publish import reconcile
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Declared:
    """What a person says of a model: its file, its classes in the order of its outputs, how it wants its pixels."""

    path: Path
    classes: tuple[str, ...]
    preprocess: str
    logits: bool = False
    size: int | None = None


def adopt(
    workspace: Workspace, declared: Declared, progress: learning.Progress = learning.silent
) -> tuple[Event, list[Taken]]:
    """Score a model and let the gate decide; the decision, and the batches that were taken in before.

    InputError when there is a champion, no held-out photo yet, or no safe and fitting model in the file; LostRaceError
    when another writer was first: then nothing has changed but the batches.
    """
    _check(workspace.params, declared)
    with workspace.turn():
        if workspace.state().champion is not None:
            raise InputError(
                f"{workspace.root}: there is a champion, and a model is adopted only as the first; begin a new "
                "workspace with `ssclass init DIR`"
            )
        taken = [take_in(workspace, ref) for ref in waiting(Store(workspace.settings), workspace.state())]
        if not workspace.dataset().holdout:
            raise InputError(
                f"{workspace.root}: no held-out photos to score a model on; send labelled photos with `ssclass import "
                "DIR` or `ssclass submit DIR`, then adopt, before the first `ssclass retrain`"
            )
        result = _score(workspace, declared, progress)
        about = {
            "file": declared.path.name,
            "sha256": file_sha256(declared.path),
            "preprocess": declared.preprocess,
            "logits": declared.logits,
        }
        tracking = Tracking(workspace.settings)
        run_id = tracking.open_run(result.key)
        params = workspace.params.model_dump(mode="json") | {"adopted": about}
        tracking.log_result(run_id, result, params, workspace.root / CANDIDATE, workspace.dataset().digest)
        event = record(workspace, result, run_id, about)
        reconcile(workspace)
        return event, taken


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


def _score(workspace: Workspace, declared: Declared, progress: learning.Progress) -> learning.Result:
    """The model in candidate/, its answers in the result folder, as a training would leave them."""
    watch = learning.Stopwatch()
    folder = workspace.root / CANDIDATE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    at = declared
    with watch.step("wrapping"):
        model = wrap(at.path, folder, at.classes, at.preprocess, logits=at.logits, size=at.size)
    key = _key(workspace, model)
    if key in workspace.state().decisions:
        raise InputError(f"{at.path}: decided on already, on these photos; `ssclass history` shows it")
    trained = {"head": HEAD_NAME, "train_size": 0, "cross_validation": {}, "history": {}}
    (folder / "training.json").write_text(json.dumps(trained, indent=1) + "\n")
    (workspace.root / "code.json").write_text(code_json())
    dataset, classes = workspace.dataset(), workspace.params.dataset.classes
    rows = dataset.holdout
    with watch.step("evaluation"):
        raw = learning.answers(workspace, model, rows, progress)
        check_probabilities(raw, at.path)
        learning.evaluate(workspace)
    result = learning.Result(
        key=key,
        data_version=workspace.data_version,
        classes=classes,
        head=HEAD_NAME,
        fingerprint=model.fingerprint,
        size=model.size,
        train_size=0,
        holdout=tuple(row.sha256 for row in rows),
        batches=tuple(dataset.batch_of(row.sha256) for row in rows),
        labels=learning.flat(learning.label_index(rows, classes)),
        candidate=learning.nested(align(raw, model.classes, classes)),
        candidate_class=learning.flat(predicted(raw, model.classes, classes)),
        champion_key=None,
        champion=None,
        champion_class=None,
        cross_validation={},
        history={},
        saved_alike=True,  # `wrap` gave the model as it reads from what was saved
        seconds=watch.seconds,
        sources=dataset.by_source(),
    )
    learning.keep_result(workspace, result)
    return result


def _key(workspace: Workspace, model: Adopted) -> str:
    """The decision key (hex, 16) of a model that was not trained here; which class each output is, is in it."""
    text = f"adopt {workspace.dataset().digest} {workspace.params.result_digest} {code_digest()} {model.fingerprint}"
    return hashlib.sha256(" ".join([text, *model.classes]).encode()).hexdigest()[:16]
