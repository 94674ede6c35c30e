"""Rows of the study trained one after the other here, or side by side on the cluster of the settings.

A process of a cluster has no workspace. The texts of a version travel to it; shards, photos and features it reads from
S3; a row's model travels back with its figures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ssclass.data.dataset import Dataset
from ssclass.errors import BatchError, WeightsError
from ssclass.files import write_whole
from ssclass.retrain.predict import Progress, memo_of, remember_elsewhere
from ssclass.spread import elsewhere, spread
from ssclass.store import Store
from ssclass.study.measure import Fitted, fitted_row, folder_of
from ssclass.study.rows import StudyRow
from ssclass.workspace.objects import Objects
from ssclass.workspace.version import CarriedVersion
from ssclass.workspace.workspace import Workspace

Fit = Fitted | WeightsError | BatchError
"""A row that was trained, or why it could not be."""


def fitted_rows(workspace: Workspace, rows: Sequence[StudyRow], dataset: Dataset, progress: Progress) -> Iterator[Fit]:
    """Train rows, in their order; the model of each lies in the folder of its key by then."""
    if not elsewhere(workspace.settings):
        yield from map(partial(_here, workspace, dataset, progress), rows)
        return
    _remember_features(workspace, rows, progress)
    version = workspace.at()
    make = partial(_fitting, workspace.store, version.texts(), version.commit)
    for done, (row, (fit, files)) in enumerate(zip(rows, spread(workspace.settings, make, rows), strict=True), 1):
        folder = folder_of(workspace, row.key(row.with_sources(dataset)))
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in files.items():
            write_whole(folder / name, data)
        progress("rows", done, len(rows))
        yield fit


def _here(workspace: Workspace, dataset: Dataset, progress: Progress, row: StudyRow) -> Fit:
    def within(what: str, done: int, total: int) -> None:
        progress(f"{row.name}: {what}", done, total)

    folder = folder_of(workspace, row.key(row.with_sources(dataset)))
    try:
        return fitted_row(workspace.at(), memo_of(workspace), row, dataset, folder, within)
    except (WeightsError, BatchError) as error:
        return error


def _fitting(
    store: Store, texts: dict[str, str], commit: str | None
) -> Callable[[StudyRow], tuple[Fit, dict[str, bytes]]]:
    """A function of a row: its figures, and the files of its model by their paths."""
    from ssclass.model.features import FeatureMemo

    kept = TemporaryDirectory(prefix="study-")
    alone = Store(store.settings.model_copy(update={"compute": "local"}))  # here, and nowhere else again
    root = Path(kept.name)
    objects = Objects(store.settings.workspace, alone)
    version, memo = CarriedVersion(texts, root / "shards", objects, commit), FeatureMemo(root / "memo", alone)

    def fitted(row: StudyRow) -> tuple[Fit, dict[str, bytes]]:
        folder = Path(kept.name) / "row"
        try:
            found = fitted_row(version, memo, row, version.dataset, folder)
        except (WeightsError, BatchError) as error:
            return error, {}
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return found, {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return fitted


def _remember_features(workspace: Workspace, rows: Sequence[StudyRow], progress: Progress) -> None:
    """Have features computed that several rows need: each would compute them for itself.

    Weights that are not to be had are told by the row that needs them.
    """
    from ssclass.model.augmentation import AugmentedSpec
    from ssclass.model.spec import Spec
    from ssclass.model.training import plan

    needed: dict[Spec, None] = {}
    for row in rows:
        try:
            for spec, _ in plan(row.params):
                copies = range(row.params.augment.copies)
                needed |= dict.fromkeys((spec, *(AugmentedSpec(spec, row.params.augment, each) for each in copies)))
        except WeightsError:
            continue
    version, memo = workspace.at(), memo_of(workspace)
    for each in needed:
        try:
            remember_elsewhere(version, memo, workspace.store, each, version.dataset.shards, progress)
        except WeightsError:
            continue
