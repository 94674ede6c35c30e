"""The report of a study: accuracy and cost of each row, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.code import code_digest
from ssclass.pages.page import Page
from ssclass.pages.vector import CANDIDATE, CHAMPION, GRID, chart
from ssclass.retrain.scores import Comparison, compare
from ssclass.retrain.statistics import clopper_pearson
from ssclass.study.measure import Measured
from ssclass.study.rows import StudyRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.data.dataset import Dataset

LEVEL = 0.05


@dataclass(frozen=True)
class Study:
    """A study so far: rows in the order of study.yaml, those that are finished, and why others were not run."""

    data_version: str
    dataset: Dataset
    classes: tuple[str, ...]
    rows: Mapping[str, StudyRow]
    measured: Mapping[str, Measured]
    not_run: Mapping[str, str]

    @property
    def best(self) -> str | None:
        """The row with the highest cross-validated accuracy, of equals the first."""
        return max(self.measured, key=lambda name: self.measured[name].cv[0], default=None)

    def name(self) -> str:
        """The name of the study's run: a line with how many rows are finished and which is best."""
        best = f" · best {self.best} {self.measured[self.best].cv[0]:.4f}" if self.best else ""
        return f"{len(self.measured)} of {len(self.rows)} rows · {self.data_version}{best}"


@dataclass(frozen=True)
class Pair:
    """A row against another: on the held-out photos that both answered for, and out of fold on training photos."""

    row: str
    other: str
    holdout: Comparison
    out_of_fold: Comparison

    @property
    def verdict(self) -> str:
        """The two differences in words: which of them are more than chance."""
        verdicts = []
        for where, one in (("held out", self.holdout), ("out of fold", self.out_of_fold)):
            if one.mcnemar_p < LEVEL:
                verdicts.append(f"{'better' if one.wins > one.losses else 'worse'} {where}")
        return " and ".join(verdicts) or "no"


def pair(row: Measured, other: Measured) -> Pair:
    """Compare two rows on the photos that both have; rows of other sources may have more or fewer."""
    return Pair(
        row.row,
        other.row,
        _common(row.result.holdout, row.correct, other.result.holdout, other.correct),
        _common(row.train, row.cv_correct, other.train, other.cv_correct),
    )


def pairs(found: Study) -> list[Pair]:
    """Compare each row with the one that it names, and with the best by cross-validation."""
    made: dict[tuple[str, str], Pair] = {}
    for name, measured in found.measured.items():
        for other in (found.rows[name].against, found.best):
            if other in found.measured and other != name:
                made[name, str(other)] = pair(measured, found.measured[str(other)])
    return list(made.values())


def as_dict(found: Study) -> dict[str, Any]:
    """The study as JSON-able values, as ``--json`` prints it."""
    compared: dict[str, list[dict[str, Any]]] = {}
    for two in pairs(found):
        compared.setdefault(two.row, []).append(
            {
                "against": two.other,
                "holdout": _numbers(two.holdout),
                "out_of_fold": _numbers(two.out_of_fold),
                "significant": two.verdict,
            }
        )
    rows, sources = [], by_source(found)
    for name, row in found.rows.items():
        measured = found.measured.get(name)
        common: dict[str, Any] = {"row": name, "about": row.about, "set": dict(row.changes), "study": row.study}
        if measured is None:
            rows.append(common | {"state": found.not_run.get(name, "not run yet")})
            continue
        scores = measured.scores
        rows.append(
            common
            | {
                "state": "finished",
                "key": measured.result.key,
                "head": measured.result.head,
                "right": scores.right,
                "holdout_size": scores.n,
                "accuracy": scores.accuracy,
                "accuracy_interval": [scores.accuracy_interval.low, scores.accuracy_interval.high],
                "cv_accuracy": measured.cv[0],
                "cv_accuracy_sd": measured.cv[1],
                "cv_repeats": measured.repeats,
                "train_size": measured.result.train_size,
                **{metric: getattr(scores, metric) for metric in ("loss", "precision", "recall", "f_measure")},
                "parameters_backbone": measured.parameters_backbone,
                "parameters_head": measured.parameters_head,
                "megabytes": measured.megabytes,
                "seconds_training": measured.result.seconds["training"],
                "milliseconds": measured.milliseconds,
                "device": measured.device,
                "compared": compared.get(name, []),
                "by_source": [
                    {"source": one.source, "out_of_fold": one.out_of_fold, "holdout": one.holdout}
                    | {"left_out": one.left_out, "left_out_against": one.against and _numbers(one.against)}
                    for one in sources
                    if one.row == name
                ],
            }
        )
    return {"data_version": found.data_version, "best": found.best, "rows": rows}


def page(found: Study) -> Page:
    """The report as a page."""
    shown = Page(f"Study of {' and '.join(found.classes)}: {found.data_version}")
    counts = found.dataset.by_source()
    train, holdout = len(found.dataset.train), len(found.dataset.holdout)
    shown.text(
        f"{train} photos train and {holdout} are held out by params.yaml. Code `{code_digest()}`; "
        f"{len(found.measured)} of {len(found.rows)} rows finished. Rows and what each changes: `study.yaml`."
    )
    if len(counts) > 1:
        columns = ("source", "train", "held out", "kept, neither")
        shown.table(columns, [(name, n["train"], n["holdout"], n["unused"]) for name, n in counts.items()])
    shown.heading("Accuracy")
    measured = list(found.measured.values())
    strong = [at for at, figures in enumerate(measured) if figures.row == found.best]
    shown.table(
        (
            "row",
            "what",
            "study, %",
            "held out: right",
            "accuracy, 95 %",
            "cross-validated",
            "loss",
            "precision",
            "recall",
            "F",
        ),
        [_accuracy_line(figures, found.rows[figures.row]) for figures in measured],
        strong,
    )
    shown.text(
        "Study: the original study's accuracy on its own 160 validation photos, trained on its 640: another split, so "
        "a guide. Held out: trained on the whole training split; the interval is Clopper and Pearson's. "
        "Cross-validated: on the training split alone, folds grouped by near-duplicates, mean ± standard deviation "
        "over the repeats, each with other folds (over the folds where there is one repeat). Precision, recall and F "
        "are means over classes, loss is in nats; all four on the held-out photos. Strong: the best by "
        "cross-validation."
    )
    if measured:
        words = "; ".join(
            f"{figures.row} {figures.scores.accuracy:.3f} held out, {figures.cv[0]:.3f} cross-validated"
            for figures in measured
        )
        shown.draw(chart("study", figure(found), "Accuracy of each row", words))
    shown.heading("Cost")
    shown.table(
        (
            "row",
            "head",
            "parameters: backbone",
            "head",
            "MB",
            "training, s",
            "ms a photo, alone",
            "ms a photo, 32 together",
            "on",
        ),
        [_cost_line(figures) for figures in measured],
    )
    shown.text(
        "MB: the exported Keras model. Training: one training with its cross-validation, without the features, which "
        "are kept. Milliseconds: the whole exported model, pixels to probabilities, median of several calls on the "
        "machine that did the row."
    )
    shown.heading("Which differences are more than chance")
    shown.table(
        (
            "row",
            "against",
            "held out: only it / only the other right",
            "p",
            "out of fold: only it / only the other right",
            "p",
            f"significant (p < {LEVEL:g})",
        ),
        [_pair_line(two) for two in pairs(found)],
    )
    shown.text(
        "Exact McNemar, two-sided, on the photos that both rows answered for; out of fold: on the mean of the "
        "probabilities over the repeats. The p are not corrected for the number of comparisons."
    )
    missing = [(name, found.not_run.get(name, "not run yet")) for name in found.rows if name not in found.measured]
    if missing:
        shown.heading("Not run")
        shown.table(("row", "why"), missing)
    if len(counts) > 1:
        _add_sources(shown, found)
    shown.heading("How to do one row again")
    shown.table(
        ("row", "command", "as an experiment"),
        [(name, f"`ssclass study {name}`", f"`{row.experiment}`") for name, row in found.rows.items()],
    )
    shown.text(
        "The study scores the held-out photos once for every finished row. The gate's count of consultations "
        "(`consulted` in the ledger) does not include that: who changes params.yaml for what stands here has let the "
        "held-out photos choose. The cross-validated column is there for choosing."
    )
    return shown


@dataclass(frozen=True)
class OfSource:
    """How a row does on the photos of one source: out of fold, held out, and when the source was left out of training.

    Each is right, photos in all; None where there are none. `against`: left out, beside the row that it names.
    """

    row: str
    source: str
    out_of_fold: tuple[int, int] | None
    holdout: tuple[int, int] | None
    left_out: tuple[int, int] | None
    against: Comparison | None


def by_source(found: Study) -> list[OfSource]:
    """Each row's answers by the source of the photos."""
    made = []
    for name, measured in found.measured.items():
        other = found.measured.get(found.rows[name].against)
        train = [found.dataset.source_of(sha256) for sha256 in measured.train]
        holdout = [found.dataset.source_of(sha256) for sha256 in measured.result.holdout]
        for source in sorted({*train, *holdout}):
            answers, against = measured.left_out.get(source, {}), None
            if other is not None and other.row != name and (theirs := other.left_out.get(source, {})) and answers:
                ours, others = (np.array(list(one.values())) for one in (answers, theirs))
                against = _common(tuple(answers), ours, tuple(theirs), others)
            made.append(
                OfSource(
                    name,
                    source,
                    _right(measured.cv_correct[[one == source for one in train]]),
                    _right(measured.correct[[one == source for one in holdout]]),
                    _right(np.array(list(answers.values()), dtype=bool)),
                    against,
                )
            )
    return made


def _right(correct: NDArray[np.bool_]) -> tuple[int, int] | None:
    return (int(correct.sum()), len(correct)) if len(correct) else None


def _add_sources(shown: Page, found: Study) -> None:
    """Add the table of rows by source."""
    shown.heading("By source")
    lines = []
    for one in by_source(found):
        versus = one.against and f"{one.against.wins} / {one.against.losses}, p = {one.against.mcnemar_p:.3g}"
        cells = [_share(part) for part in (one.out_of_fold, one.holdout, one.left_out)]
        lines.append((one.row, one.source, *cells, versus))
    shown.table(
        (
            "row",
            "source",
            "out of fold",
            "held out",
            "left out of training",
            "left out: only it / only the row that it names right",
        ),
        lines,
    )
    shown.text(
        "Right, share, and the 95 % interval of Clopper and Pearson. Left out of training: answers of a model that was "
        "trained on the other sources alone, on all photos of this one that are nearly none of theirs; a dash where "
        "the others have photos of one class only. That, not the cross-validation, is what to expect of photos from "
        "elsewhere."
    )


def _share(part: tuple[int, int] | None) -> str | None:
    if part is None:
        return None
    span = clopper_pearson(*part)
    return f"{part[0]} of {part[1]}, {part[0] / part[1]:.4f} ({span.low:.3f}–{span.high:.3f})"


def figure(found: Study) -> Figure:
    """Draw the accuracies of the rows, with those of the original study beside them."""
    from matplotlib.figure import Figure

    measured = list(found.measured.values())
    drawing = Figure(figsize=(6.6, 1.4 + 0.42 * len(measured)), layout="constrained")
    axes = drawing.subplots()
    for place, figures in enumerate(measured):
        scores, (mean, sd) = figures.scores, figures.cv
        low, high = scores.accuracy_interval.low, scores.accuracy_interval.high
        axes.plot([low, high], [place + 0.16] * 2, color=CANDIDATE, linewidth=2, alpha=0.6)
        axes.plot(scores.accuracy, place + 0.16, "o", color=CANDIDATE, label=None if place else "held out, 95 %")
        axes.plot([mean - sd, mean + sd], [place - 0.16] * 2, color=CHAMPION, linewidth=5, alpha=0.5)
        axes.plot(mean, place - 0.16, "o", color=CHAMPION, label=None if place else "cross-validated ± sd")
    study = [(row.study / 100, place) for place, name in enumerate(found.measured) if (row := found.rows[name]).study]
    if study:
        axes.plot([x for x, _ in study], [y for _, y in study], "x", color="black", label="original study")
    axes.set(yticks=range(len(measured)), yticklabels=[figures.row for figures in measured], xlabel="accuracy")
    axes.set(ylim=(len(measured) - 0.5, -0.5))
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=3, frameon=False)
    return drawing


def _accuracy_line(figures: Measured, row: StudyRow) -> Sequence[object]:
    scores, (mean, sd) = figures.scores, figures.cv
    low, high = scores.accuracy_interval.low, scores.accuracy_interval.high
    return (
        figures.row,
        row.about,
        None if row.study is None else f"{row.study:.2f}",
        f"{scores.right} of {scores.n}",
        f"{scores.accuracy:.4f} ({low:.3f}–{high:.3f})",
        f"{mean:.4f} ± {sd:.4f}",
        *(f"{getattr(scores, name):.4f}" for name in ("loss", "precision", "recall", "f_measure")),
    )


def _cost_line(figures: Measured) -> Sequence[object]:
    return (
        figures.row,
        figures.result.head,
        f"{figures.parameters_backbone:,}",
        f"{figures.parameters_head:,}",
        f"{figures.megabytes:.1f}",
        f"{figures.result.seconds['training']:.1f}",
        *(f"{value:.0f}" for value in figures.milliseconds.values()),
        figures.device,
    )


def _pair_line(two: Pair) -> Sequence[object]:
    cells: list[object] = [two.row, two.other]
    for one in (two.holdout, two.out_of_fold):
        cells += [f"{one.wins} / {one.losses} of {one.n}", f"{one.mcnemar_p:.3g}"]
    return (*cells, two.verdict)


def _common(ours: Sequence[str], correct: Any, theirs: Sequence[str], others: Any) -> Comparison:
    place = {sha256: at for at, sha256 in enumerate(theirs)}
    both = [(at, place[sha256]) for at, sha256 in enumerate(ours) if sha256 in place]
    index = np.array(both, dtype=int).reshape(-1, 2)
    return compare(correct[index[:, 0]], others[index[:, 1]])


def _numbers(one: Comparison) -> dict[str, Any]:
    return {"n": one.n, "wins": one.wins, "losses": one.losses, "mcnemar_p": one.mcnemar_p}
