"""Charts of a model on photos: ROC, precision and recall, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssclass.serving.model import Model
from ssclass.study.answers import Answers
from ssclass.study.pages import Picture, drawn
from ssclass.text import chart_word

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def charts(model: Model, answers: Answers, error: float) -> dict[str, Picture]:
    """Draw the charts by name; `error` is the calibration error, as in the scores."""
    from ssclass.tracking.report import calibration

    figures = {"roc": _roc(model, answers), "precision-recall": _precision_recall(model, answers)}
    figures["calibration"] = calibration(answers.probabilities, answers.correct, error)
    return {name: Picture(drawn(figure), width=370) for name, figure in figures.items()}


def _one_against_rest(model: Model) -> list[int]:
    """The classes whose curves are drawn: the second of two, as the first has the same curve; else every one."""
    return [1] if len(model.classes) == 2 else list(range(len(model.classes)))


def _roc(model: Model, answers: Answers) -> Figure:
    from matplotlib.figure import Figure
    from sklearn.metrics import auc, roc_curve

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for at in _one_against_rest(model):
        if 0 < (own := answers.labels == at).sum() < len(own):
            false, true, _ = roc_curve(own, answers.probabilities[:, at])
            axes.plot(false, true, label=f"{chart_word(model.classes[at])}, area {auc(false, true):.4f}")
    axes.set(xlabel="false positives, share", ylabel="true positives, share", title="ROC", ylim=(0, 1.02))
    axes.legend(loc="lower right", frameon=False)
    return figure


def _precision_recall(model: Model, answers: Answers) -> Figure:
    from matplotlib.figure import Figure
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    for at in range(len(model.classes)):
        if (own := answers.labels == at).any():
            precision, recall, _ = precision_recall_curve(own, answers.probabilities[:, at])
            area = average_precision_score(own, answers.probabilities[:, at])
            axes.plot(recall, precision, label=f"{chart_word(model.classes[at])}, average {area:.4f}")
    axes.set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.02), xlim=(0, 1.02))
    axes.legend(loc="lower left", frameon=False)
    return figure
