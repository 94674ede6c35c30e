"""Figures of what models answer: ROC, precision and recall, calibration, intervals, decisions over time, curves.

They are matplotlib's, as PNG for MLflow and as SVG for pages (`ssclass.pages.vector`), where their text is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.pages.ranks import average_precision, precision_recall, roc
from ssclass.pages.vector import CANDIDATE, CHAMPION, GRID, MUTED, OTHERS, PROMOTED, Chart, chart
from ssclass.text import chart_word
from ssclass.workspace.ledger import PROMOTED as PROMOTED_DECISION
from ssclass.workspace.ledger import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = 12
"""Decisions that the plot over time names at most."""
SQUARE = (4.2, 3.9)
"""Inches: about 400 pixels, what a phone shows without making the text smaller."""
MARGINS = 0.7, 0.55, 0.4, 0.35
"""Inches beside the axes, left, below, right and above: room for numbers, the axis's label, and a title."""

Probabilities = NDArray[np.floating]
Models = Mapping[str, Probabilities]
"""Name of a model → its probabilities, float [n, classes]."""


def of_answers(classes: Sequence[str], labels: NDArray[np.integer], models: Models, prefix: str = "") -> list[Chart]:
    """ROC, precision and recall, and calibration of one model or several on the same photos; `labels` int [n].

    With more than two classes every class has a curve, of the first model alone.
    """
    if not len(labels):
        return []
    made = [_roc(classes, labels, models, prefix), _precision_recall(classes, labels, models, prefix)]
    words = []
    for name, probabilities in models.items():
        shown = _bins(probabilities, probabilities.argmax(axis=1) == labels)
        words.append(f"{name}: " + "; ".join(f"sure {x:.0%}, right {y:.0%} of {n}" for x, y, n in shown))
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    for colour, (name, probabilities) in zip(OTHERS, models.items(), strict=False):
        _calibrated(axes, probabilities, probabilities.argmax(axis=1) == labels, colour, name)
    _calibration_axes(axes)
    if len(models) > 1:
        axes.legend(loc="upper left", frameon=False)
    made.append(chart(f"{prefix}calibration", figure, "Confidence against the share right", ". ".join(words)))
    return made


def calibration(probabilities: Probabilities, hit: NDArray[np.bool_], error: float) -> Figure:
    """Confidence against the share right; probabilities [n, classes], `hit` bool [n], `error` for the title."""
    figure, axes = _figure((4.5, 4))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    _calibrated(axes, probabilities, hit, CANDIDATE, "")
    _calibration_axes(axes)
    axes.set(title=f"calibration error {error:.3f}")
    return figure


def over_time(decided: Sequence[Event], size: tuple[float, float] = (7, 4), marked: int = MARKED) -> Figure:
    """Candidates and champions, each pair on the same photos, decision by decision; `marked` of them are named."""
    figure, axes = _figure(size, measured=True)
    places = range(len(decided))
    sizes = [max(event.body["holdout"]["size"], 1) for event in decided]
    candidate = [event.body["candidate"]["right"] / size for event, size in zip(decided, sizes, strict=True)]
    champion = [
        event.body["champion"]["right"] / size if event.body["champion"] else np.nan
        for event, size in zip(decided, sizes, strict=True)
    ]
    axes.plot(places, champion, "s--", color=CHAMPION, label="champion")
    axes.plot(places, candidate, "o-", color=CANDIDATE, label="candidate")
    promoted = [place for place, event in enumerate(decided) if event.body["decision"] == PROMOTED_DECISION]
    axes.plot(promoted, [candidate[place] for place in promoted], "*", color=PROMOTED, ms=13, label="promoted")
    step = -(-len(decided) // marked)
    at = [place for place in places if (len(decided) - 1 - place) % step == 0]
    labels = [f"{decided[place].body['data_version']}\n{decided[place].body['holdout']['size']}" for place in at]
    axes.set_xticks(at, labels, fontsize=8)
    axes.set(ylabel="share right", xlabel="data version, held-out photos")
    axes.legend(frameon=False)
    return figure


def over_time_chart(decided: Sequence[Event]) -> Chart:
    """The same as a chart of a page."""
    last = decided[-1].body
    words = (
        f"{len(decided)} decisions, each time on the same held-out photos; the last: candidate "
        f"{last['candidate']['right']} of {last['holdout']['size']}"
        + (f", champion {last['champion']['right']}." if last["champion"] else ".")
    )
    return chart("over-time", over_time(decided, (4.4, 3.6), 6), "Candidate and champion over time", words)


def intervals(rows: Sequence[tuple[str, float, float, float]]) -> Chart:
    """Shares with their 95 % intervals, one model a row: (name, share, low, high), each 0 to 1."""
    figure, axes = _figure((4.6, 0.9 + 0.45 * len(rows)), measured=True)
    for place, (name, share, low, high) in enumerate(rows):
        colour = CHAMPION if name.startswith("champion") else CANDIDATE
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.55, solid_capstyle="butt")
        axes.plot(share, place, "o", color=colour)
    axes.set(yticks=range(len(rows)), yticklabels=[chart_word(row[0]) for row in rows], xlabel="share right, 95 %")
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    words = "; ".join(f"{name} {share:.3f} ({low:.3f}–{high:.3f})" for name, share, low, high in rows)
    return chart("intervals", figure, "Accuracy with its interval", words)


def curves(history: Mapping[str, Sequence[float]]) -> list[Chart]:
    """Curves of a training, one chart for those that share a last word (``loss``, ``accuracy``)."""
    kinds: dict[str, dict[str, Sequence[float]]] = {}
    for name, values in history.items():
        if len(values):
            kinds.setdefault(name.replace(" ", "_").rpartition("_")[2], {})[name] = values
    made = []
    for number, (kind, lines) in enumerate(kinds.items()):
        figure, axes = _figure((4.6, 3.2), measured=True)  # the labels of a learning rate are long
        for place, (name, values) in enumerate(lines.items()):
            axes.plot(range(1, len(values) + 1), values, color=OTHERS[place % len(OTHERS)], label=chart_word(name))
        axes.set(xlabel="step", ylabel=kind)
        axes.legend(frameon=False, fontsize=9)
        words = "; ".join(
            f"{name} from {values[0]:.3f} to {values[-1]:.3f} in {len(values)} steps" for name, values in lines.items()
        )
        made.append(chart(f"curve-{number}", figure, f"Training: {kind}", words))
    return made


def _figure(size: tuple[float, float] = SQUARE, *, measured: bool = False) -> tuple[Figure, Axes]:
    """A figure with its axes. `measured`: labels beside them may be of any length; to measure them doubles the time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained" if measured else None)
    if not measured:
        left, bottom, right, top = MARGINS
        width, height = size
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(classes: Sequence[str], models: Models) -> list[tuple[str, int, Probabilities, str]]:
    """(name, class, probabilities, colour) of each curve: of two classes the second, once for each model."""
    if len(classes) == 2:
        return [
            (classes[1] if len(models) == 1 else name, 1, probabilities, colour)
            for colour, (name, probabilities) in zip(OTHERS, models.items(), strict=False)
        ]
    first = next(iter(models.values()))
    return [(name, at, first, OTHERS[at % len(OTHERS)]) for at, name in enumerate(classes)]


def _roc(classes: Sequence[str], labels: NDArray[np.integer], models: Models, prefix: str) -> Chart:
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    words = []
    for name, at, probabilities, colour in _lines(classes, models):
        if 0 < (own := labels == at).sum() < len(own):
            false, true = roc(own, probabilities[:, at])
            words.append(f"{name}, area {np.trapezoid(true, false):.4f}")
            axes.plot(false, true, color=colour, label=chart_word(words[-1]))
    axes.set(xlabel="false positives, share", ylabel="true positives, share", ylim=(0, 1.02))
    if words:
        axes.legend(loc="lower right", frameon=False)
    title = "ROC" if len(classes) != 2 else f"ROC: {classes[1]} against {classes[0]}"
    return chart(f"{prefix}roc", figure, title, "; ".join(words) or "Only one class is among the photos.")


def _precision_recall(classes: Sequence[str], labels: NDArray[np.integer], models: Models, prefix: str) -> Chart:
    figure, axes = _figure()
    words = []
    lines = _lines(classes, models)
    if len(classes) == 2 and len(models) == 1:
        only = next(iter(models.values()))
        lines = [(name, at, only, OTHERS[at]) for at, name in enumerate(classes)]
    for name, at, probabilities, colour in lines:
        if (own := labels == at).any():
            precision, recall = precision_recall(own, probabilities[:, at])
            words.append(f"{name}, average {average_precision(precision, recall):.4f}")
            axes.plot(recall, precision, color=colour, label=chart_word(words[-1]))
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), xlim=(0, 1.02))
    if words:
        axes.legend(loc="lower left", frameon=False)
    return chart(f"{prefix}precision-recall", figure, "Precision and recall", "; ".join(words))


def _bins(probabilities: Probabilities, hit: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, photos) of five bins of confidence, those that have photos."""
    confidence = probabilities.max(axis=1)
    bins = np.linspace(1 / probabilities.shape[1], 1, 6)
    of = np.clip(np.digitize(confidence, bins) - 1, 0, len(bins) - 2)
    return [
        (float(confidence[of == i].mean()), float(hit[of == i].mean()), int((of == i).sum()))
        for i in range(len(bins) - 1)
        if (of == i).any()
    ]


def _calibrated(axes: Any, probabilities: Probabilities, hit: NDArray[np.bool_], colour: str, name: str) -> None:
    shown = _bins(probabilities, hit)
    axes.plot([each[0] for each in shown], [each[1] for each in shown], "o-", color=colour, label=name)
    for x, y, n in shown:
        below = (4, -12) if colour == CANDIDATE else (4, 6)
        axes.annotate(f"n={n}", (x, y), textcoords="offset points", xytext=below, fontsize=8, color=colour)


def _calibration_axes(axes: Any) -> None:
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xlabel="mean confidence", ylabel="share right")
