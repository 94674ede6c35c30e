"""From a data version to a candidate and both models' answers on the held-out photos.

Everything here is a function of the workspace's commit. What it finds is a :class:`Result` in a folder of
files, so that a worker on another machine can do it and a killed run's finished work is used again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.code import code_digest, code_json
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Row, iter_photos
from ssclass.errors import BatchError
from ssclass.files import whole, write_whole
from ssclass.params import AugmentParams, Params
from ssclass.retrain.scores import Scores, align, predicted, score
from ssclass.workspace.dvc import CANDIDATE, DATA
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import Features, FeatureSpec, Spec
    from ssclass.model.training import Trained

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def decision_key(dataset: Dataset, params: Params, revoked: Iterable[str] = ()) -> str:
    """What a decision depends on (hex, 16): the rows, the params that matter, the code. Same key, same answer.

    `revoked` batches are in it, as taking the newest one out gives rows that were decided on before, when the
    champion was another: that is a new question.
    """
    text = " ".join([dataset.digest, params.result_digest, code_digest(), *sorted(revoked)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Stopwatch:
    """Seconds per named step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class Result:
    """What a training found out; JSON-able. Probabilities are [n][classes], one held-out photo a row."""

    key: str
    data_version: str
    classes: tuple[str, ...]
    head: str
    fingerprint: str
    size: int
    train_size: int
    holdout: tuple[str, ...]
    batches: tuple[str, ...]
    labels: tuple[int, ...]
    candidate: tuple[tuple[float, ...], ...]
    candidate_class: tuple[int, ...]
    champion_key: str | None
    champion: tuple[tuple[float, ...], ...] | None
    champion_class: tuple[int, ...] | None
    cross_validation: dict[str, list[float]]
    history: dict[str, list[float]]
    saved_alike: bool
    seconds: dict[str, float]
    sources: dict[str, dict[str, int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        body: dict[str, Any] = json.loads(path.read_text())
        for name in ("classes", "holdout", "batches", "labels", "candidate_class", "champion_class"):
            body[name] = None if body[name] is None else tuple(body[name])
        for name in ("candidate", "champion"):
            body[name] = None if body[name] is None else tuple(tuple(row) for row in body[name])
        return cls(**body)

    def scores(self) -> tuple[Scores, Scores | None]:
        """The candidate's scores and the champion's, on the same photos."""
        labels = np.array(self.labels)
        champion = None if self.champion is None else score(np.array(self.champion), labels, self.classes)
        return score(np.array(self.candidate), labels, self.classes), champion


def features_of(workspace: Workspace, spec: Spec, progress: Progress = silent) -> Features:
    """Features of every photo of the data set, computed only for shards never seen under this fingerprint.

    Of copies those of every training photo.
    """
    from ssclass.model.features import FeatureMemo, concat, shard_features
    from ssclass.store import Store

    memo = FeatureMemo(workspace.private, Store(workspace.settings))
    parts = []
    with workspace.snapshot() as snapshot:
        for shard in workspace.dataset().shards:
            if not shard.rows:
                continue

            def photos(name: str = f"{DATA}/{shard.batch_id}.parquet") -> Iterator[tuple[str, bytes]]:
                with snapshot.open(name) as source:
                    yield from iter_photos(source)

            def report(done: int, total: int, batch: str = shard.batch_id) -> None:
                progress(f"features of {batch}{spec.name}", done, total)

            parts.append(shard_features(spec, memo, shard, photos, progress=report))
    return concat(parts)


def lessons(
    workspace: Workspace, spec: FeatureSpec, augment: AugmentParams, rows: Sequence[Row], progress: Progress = silent
) -> Features:
    """Features of training rows and of their altered copies, as many as `augment` asks for."""
    from ssclass.model.augmentation import CopySpec

    sha256s = [row.sha256 for row in rows]
    copies = [CopySpec(spec, augment, number) for number in range(augment.copies)]
    features = features_of(workspace, spec, progress).take(sha256s)
    return features.with_copies([features_of(workspace, copy, progress).take(sha256s) for copy in copies])


def contact_sheet(workspace: Workspace, photos: int = 8) -> dict[str, Figure]:
    """``augmentation.png``: a few training photos of the newest batch, each beside its altered copies; else nothing.

    Made anew for each run, and kept nowhere else: a photo that is to be forgotten is not in one more place.
    """
    from ssclass.model.augmentation import contact_sheet

    augment = workspace.params.augment
    if not augment.copies:
        return {}
    dataset = workspace.dataset()
    shown = {row.sha256 for row in dataset.train[-photos:]}
    found: dict[str, bytes] = {}
    with workspace.snapshot() as snapshot:
        for batch in sorted({dataset.batch_of(sha256) for sha256 in shown}):
            with snapshot.open(f"{DATA}/{batch}.parquet") as source:
                found.update(iter_photos(source, shown))
    return {"augmentation.png": contact_sheet(sorted(found.items()), augment)}


def label_index(rows: Sequence[Row], classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels as indices of `classes`, int64 [n]; BatchError names a label that is not among them."""
    for row in rows:
        if row.label not in classes:
            raise BatchError(
                f"the data set has photos labelled {row.label!r}, which dataset.classes in params.yaml does not "
                "name; add it there"
            )
    return np.array([classes.index(row.label) for row in rows], dtype=np.int64)


def fit(workspace: Workspace, progress: Progress = silent, watch: Stopwatch | None = None) -> Trained:
    """Train on the training split; writes the small form of the classifier and training.json to candidate/."""
    dataset = workspace.dataset()
    trained = learnt(workspace, workspace.params, dataset, progress, watch)
    folder = workspace.root / CANDIDATE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    trained.classifier.save(folder)
    record = {
        "head": trained.head,
        "train_size": len(dataset.train),
        "cross_validation": {name: [float(value) for value in each.accuracy] for name, each in trained.cv.items()},
        "history": curves(trained),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return trained


def learnt(
    workspace: Workspace,
    params: Params,
    dataset: Dataset,
    progress: Progress = silent,
    watch: Stopwatch | None = None,
) -> Trained:
    """What the training split of a data set teaches by these params; nothing is written but the memo of features."""
    from ssclass.model.training import plan, train_planned

    watch = watch or Stopwatch()
    rows = dataset.train
    labels = label_index(rows, params.dataset.classes)
    present = {params.dataset.classes[index] for index in labels}
    if len(present) < 2:
        raise BatchError(
            f"the training split has photos of {len(present)} class(es) only "
            f"({', '.join(sorted(present)) or 'none'}); submit a batch with at least two of "
            f"{', '.join(params.dataset.classes)}"
        )
    with watch.step("features"):
        planned = plan(params)
        features = {
            spec: lessons(workspace, spec, params.augment, rows, progress)
            for spec in dict.fromkeys(spec for spec, _ in planned)
        }
    with watch.step("training"):
        return train_planned(
            features.__getitem__,
            labels,
            [row.group for row in rows],
            planned,
            params,
            lambda done, total: progress("training", done, total),
        )


def curves(trained: Trained) -> dict[str, list[float]]:
    """Every head's curves as ``<head>_<name>``: per epoch, or per strength for heads that have one."""
    found = {head: each.curves for head, each in trained.cv.items()}
    found[trained.head] = trained.history
    return {
        f"{head}_{name}": [float(value) for value in curve]
        for head, each in found.items()
        for name, curve in each.items()
    }


def answers(
    workspace: Workspace, classifier: Classifier | Adopted, rows: Sequence[Row], progress: Progress = silent
) -> NDArray[np.float64]:
    """A classifier's probabilities for rows of the data set, float64 [n, its classes], through the memo."""
    return classifier.predict(lambda spec: features_of(workspace, spec, progress).take(row.sha256 for row in rows))


def evaluate(workspace: Workspace, progress: Progress = silent) -> Scores:
    """Score candidate/ on the held-out photos; writes metrics.json."""
    from ssclass.model.adopted import open_classifier

    params, rows = workspace.params, workspace.dataset().holdout
    classes = params.dataset.classes
    classifier = open_classifier(workspace.root / CANDIDATE)
    found = score(
        align(answers(workspace, classifier, rows, progress), classifier.classes, classes),
        label_index(rows, classes),
        classes,
    )
    record = json.loads((workspace.root / CANDIDATE / "training.json").read_text())
    chosen = np.array(record["cross_validation"].get(record["head"], ()))
    metrics = {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "recall": found.recall,
        "precision": found.precision,
        "f_measure": found.f_measure,
        "calibration_error": found.calibration_error,
        **({"cv_accuracy": float(chosen.mean()), "cv_accuracy_sd": float(chosen.std(ddof=1))} if len(chosen) else {}),
        "holdout_size": found.n,
        "train_size": record["train_size"],
        "class": {name: asdict(each) for name, each in found.per_class.items()},
    }
    (workspace.root / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return found


def champion_classifier(workspace: Workspace, key: str) -> Classifier | Adopted:
    """The classifier of a decision, from its ``run/<key>`` tag; kept in a local folder."""
    from ssclass.model.adopted import open_classifier

    folder = workspace.private / "champions" / key
    if not (folder / "classifier.json").exists():
        with whole(folder) as new, workspace.snapshot(f"run/{key}") as snapshot:
            new.mkdir()
            for each in snapshot.files(CANDIDATE):
                snapshot.download(each.path, new / Path(each.path).name)
    return open_classifier(folder)


def result_folder(workspace: Workspace, key: str) -> Path:
    """Where the result of a key lies: result.json, metrics.json and candidate/."""
    return workspace.private / "results" / key


def adopt(workspace: Workspace, key: str) -> Result | None:
    """A finished result, put where a training would have left it: candidate/, metrics.json, code.json.

    None when this machine has none for the champion in force.
    """
    folder = result_folder(workspace, key)
    if not (folder / "result.json").exists():
        return None
    result = Result.read(folder / "result.json")
    if result.champion_key != workspace.state().champion:
        return None  # a person moved the champion meanwhile: the answers to compare with are another model's
    shutil.rmtree(workspace.root / CANDIDATE, ignore_errors=True)
    shutil.copytree(folder / CANDIDATE, workspace.root / CANDIDATE)
    shutil.copy(folder / "metrics.json", workspace.root / "metrics.json")
    (workspace.root / "code.json").write_text(code_json())
    return result


def learn(workspace: Workspace, key: str, progress: Progress = silent) -> Result:
    """Train, score candidate and champion on the same photos, and leave it all in the result folder.

    A finished result of the same key is taken as it is.
    """
    if (finished := adopt(workspace, key)) is not None:
        return finished

    from ssclass.model.classifier import Classifier

    watch = Stopwatch()
    params, dataset = workspace.params, workspace.dataset()
    rows, classes = dataset.holdout, params.dataset.classes
    (workspace.root / "code.json").write_text(code_json())
    trained = fit(workspace, progress, watch)
    with watch.step("evaluation"):
        evaluate(workspace, progress)
        labels = label_index(rows, classes)
        candidate = answers(workspace, trained.classifier, rows)
        again = answers(workspace, Classifier.load(workspace.root / CANDIDATE), rows)
        champion_key = workspace.state().champion
        champion = champion_class = None
        if champion_key is not None:
            classifier = champion_classifier(workspace, champion_key)
            raw = answers(workspace, classifier, rows, progress)
            champion = nested(align(raw, classifier.classes, classes))
            champion_class = flat(predicted(raw, classifier.classes, classes))
    result = Result(
        key=key,
        data_version=workspace.data_version,
        classes=classes,
        head=trained.head,
        fingerprint=trained.classifier.fingerprint,
        size=trained.classifier.size,
        train_size=len(dataset.train),
        holdout=tuple(row.sha256 for row in rows),
        batches=tuple(dataset.batch_of(row.sha256) for row in rows),
        labels=flat(labels),
        candidate=nested(candidate),
        candidate_class=flat(candidate.argmax(axis=1)),
        champion_key=champion_key,
        champion=champion,
        champion_class=champion_class,
        cross_validation={name: [float(value) for value in each.accuracy] for name, each in trained.cv.items()},
        history=curves(trained),
        saved_alike=bool(np.array_equal(candidate, again)),
        seconds=watch.seconds,
        sources=dataset.by_source(),
    )
    keep_result(workspace, result)
    return result


def keep_result(workspace: Workspace, result: Result) -> None:
    """Put a result into its folder, with the candidate/ and metrics.json that belong to it; result.json last."""
    folder = result_folder(workspace, result.key)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(workspace.root / CANDIDATE, folder / CANDIDATE)
    shutil.copy(workspace.root / "metrics.json", folder / "metrics.json")
    result.write(folder / "result.json")


def nested(values: NDArray[np.floating]) -> tuple[tuple[float, ...], ...]:
    """Probabilities as they stand in a Result."""
    return tuple(tuple(float(value) for value in row) for row in values)


def flat(values: NDArray[Any]) -> tuple[int, ...]:
    """Class indices as they stand in a Result."""
    return tuple(int(value) for value in values)
