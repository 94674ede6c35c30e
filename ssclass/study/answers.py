"""A model's answers on photos, and the threshold that its cross-validation would choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclass.data.folders import labelled_files
from ssclass.data.images import Refused, decode
from ssclass.errors import BatchError
from ssclass.retrain.predict import Progress, memo_of, silent
from ssclass.retrain.result import label_index
from ssclass.retrain.scores import align
from ssclass.serving.model import Model
from ssclass.study.measure import Measured, cross_validated, folder_of, with_head
from ssclass.workspace.version import photos_of
from ssclass.workspace.workspace import Workspace

BATCH = 32  # photos at a time
REPEATS = 4  # of the cross-validation that gives the threshold

Read = Callable[[set[str]], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Photos:
    """Photos for a model to answer: `labels` by name, `read` for their bytes, `title` to name them on the page."""

    labels: dict[str, str]
    read: Read
    title: str


def of_folder(folder: Path, model: Model) -> Photos:
    """The photos of class folders; BatchError when there are none, or a folder is no class of the model."""
    files = {str(file.path.relative_to(folder)): file for file in labelled_files(folder, model.classes, only=True)}

    def read(wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        for name, file in files.items():
            if name in wanted:
                yield name, file.path.read_bytes()

    return Photos({name: file.label for name, file in files.items()}, read, folder.name)


def of_holdout(workspace: Workspace) -> Photos:
    """The held-out photos of the data set as it is; BatchError when there are none."""
    version = workspace.at()
    rows = version.dataset.holdout
    if not rows:
        raise BatchError(f"{workspace.root}: no held-out photos yet; name a folder, or `ssclass retrain` first")
    title = f"held-out photos of {version.data_version}"
    return Photos({row.sha256: row.label for row in rows}, lambda wanted: photos_of(version, wanted), title)


@dataclass(frozen=True)
class Answers:
    """A model's answers: `probabilities` float64 [n, classes] and `labels` int64 [n], in the order of `names`.

    `unreadable`: the reason for each photo that has no answer, by name.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    unreadable: dict[str, str]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each photo, int64 [n]."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """For which photos the predicted class is the label, bool [n]."""
        return np.asarray(self.predicted == self.labels)


def answer_photos(model: Model, photos: Photos, progress: Progress = silent) -> Answers:
    """Let a model answer photos; those that cannot be read are named, with the reason."""
    names: list[str] = []
    probabilities: list[NDArray[np.float64]] = []
    unreadable: dict[str, str] = {}
    waiting: list[NDArray[np.uint8]] = []

    def answer() -> None:
        if waiting:
            probabilities.append(model.predict(waiting))
            waiting.clear()

    for done, (name, data) in enumerate(photos.read(set(photos.labels)), 1):
        try:
            waiting.append(decode(data, model.size))
            names.append(name)
        except Refused as refused:
            unreadable[name] = f"{refused.reason}: {refused.detail}"
        if len(waiting) == BATCH:
            answer()
        progress("answers", done, len(photos.labels))
    answer()
    if not names:
        raise BatchError(f"{photos.title}: none of its {len(photos.labels)} files is a readable photo; name others")
    labels = np.array([model.classes.index(photos.labels[name]) for name in names])
    return Answers(tuple(names), labels, np.concatenate(probabilities), unreadable)


@dataclass(frozen=True)
class Threshold:
    """A threshold on the probability of the second class, chosen on training photos out of fold.

    `accuracy` and `accuracy_at_half` are those of the `n` training photos at `value` and at 0.5.
    """

    value: float
    accuracy: float
    accuracy_at_half: float
    n: int


def threshold(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Threshold:
    """Choose the threshold with the most correct photos, of equals the one nearest to 0.5.

    labels: 0 or 1, [n]; probabilities: [n, 2].
    """
    of_second = probabilities[:, 1]
    values = np.unique(of_second)
    tries = np.unique(np.concatenate([[0.5], (values[1:] + values[:-1]) / 2]))
    accuracy = np.array([((of_second > value) == labels).mean() for value in tries])
    best = np.flatnonzero(accuracy == accuracy.max())
    chosen = best[np.abs(tries[best] - 0.5).argmin()]
    half = float(((of_second > 0.5) == labels).mean())
    return Threshold(float(tries[chosen]), float(accuracy[chosen]), half, len(labels))


def out_of_fold(
    workspace: Workspace | None, model: Model, progress: Progress = silent
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | str:
    """Labels and out-of-fold probabilities of a model's training photos; or why they are not to be had, as a text."""
    if workspace is None or model.key is None:
        return "it is of no decision and no study of a workspace, so its training photos are not known"
    measured = Measured.read(folder_of(workspace, model.key))
    if measured is not None:
        return np.array(measured.train_labels), np.array(measured.out_of_fold)
    event = workspace.at().state.decisions.get(model.key)
    if event is None:
        return f"{model.key} is no decision of this workspace"
    version = workspace.decided(model.key)
    params, dataset = version.params, version.dataset
    gone = {row.sha256 for row in dataset.train} - {row.sha256 for row in workspace.at().dataset.rows}
    if gone:
        return f"{len(gone)} of its training photos are no longer in the data set"
    params = params.model_copy(update={"model": with_head(params.model, event.body["head"])})
    _, probabilities, _ = cross_validated(workspace.at(), memo_of(workspace), params, dataset, REPEATS, progress)
    probabilities = align(probabilities, params.dataset.classes, model.classes).astype(float)
    return label_index(dataset.train, params.dataset.classes), probabilities
