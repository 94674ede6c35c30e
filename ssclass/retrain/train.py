"""From a data version to a candidate, and both models' answers on the held-out photos.

A training reads one version and writes one folder, ``.ssclass/results/<decision key>/``: nothing of the work tree, so
that other writers go on meanwhile, a worker on another machine can do it, and what a killed run finished is used
again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.data.dataset import Dataset
from ssclass.errors import BatchError
from ssclass.model.runtimes import TENSORFLOW, runtime_of
from ssclass.params import Params
from ssclass.retrain.predict import (
    HeldOut,
    Progress,
    answer,
    decided_classifier,
    memo_of,
    result_folder,
    silent,
)
from ssclass.retrain.race import last_winner
from ssclass.retrain.result import RESULT, Answers, Result, label_index, make_result
from ssclass.retrain.statistics import calibration, sure_above
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.version import Version, photos_of
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier
    from ssclass.model.features import FeatureMemo, Features
    from ssclass.model.spec import FeatureSpec, Spec
    from ssclass.model.training import Trained

METRICS = "metrics.json"


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


def train(workspace: Workspace, version: Version, key: str, progress: Progress = silent) -> Result:
    """Train, score candidate and champion on the same photos, and leave it all in the result folder.

    A finished result of the same key is taken as it is. BatchError when there is too little data to train on.
    """
    folder = result_folder(workspace, key)
    if (folder / RESULT).exists():
        try:
            return Result.read(folder / RESULT)
        except BatchError:  # damaged on this disk: made anew
            shutil.rmtree(folder)

    from ssclass.model.classifier import Classifier

    watch, memo = Stopwatch(), memo_of(workspace)
    dataset, champion_key = version.dataset, version.state.champion
    partial = folder.with_name(f"{key}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    held_out = HeldOut(version, memo, dataset.holdout, progress)
    head = last_winner(version, len(dataset.train))
    trained = fit(version, memo, version.params, dataset, progress, watch, head=head, held_out=held_out)
    save_candidate(trained, dataset, partial / CANDIDATE, version.params)
    with watch.step("evaluation"):
        candidate = held_out.answer(trained.classifier)
        again = held_out.answer(Classifier.load(partial / CANDIDATE))
        champion = None
        if champion_key is not None:
            champion = champion_key, held_out.answer(decided_classifier(workspace, champion_key))
        write_metrics(candidate, partial / CANDIDATE, partial / METRICS)
    result = make_result(
        key=key,
        data_version=version.data_version,
        dataset=dataset,
        model=trained.classifier,
        head=trained.head,
        candidate=candidate,
        champion=champion,
        train_size=len(dataset.train),
        cross_validation={name: found.accuracy for name, found in trained.cv.items()},
        history=curves(trained),
        saved_alike=candidate.same_bits(again),
        seconds=watch.seconds,
    )
    result.write(partial / RESULT)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return result


def fit(
    version: Version,
    memo: FeatureMemo,
    params: Params,
    dataset: Dataset,
    progress: Progress = silent,
    watch: Stopwatch | None = None,
    *,
    head: str | None = None,
    held_out: HeldOut | None = None,
) -> Trained:
    """Fit the heads that the params name to the training split of a data set; nothing is written but the memo.

    `dataset` is the version's, or has fewer sources. `head`: the only one to be fitted of those that ``auto`` chooses
    among. `held_out` keeps the features of the held-out photos, which lie beside those of training. BatchError when it
    has photos of fewer than two classes.
    """
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
    held_out = held_out or HeldOut(version, memo, (), progress)
    with watch.step("features"):
        planned = plan(params)  # by `auto` where that is asked for: the features are then the same, whatever is raced
        features = {
            spec: training_features(held_out, spec, params, dataset, tried(planned, spec, head, len(rows)))
            for spec in dict.fromkeys(spec for spec, _ in planned)
        }
    with watch.step("training"):
        return train_planned(
            features.__getitem__,
            labels,
            [row.group for row in rows],
            planned,
            params
            if head is None
            else params.model_copy(update={"model": params.model.model_copy(update={"head": head})}),
            lambda done, total: progress("training", done, total),
        )


def tried(planned: Sequence[tuple[FeatureSpec, str]], spec: FeatureSpec, head: str | None, photos: int) -> set[str]:
    """The names of the heads that are fitted to features of a spec; `head`: the only one that ``auto`` tries."""
    from ssclass.model.heads.registry import raced

    named = {name for each, name in planned if each == spec}
    if "auto" in named:
        named |= {head} if head is not None else {*raced(photos)}
    return named - {"auto"}


def training_features(
    held_out: HeldOut, spec: FeatureSpec, params: Params, dataset: Dataset, heads: Collection[str]
) -> Features:
    """Features of the training photos and of their augmented copies, as many as the params ask for.

    `heads`: the names of those that are fitted to them. There are no more arrays than these need, and roots in the
    place of maps where those do.
    """
    from ssclass.model.augmentation import AugmentedSpec
    from ssclass.model.features import Features
    from ssclass.model.pooled import PooledSpec, lean_arrays, remembered_axes, sample

    sha256s = tuple(row.sha256 for row in dataset.train)
    copies = [AugmentedSpec(spec, params.augment, number) for number in range(params.augment.copies)]
    lean = lean_arrays(spec, heads)
    if lean is None:
        features = held_out.beside(spec, sha256s)
        return features.with_augmented([held_out.without(copy, sha256s) for copy in copies])
    maps, others = lean
    found: list[dict[str, np.ndarray]] = [{} for _ in range(1 + len(copies))]
    axes = None
    specs: list[Spec] = [spec, *copies]
    sources: list[tuple[list[Spec], tuple[str, ...] | None]] = []
    if others:
        sources.append((specs, others))
    if maps:
        drawn, seen = sample(dataset.shards, sha256s)
        axes = remembered_axes(
            held_out.memo.local, spec, params.train.seed, drawn, seen, lambda: held_out.without(spec, drawn, maps)
        )
        sources.append(([PooledSpec.of(each, axes, seen) for each in specs], None))
    for (photos, *altered), names in sources:
        found[0] |= held_out.beside(photos, sha256s, names).arrays
        for arrays, copy in zip(found[1:], altered, strict=True):
            arrays |= held_out.without(copy, sha256s, names).arrays
    features = Features(sha256s, found[0], axes=axes)
    return features.with_augmented([Features(sha256s, arrays) for arrays in found[1:]])


def save_candidate(trained: Trained, dataset: Dataset, folder: Path, params: Params) -> None:
    """Write the small form of a classifier, and training.json beside it, to a folder that it replaces.

    It says which runtime ``features.engine`` of the params meant on this machine, and under which fingerprints the
    roots are remembered that a head learnt from.
    """
    from ssclass.model.pooled import pooled_fingerprints

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trained.classifier.save(folder)
    record: dict[str, Any] = {
        "head": trained.head,
        "train_size": len(dataset.train),
        "engine": runtime_of(params.features) or TENSORFLOW,
        "cross_validation": {name: [float(value) for value in found.accuracy] for name, found in trained.cv.items()},
        "history": curves(trained),
    }
    labels = label_index(dataset.train, trained.classifier.classes)
    if (sure := sure_above(trained.cv[trained.head].probabilities, labels)) is not None:
        record["sure"] = sure
    if (believed := calibration(trained.cv[trained.head].probabilities, labels)) is not None:
        record["calibration"] = believed
    if pooled := pooled_fingerprints(trained.classifier, params.augment):
        record["pooled"] = pooled
    write_training(folder, record)


def write_training(folder: Path, record: dict[str, Any]) -> None:
    """Write how a candidate was trained to its folder, training.json."""
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def write_metrics(candidate: Answers, folder: Path, path: Path) -> None:
    """Write metrics.json: the candidate's scores on the held-out photos; `folder` is the candidate's."""
    found = candidate.scores
    record = json.loads((folder / "training.json").read_text())
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
        "class": {name: asdict(scores) for name, scores in found.per_class.items()},
    }
    path.write_text(json.dumps(metrics, indent=1) + "\n")


def curves(trained: Trained) -> dict[str, list[float]]:
    """Every head's curves as ``<head>_<name>``: a value an epoch, or a value for each L2 penalty."""
    found = {head: each.curves for head, each in trained.cv.items()}
    found[trained.head] = trained.history
    return {
        f"{head}_{name}": [float(value) for value in curve]
        for head, named in found.items()
        for name, curve in named.items()
    }


def contact_sheet(version: Version, photos: int = 8) -> dict[str, Figure]:
    """``augmentation.png``: a few training photos of the newest batch, each beside its augmented copies; else nothing.

    It is made anew for each run, and kept nowhere else: a photo that is to be forgotten is not in one more place.
    """
    from ssclass.model.augmentation import contact_sheet

    augment = version.params.augment
    if not augment.copies:
        return {}
    found = dict(photos_of(version, {row.sha256 for row in version.dataset.train[-photos:]}))
    return {"augmentation.png": contact_sheet(sorted(found.items()), augment)}


# -- dvc repro ---------------------------------------------------------------------------------------------


def train_stage(workspace: Workspace, progress: Progress = silent) -> None:
    """Do the stage `train` of dvc.yaml: fit on the work tree's data and params, and write candidate/."""
    version = workspace.work_tree()
    head = last_winner(version, len(version.dataset.train))
    trained = fit(version, memo_of(workspace), version.params, version.dataset, progress, head=head)
    save_candidate(trained, version.dataset, workspace.root / CANDIDATE, version.params)


def evaluate_stage(workspace: Workspace, progress: Progress = silent) -> None:
    """Do the stage `evaluate` of dvc.yaml: score candidate/ on the held-out photos, and write metrics.json."""
    from ssclass.model.adopted import open_classifier

    version = workspace.work_tree()
    model: Classifier | Adopted = open_classifier(workspace.root / CANDIDATE)
    candidate = answer(version, memo_of(workspace), model, version.dataset.holdout, progress)
    write_metrics(candidate, workspace.root / CANDIDATE, workspace.root / METRICS)


Steps = Callable[[Workspace, Progress], None]
STAGES: dict[str, Steps] = {"train": train_stage, "evaluate": evaluate_stage}
"""The steps of dvc.yaml by their names."""
