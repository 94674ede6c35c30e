"""Run the study: measure rows, log each to MLflow when it is finished, then write the pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ssclass.code import code_digest
from ssclass.data.dataset import Dataset
from ssclass.errors import BatchError, WeightsError
from ssclass.retrain.predict import Progress, silent
from ssclass.study.experiment import StudyRuns
from ssclass.study.measure import MODEL, Fitted, Measured, finished, folder_of, timed
from ssclass.study.report import Study, pairs
from ssclass.study.report import page as report
from ssclass.study.rows import StudyRow, choose, load_rows
from ssclass.study.side_by_side import Fit, fitted_rows
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.workspace import Workspace

Say = Callable[[str], None]


def run_study(workspace: Workspace, names: Iterable[str] = (), progress: Progress = silent, say: Say = print) -> Study:
    """Measure the rows that are not finished, and write the pages about all that are.

    `say` gets a line about each row as it ends. TrackingError when MLflow is away, before any row is trained.
    """
    with FileLock(_made(workspace.private) / "study.lock"):
        rows, dataset = load_rows(workspace), workspace.at().dataset
        runs = StudyRuns(workspace)
        parent = runs.parent(_key(workspace, dataset), f"{workspace.at().data_version} (running)")
        not_run: dict[str, str] = {}
        for row, outcome in _measured(workspace, choose(rows, names), dataset, progress):
            if isinstance(outcome, Measured):
                mean, sd = outcome.cv
                scores = outcome.scores
                say(f"{row.name}: {scores.right} of {scores.n} held out, cross-validated {mean:.4f} ± {sd:.4f}")
            elif outcome is None:
                say(f"{row.name}: finished before")
            else:
                not_run[row.name] = str(outcome)
                say(f"{row.name}: not run: {outcome}")
                continue
            measured = finished(workspace, row, dataset)
            assert measured is not None, "it is now"
            _log_row(workspace, runs, parent, row, measured, dataset)
        found = survey(workspace, rows, dataset, not_run)
        for two in pairs(found):
            if two.other == found.rows[two.row].against and (run := runs.child(parent, found.measured[two.row])):
                runs.log_metrics(
                    run,
                    {
                        "wins": two.holdout.wins,
                        "losses": two.holdout.losses,
                        "mcnemar_p": two.holdout.mcnemar_p,
                        "cv_wins": two.out_of_fold.wins,
                        "cv_losses": two.out_of_fold.losses,
                        "cv_mcnemar_p": two.out_of_fold.mcnemar_p,
                    },
                )
        runs.conclude_study(parent, write(workspace, found), found.name())
        return found


def _measured(
    workspace: Workspace, rows: Iterable[StudyRow], dataset: Dataset, progress: Progress
) -> Iterator[tuple[StudyRow, Measured | WeightsError | BatchError | None]]:
    """Rows in their order, each with its figures, None where they were there before, or why there are none."""
    rows = list(rows)
    wrong = {row.name: error for row in rows if (error := _wrong(row, dataset))}
    new: dict[str, StudyRow] = {}  # rows that are the same but for their names are trained once
    for row in rows:
        if row.name not in wrong and finished(workspace, row, dataset) is None:
            new.setdefault(row.key(row.with_sources(dataset)), row)
    fits = dict[str, Fit]()
    coming = fitted_rows(workspace, list(new.values()), dataset, progress)
    for row in rows:
        key = row.key(row.with_sources(dataset))
        if row.name in wrong:
            yield row, wrong[row.name]
        elif key not in new or isinstance(fits.get(key), Fitted):
            yield row, None
        else:
            fit = fits[key] = fits.get(key) or next(coming)
            yield row, timed(fit, folder_of(workspace, key)) if isinstance(fit, Fitted) else fit


def survey(
    workspace: Workspace, rows: dict[str, StudyRow], dataset: Dataset, not_run: dict[str, str] | None = None
) -> Study:
    """The study as far as it is finished for the data, params and code as they are."""
    measured = {name: figures for name, row in rows.items() if (figures := finished(workspace, row, dataset))}
    for name, row in rows.items():
        if row.auxiliary and not _has_auxiliary(dataset):
            measured.pop(name, None)  # it has the figures of another row with the same params and data
    from ssclass.model.weights import missing_file

    told = dict(not_run or {})
    for name, row in rows.items():
        files = [file for backbone in row.backbones if (file := missing_file(backbone))]
        if files and name not in measured:
            told.setdefault(name, f"not run yet; fetches {' and '.join(files)} (docs/models.md), unless it is imported")
    version = workspace.at()
    classes = version.params.dataset.classes
    return Study(version.data_version, dataset, classes, rows, measured, told)


def write(workspace: Workspace, found: Study) -> Path:
    """Write study.md, study.html and the picture that study.md names; returns their folder."""
    folder = _made(workspace.private / "study" / "report")
    made = report(found)
    (folder / "study.md").write_text(made.markdown(), encoding="utf-8")
    (folder / "study.html").write_text(made.html(), encoding="utf-8")
    made.write_pictures(folder)
    return folder


def _log_row(
    workspace: Workspace, runs: StudyRuns, parent: str, row: StudyRow, measured: Measured, dataset: Dataset
) -> None:
    """Log a row to MLflow unless it is there, and delete its exported model, which MLflow has then."""
    folder = folder_of(workspace, measured.result.key)
    if runs.child(parent, measured) is None:
        runs.log_row(parent, row, measured, folder / CANDIDATE, row.with_sources(dataset).digest)
    (folder / MODEL).unlink(missing_ok=True)


def _wrong(row: StudyRow, dataset: Dataset) -> BatchError | None:
    if row.auxiliary and not _has_auxiliary(dataset):
        return BatchError(
            "the data set has photos of the source main alone; send auxiliary ones with `ssclass submit --source NAME`"
        )
    return None


def _has_auxiliary(dataset: Dataset) -> bool:
    return len(replace(dataset, sources="all").by_source()) > 1


def _key(workspace: Workspace, dataset: Dataset) -> str:
    """The digest (hex, 16) that names a study: its data, the params that its rows change, the code."""
    text = f"{replace(dataset, sources='all').digest} {workspace.work_tree().params.result_digest} {code_digest()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
