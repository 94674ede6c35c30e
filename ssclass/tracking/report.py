"""What a person reads of a retrain: metrics under stable names, the decision card, figures, the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.distributions import student_quantile
from ssclass.pages.charts import calibration, over_time
from ssclass.retrain.result import Result
from ssclass.retrain.scores import METRICS, slices
from ssclass.retrain.statistics import Interval
from ssclass.text import chart_word, markdown_word, metric_word
from ssclass.tracking.score import compared

__all__ = ["card", "compared", "figures", "metrics", "model_card", "over_time", "run_name"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssclass.workspace.ledger import Event


def metrics(result: Result) -> dict[str, float]:
    """The run's metrics, rounded to what a table shows; docs/formats.md defines each name."""
    scores, champion = result.candidate.scores, result.champion
    compared = result.comparison
    folds = np.array(result.cross_validation.get(result.head, ()))
    found = {name: getattr(scores, name) for name in METRICS}
    found |= {
        "calibration_error": scores.calibration_error,
        "holdout_size": scores.n,
        "train_size": result.train_size,
        "seconds": sum(result.seconds.values()),
    }
    if len(folds):
        found |= {"cv_accuracy": float(folds.mean()), "cv_accuracy_sd": float(folds.std(ddof=1))}
    for name, each in scores.per_class.items():
        found |= {
            f"recall_{metric_word(name)}": each.recall,
            f"precision_{metric_word(name)}": each.precision,
            f"f_measure_{metric_word(name)}": each.f_measure,
        }
    if champion is not None and compared is not None:
        found |= {
            "champion_accuracy": champion.scores.accuracy,
            "champion_loss": champion.scores.loss,
            "accuracy_difference": compared.difference,
            "wins": compared.wins,
            "losses": compared.losses,
            "mcnemar_p": compared.mcnemar_p,
        }
    found |= {f"seconds_{name}": value for name, value in result.seconds.items()}
    return {name: round(float(value), 1 if name.startswith("seconds") else 4) for name, value in found.items()}


def run_name(event: Event) -> str:
    """One line that reads by itself in the run table."""
    body = event.body
    champion = body["champion"]
    against = "no champion" if champion is None else f"champion {champion['right']}"
    ours = f"{body['candidate']['right']}/{body['holdout']['size']}"
    return f"{body['decision']} {ours} · {against} · {body['data_version']} · {body['head']}"


def curves(result: Result) -> dict[str, list[float]]:
    """The curves of a training as metrics of its run; those of heads that were tried and not chosen as ``tried/…``.

    MLflow shows metrics by their names, and those with a slash in a section of their own, below the others.
    """
    others = tuple(f"{head}_" for head in result.cross_validation if head != result.head)
    return {f"tried/{name}" if name.startswith(others) else name: curve for name, curve in result.history.items()}


def card(result: Result, event: Event) -> str:
    """The decision card, markdown."""
    body = event.body
    scores, champion = result.candidate.scores, result.champion and result.champion.scores
    compared = result.comparison
    ours, theirs = result.candidate.right, result.champion and result.champion.right
    low, high = scores.accuracy_interval.low, scores.accuracy_interval.high
    lines = [
        f"# {body['decision']}: {body['reason']}",
        "",
        f"Data `{result.data_version}` · decision key `{result.key}` · head `{result.head}` · {event.at}",
        "",
        _learnt(result, event),
        "",
        "| on the same held-out photos | candidate | champion |",
        "|---|---|---|",
        f"| right | {ours} of {scores.n} | {'–' if theirs is None else f'{theirs} of {scores.n}'} |",
        f"| accuracy | {scores.accuracy:.4f} (95 % {low:.3f}–{high:.3f}) | {_cell(champion and champion.accuracy)} |",
    ]
    lines += [
        f"| {name} | {getattr(scores, name):.4f} | {_cell(champion and getattr(champion, name))} |"
        for name in ("loss", "recall", "precision", "f_measure", "calibration_error")
    ]
    if compared:
        span = compared.difference_interval
        lines += [
            "",
            (
                f"Candidate right where the champion is wrong: {compared.wins}; the other way round: "
                f"{compared.losses}. Exact McNemar p = {compared.mcnemar_p:.3f}; difference "
                f"{compared.difference:+.4f}, paired bootstrap 95 % {span.low:+.4f} to {span.high:+.4f}."
            ),
        ]
    lines += [
        "",
        (
            f"This held-out set was consulted {body['holdout']['consulted']} time(s). Recorded, not decisive: only "
            "the count of right photos and the preconditions decide."
        ),
        "",
        "| slice | candidate right | of |",
        "|---|---|---|",
    ]
    correct, labels = result.candidate.correct, result.candidate.labels
    for kind, names in (("class", [result.classes[label] for label in labels]), ("batch", result.batches)):
        lines += [f"| {kind} {markdown_word(name)} | {a} | {n} |" for name, (a, n) in slices(correct, names).items()]
    if len(result.sources) > 1:
        lines += ["", "| source | train | held out | kept, neither |", "|---|---|---|---|"]
        for name, count in result.sources.items():
            lines.append(f"| {name} | {count['train']} | {count['holdout']} | {count['unused']} |")
    if result.cross_validation:
        lines += ["", "| head | cross-validated accuracy on the training split (95 %) | folds |", "|---|---|---|"]
    for name, folds in result.cross_validation.items():
        mean, span = interval_of_folds(folds)
        lines.append(
            f"| {name}{' (chosen)' if name == result.head else ''} | {mean:.4f} ({span.low:.3f}–{span.high:.3f}) | "
            f"{', '.join(f'{fold:.3f}' for fold in folds)} |"
        )
    lines += [
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {name} | {value:.1f} |" for name, value in result.seconds.items()),
        "",
    ]
    return "\n".join(lines)


def _learnt(result: Result, event: Event) -> str:
    """What went into a candidate, in a sentence."""
    if event.body.get("adopted"):
        return _origin(result, event)
    new = ", ".join(markdown_word(batch) for batch in event.body["batches"]) or "none"
    return f"Trained on {result.train_size} photos. New since the decision before: {new}."


def model_card(result: Result, event: Event, number: int) -> str:
    """The description of a registered version, markdown."""
    scores = result.candidate.scores
    return "\n".join(
        [
            f"**Champion {number}**: {event.body['reason']}.",
            "",
            (
                f"Tells {' from '.join(result.classes)} on photos: uint8 RGB images [n, height, width, 3] in, "
                f"probabilities [n, {len(result.classes)}] in the order {', '.join(result.classes)} out."
            ),
            "",
            (
                f"{_origin(result, event)} On {scores.n} held-out photos: accuracy {scores.accuracy:.3f} (95 % "
                f"{scores.accuracy_interval.low:.3f}–{scores.accuracy_interval.high:.3f}), "
                + ", ".join(f"recall of {name} {each.recall:.3f}" for name, each in scores.per_class.items())
                + "."
            ),
            "",
            "It has seen only photos like those in the data set; on anything else its probabilities mean nothing.",
        ]
    )


def _origin(result: Result, event: Event) -> str:
    if adopted := event.body.get("adopted"):
        return (
            f"Adopted from `{adopted['file']}` (sha256 `{adopted['sha256'][:16]}`, preprocessing "
            f"{adopted['preprocess']}); it has learnt from no photo of this data set (tag `run/{result.key}`)."
        )
    return (
        f"Trained on {result.train_size} photos of `{result.data_version}` (tag `run/{result.key}`), head "
        f"`{result.head}`."
    )


def interval_of_folds(folds: list[float]) -> tuple[float, Interval]:
    """Mean over folds and its 95 % t interval within 0 to 1 (folds are not independent: read it as a guide)."""
    values = np.array(folds)
    mean = float(values.mean())
    half = float(student_quantile(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, Interval(max(0.0, mean - half), min(1.0, mean + half))


def figures(result: Result) -> dict[str, Figure]:
    """Figures by file name; the same axes in every run, so that MLflow's Compare lines them up."""
    from matplotlib.figure import Figure

    scores, correct = result.candidate.scores, result.candidate.correct
    drawn: dict[str, Figure] = {}

    figure = drawn["confusion.png"] = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    table = np.array(scores.confusion)
    axes.imshow(table, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(table):
        axes.text(
            column, row, str(count), ha="center", va="center", color="white" if count > table.max() / 2 else "black"
        )
    places = range(len(result.classes))
    axes.set(
        xticks=places,
        yticks=places,
        xticklabels=[chart_word(name) for name in result.classes],
        yticklabels=[chart_word(name) for name in result.classes],
        xlabel="called",
        ylabel="is",
        title=f"{scores.right} of {scores.n} right",
    )

    drawn["calibration.png"] = calibration(result.candidate.numbers, correct, scores.calibration_error)

    if result.cross_validation:
        drawn["cross_validation.png"] = _of_folds(result)

    figure = drawn["batches.png"] = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    found = slices(correct, result.batches)
    axes.barh(list(found), [a / n for a, n in found.values()], color="steelblue")
    for place, (a, n) in enumerate(found.values()):
        axes.text(0.01, place, f"{a} of {n}", va="center", color="white")
    axes.set(xlim=(0, 1), xlabel="share right", title="held-out photos by batch")
    return drawn


def _of_folds(result: Result) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    names = list(result.cross_validation)
    for place, name in enumerate(names):
        folds = result.cross_validation[name]
        axes.plot([place] * len(folds), folds, "o", alpha=0.6)
        axes.plot([place - 0.2, place + 0.2], [float(np.mean(folds))] * 2, color="black")
    axes.set(
        xticks=range(len(names)),
        xticklabels=[name.replace(" of ", " of\n").replace(", ", "\n") for name in names],  # of an ensemble
        xlim=(-0.5, len(names) - 0.5),
        ylim=(0.5, 1),
        ylabel="accuracy",
        title="folds of the training split",
    )
    return figure


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"
