"""Measure one row of the study: repeated cross-validation, the model, held-out photos, size and speed.

A finished row lies in ``.ssclass/study/<row key>/`` and is never trained again. Nothing else of the workspace is
written: no ledger, no registry, no candidate.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.dataset import Dataset
from ssclass.data.shapes import Size, fitted
from ssclass.errors import BatchError
from ssclass.files import write_whole
from ssclass.model import compute
from ssclass.retrain.predict import Progress, answer, silent
from ssclass.retrain.result import Result, label_index, make_result
from ssclass.retrain.scores import Scores
from ssclass.retrain.train import Stopwatch, curves, fit
from ssclass.study.rows import StudyRow
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.features import FeatureMemo
    from ssclass.model.training import Trained
    from ssclass.params import ModelParams, Params

MODEL = "model.keras"
CALLS = {1: 9, 32: 3}
"""Photos in a call → calls that are timed, of which the median counts."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The figures of a row that is trained and judged.

    `result` is what a retrain would write. `out_of_fold`: probabilities [train][classes], means over the repeats.
    `left_out`: source → sha256 of its photos → whether a model that was trained on the other sources has them right.
    """

    row: str
    result: Result
    train: tuple[str, ...]
    train_labels: tuple[int, ...]
    out_of_fold: tuple[tuple[float, ...], ...]
    repeats: int
    left_out: dict[str, dict[str, bool]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fitted(Judged):
    """A row whose model was not measured yet; `size`: what its photos are decoded at."""

    size: Size


@dataclass(frozen=True, kw_only=True)
class Measured(Judged):
    """The figures of a finished row.

    `milliseconds`: photos in a call → milliseconds a photo, whole model, pixels to probabilities.
    """

    parameters_backbone: int
    parameters_head: int
    megabytes: float
    milliseconds: dict[int, float]
    device: str

    @property
    def scores(self) -> Scores:
        """Scores of the model on the held-out photos."""
        return self.result.candidate.scores

    @property
    def cv(self) -> tuple[float, float]:
        """Mean and standard deviation of the cross-validated accuracy: over repeats, or over the folds of one."""
        values = np.array(self.result.cross_validation[self.result.head])
        return float(values.mean()), float(values.std(ddof=1))

    @property
    def cv_correct(self) -> NDArray[np.bool_]:
        """For which training photos the mean of the out-of-fold probabilities is correct, bool [train]."""
        return np.asarray(np.array(self.out_of_fold).argmax(axis=1) == np.array(self.train_labels))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """For which held-out photos the model is correct, bool [held out]."""
        return self.result.candidate.correct

    def write(self, folder: Path) -> None:
        """Write the figures to a folder; row.json comes last, whole or not at all."""
        self.result.write(folder / "result.json")
        body = {name: value for name, value in vars(self).items() if name != "result"} | {"result": None}
        write_whole(folder / "row.json", json.dumps(body))

    @classmethod
    def read(cls, folder: Path) -> Measured | None:
        """Read the figures that :meth:`write` wrote; None when they are not there."""
        if not (folder / "row.json").exists():
            return None
        body: dict[str, Any] = json.loads((folder / "row.json").read_text())
        body["result"] = Result.read(folder / "result.json")
        body["milliseconds"] = {int(n): value for n, value in body["milliseconds"].items()}
        for name in ("train", "train_labels"):
            body[name] = tuple(body[name])
        body["out_of_fold"] = tuple(tuple(row) for row in body["out_of_fold"])
        return cls(**body)


def folder_of(workspace: Workspace, key: str) -> Path:
    """The folder of a row: row.json, result.json, candidate/, and model.keras until its run has it."""
    return workspace.private / "study" / key


def finished(workspace: Workspace, row: StudyRow, dataset: Dataset) -> Measured | None:
    """Read the figures of a row; None when it was not finished, or for other data, params or code."""
    found = Measured.read(folder_of(workspace, row.key(row.with_sources(dataset))))
    return found and replace(found, row=row.name)


def fitted_row(
    version: Version, memo: FeatureMemo, row: StudyRow, dataset: Dataset, folder: Path, progress: Progress = silent
) -> Fitted:
    """Train a row and have it judged, with its model in ``candidate/`` and ``model.keras`` of a folder that is emptied.

    WeightsError when its backbone's weights cannot be had, BatchError for too little data. `dataset` is the version's;
    the row chooses its sources. A process can do it that has no workspace.
    """
    from ssclass.model.backbones import import_keras
    from ssclass.model.classifier import Classifier

    dataset = row.with_sources(dataset)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / CANDIDATE).mkdir(parents=True)

    import_keras().backend.clear_session()  # the graphs of the row before would fill the memory
    watch = Stopwatch()
    trained, out_of_fold, accuracy = cross_validated(version, memo, row.params, dataset, row.repeats, progress, watch)
    labels = label_index(dataset.train, row.params.dataset.classes)
    with watch.step("evaluation"):
        trained.classifier.save(folder / CANDIDATE)
        candidate = answer(version, memo, trained.classifier, dataset.holdout)
        saved = answer(version, memo, Classifier.load(folder / CANDIDATE), dataset.holdout)
    with watch.step("export"):
        trained.classifier.export(folder / MODEL)
    return Fitted(
        row=row.name,
        result=make_result(
            key=row.key(dataset),
            data_version=version.data_version,
            dataset=dataset,
            model=trained.classifier,
            head=trained.head,
            candidate=candidate,
            champion=None,
            train_size=len(dataset.train),
            cross_validation={trained.head: accuracy},
            history=curves(trained),
            saved_alike=candidate.same_bits(saved),
            seconds=watch.seconds,
        ),
        train=tuple(row.sha256 for row in dataset.train),
        train_labels=tuple(int(label) for label in labels),
        out_of_fold=_nested(out_of_fold),
        repeats=row.repeats,
        left_out=left_out(version, memo, row.params, dataset, trained.head, progress),
        size=trained.classifier.size,
    )


def timed(fitted: Fitted, folder: Path) -> Measured:
    """Measure the size and speed of a row's model here, and finish the row: its figures go to its folder."""
    from ssclass.model.backbones import import_keras

    model = import_keras().models.load_model(folder / MODEL, compile=False)
    head = sum(layer.count_params() for layer in model.layers if layer.name.startswith("head"))
    figures = {name: value for name, value in vars(fitted).items() if name != "size"}
    measured = Measured(
        **figures,
        parameters_backbone=model.count_params() - head,
        parameters_head=head,
        megabytes=(folder / MODEL).stat().st_size / 1e6,
        milliseconds={n: milliseconds(model, n, fitted.size) for n in CALLS},
        device=device(),
    )
    measured.write(folder)
    return measured


def cross_validated(
    version: Version,
    memo: FeatureMemo,
    params: Params,
    dataset: Dataset,
    repeats: int,
    progress: Progress = silent,
    watch: Stopwatch | None = None,
) -> tuple[Trained, NDArray[np.float64], list[float]]:
    """Train, and cross-validate the head that was chosen `repeats` times, each with another seed.

    Returns the training with the first seed, the mean of the out-of-fold probabilities (float64 [train, classes]), and
    the accuracy of each repeat (of each fold where there is one repeat).
    """
    trained = fit(version, memo, params, dataset, progress, watch)
    labels = label_index(dataset.train, params.dataset.classes)
    found = [trained.cv[trained.head].probabilities]
    model = with_head(params.model, trained.head)
    for repeat in range(1, repeats):
        progress("cross-validation", repeat, repeats)
        train = params.train.model_copy(update={"seed": params.train.seed + repeat})
        again = fit(version, memo, params.model_copy(update={"train": train, "model": model}), dataset)
        found.append(again.cv[trained.head].probabilities)
    progress("cross-validation", repeats, repeats)
    accuracy = [float((probabilities.argmax(axis=1) == labels).mean()) for probabilities in found]
    if repeats == 1:
        accuracy = [float(value) for value in trained.cv[trained.head].accuracy]
    return trained, np.mean(found, axis=0), accuracy


def left_out(
    version: Version, memo: FeatureMemo, params: Params, dataset: Dataset, head: str, progress: Progress = silent
) -> dict[str, dict[str, bool]]:
    """How a head does on photos of each source when it is trained on those of the others alone.

    Source → sha256 → whether it is right. A source is left away where the others do not have photos of two classes to
    train on. A photo that is nearly one of those that trained is not asked about.
    """
    sources = sorted({dataset.source_of(row.sha256) for row in dataset.used})
    alone = params.model_copy(update={"model": with_head(params.model, head)})
    found: dict[str, dict[str, bool]] = {}
    for source in sources if len(sources) > 1 else ():
        others = replace(dataset, sources=tuple(one for one in sources if one != source))
        known = {row.group for row in others.train}
        judged = [row for row in dataset.used if dataset.source_of(row.sha256) == source and row.group not in known]
        try:
            trained = fit(version, memo, alone, others, progress)
        except BatchError:
            continue
        correct = answer(version, memo, trained.classifier, judged).correct
        found[source] = {row.sha256: bool(right) for row, right in zip(judged, correct, strict=True)}
    return found


def with_head(model: ModelParams, head: str) -> ModelParams:
    """Copy params so that they train the head that was chosen, and no other; an ensemble names its members anyway."""
    return model if model.members else model.model_copy(update={"head": head})


def device() -> str:
    """The name of the device that the milliseconds were measured on: the GPU, or ``CPU, 2 cores``."""
    name = compute.described()
    if name != "CPU":
        return name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"CPU, {cores} core{'s' if cores > 1 else ''}"


def milliseconds(model: Any, photos: int, size: Size) -> float:
    """Measure a whole model, pixels to probabilities: milliseconds a photo, with `photos` of one shape in a call."""
    import tensorflow as tf

    width, height = fitted(size, 4, 3)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (photos, height, width, 3), dtype=np.uint8))
    run = tf.function(lambda images: model(images, training=False))
    run(images)
    seconds = []
    for _ in range(CALLS[photos]):
        began = time.perf_counter()
        run(images).numpy()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) * 1000 / photos


def _nested(values: NDArray[np.floating]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
