"""The report of a decision: one page on whether the new model is better, why, and what went into it.

What it shows of photos comes from the data set as it is now: a photo that was removed or forgotten since is not shown,
and not named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssclass.pages import charts, evidence
from ssclass.pages.page import Page
from ssclass.retrain.result import Result
from ssclass.retrain.scores import METRICS, Scores
from ssclass.workspace.ledger import PROMOTED, Event
from ssclass.workspace.version import Version

NAMES = {"f_measure": "F-measure", "calibration_error": "calibration error"}


def report(version: Version, event: Event, result: Result | None) -> Page:
    """Make the report of a decision. `version`: the newest one, whose ledger has it and whose photos may be shown.

    `result`: what both models answered; None where that can no longer be had, and the ledger alone speaks.
    """
    body, state = event.body, version.state
    page = Page(f"{body['decision']}: {_models(body)}")
    number = state.number_of(body["key"]) if body["key"] in state.champions else None
    tone = "good" if body["decision"] == PROMOTED else "calm"
    page.verdict(_headline(body, number), "\n".join(_verdict(body, result)), tone)
    page.table(("what", "which"), _facts(event, result, number))
    if result is None:
        page.text(
            "The answers photo by photo can no longer be had, neither here nor in S3; what follows is the ledger's."
        )
    else:
        _add_comparison(page, result)
        _add_photos(page, version, result)
        _add_slices(page, version, result)
        _add_certainty(page, result)
        _add_training(page, result)
    _add_batches(page, state.ingested, body["batches"])
    decided = state.decided_until(body["key"])
    if len(decided) > 1:
        page.heading("Decisions so far")
        page.draw(charts.over_time_chart(decided))
    seconds = {"retrain": body["seconds"]} if result is None else result.seconds
    page.heading("Time")
    page.table(("step", "seconds"), [(name, f"{value:.1f}") for name, value in seconds.items()])
    _add_lineage(page, event, state.ingested)
    return page


def _models(body: Mapping[str, Any]) -> str:
    size = body["holdout"]["size"]
    champion = f", champion {body['champion']['right']}/{size}" if body["champion"] else ", no champion yet"
    return f"candidate {body['candidate']['right']}/{size}{champion}"


def _headline(body: Mapping[str, Any], number: int | None) -> str:
    if body["decision"] == PROMOTED:
        return f"The new model is champion {number}" if number else "The new model was promoted"
    return "The champion stays" if body["champion"] else "There is no champion yet"


def _verdict(body: Mapping[str, Any], result: Result | None) -> list[str]:
    """The decision in sentences."""
    size, right, champion = body["holdout"]["size"], body["candidate"]["right"], body["champion"]
    lines = [f"{body['reason'][:1].upper()}{body['reason'][1:]}."]
    if champion is None:
        lines.append(f"Of {size} held-out photos the new model has {right} right. There was no champion to beat.")
        return lines
    gain = right - champion["right"]
    than = f"{abs(gain)} {'more' if gain > 0 else 'fewer'} than" if gain else "as many as"
    lines.append(f"Of {size} held-out photos the new model has {right} right, {than} the champion.")
    lines.append(
        f"It is right on {body['wins']} that the champion got wrong, and wrong on {body['losses']} that the champion "
        f"got right. {_chance(body['mcnemar_p'], body['wins'] + body['losses'])}"
    )
    if result and (difference := result.comparison):
        span = difference.difference_interval
        lines.append(
            f"The difference in accuracy is {difference.difference:+.4f}; its 95 % interval, by paired bootstrap, is "
            f"{span.low:+.4f} to {span.high:+.4f}. Recorded, not decisive: the gate counts right photos."
        )
    return lines


def _chance(p: float, differing: int) -> str:
    if not differing:
        return "They differ on no photo."
    share = "less than 1" if p < 0.01 else f"{p * 100:.0f}"
    return (
        f"Were both equally good, a difference at least as large would come about in {share} of 100 cases (exact "
        f"McNemar, p = {p:.3g})."
    )


def _facts(event: Event, result: Result | None, number: int | None) -> list[tuple[str, str]]:
    body = event.body
    new = ", ".join(body["batches"]) or "nothing"
    trained = f"`{body['head']}`, trained on {body['train_size']} photos"
    facts = [
        ("decision", f"{body['decision']}, {event.at}"),
        ("model", "adopted; it has learnt from no photo of this data set" if body.get("adopted") else trained),
        ("data", f"`{body['data_version']}`; new since the decision before: {new}"),
        ("key", f"`{body['key']}`" + (f", champion {number}" if number else "")),
        ("MLflow run", f"`{body['run_id']}`"),
        ("held-out photos", f"{body['holdout']['size']}, consulted {body['holdout']['consulted']} time(s)"),
    ]
    if body["champion"]:
        facts.insert(4, ("against", f"champion `{body['champion']['key']}`"))
    return facts


def _add_comparison(page: Page, result: Result) -> None:
    ours, theirs = result.candidate.scores, result.champion and result.champion.scores
    page.heading("Candidate and champion on the same photos")

    def row(name: str, value: Any, form: str = "{:.4f}") -> tuple[str, str, str | None]:
        return name, form.format(value(ours)), None if theirs is None else form.format(value(theirs))

    rows = [row("right", lambda scores: f"{scores.right} of {scores.n}", "{}")]
    rows += [row(NAMES.get(name, name), lambda scores, at=name: getattr(scores, at)) for name in METRICS]
    rows.append(row("calibration error", lambda scores: scores.calibration_error))
    for label in result.classes:
        rows.append(row(f"recall of {label}", lambda scores, at=label: scores.per_class[at].recall))
    page.table(("measure", "candidate", "champion"), rows)
    shown = [_interval("candidate", ours), *([_interval("champion", theirs)] if theirs else [])]
    page.draw(charts.intervals(shown))
    page.text("Confusion: rows are what photos show, columns what the candidate calls them.")
    page.table(
        ("shows", *(f"called {name}" for name in result.classes)),
        [(name, *row) for name, row in zip(result.classes, ours.confusion, strict=True)],
    )


def _interval(name: str, scores: Scores) -> tuple[str, float, float, float]:
    return name, scores.accuracy, scores.accuracy_interval.low, scores.accuracy_interval.high


def _add_photos(page: Page, version: Version, result: Result) -> None:
    groups = evidence.groups(result)
    shown = evidence.pictures(version, result, groups)
    for title, text, places in groups:
        page.heading(title)
        some = f" The {evidence.SHOWN} surest are shown." if len(places) > evidence.SHOWN else ""
        page.text(f"{len(places)} of {len(result.holdout)}. {text}{some}" if places else "None.")
        if places:
            page.show({name: shown[name] for name in map(evidence.name_of, places[: evidence.SHOWN])})
    page.text(
        "Labels of training photos that are probably wrong: `ssclass data suspects`; to look at photos and correct "
        "labels: `ssclass review`."
    )


def _add_slices(page: Page, version: Version, result: Result) -> None:
    page.heading("Slices of the held-out photos")
    rows = []
    for slice_ in evidence.slices(version, result):
        theirs = None if slice_.champion is None else f"{slice_.champion} of {slice_.n}"
        span = f"{slice_.interval.low:.3f}–{slice_.interval.high:.3f}"
        gain = None if slice_.champion is None else f"{slice_.candidate - slice_.champion:+d}"
        rows.append((f"{slice_.kind} {slice_.name}", f"{slice_.candidate} of {slice_.n}", span, theirs, gain))
    page.table(("slice", "candidate right", "95 %", "champion right", "gain"), rows)
    if len(result.sources) > 1:
        columns = ("source", "train", "held out", "kept, neither")
        page.table(columns, [(name, n["train"], n["holdout"], n["unused"]) for name, n in result.sources.items()])


def _add_certainty(page: Page, result: Result) -> None:
    if not len(result.candidate.labels):
        return
    page.heading("How sure it is, and should be")
    models = {"candidate": result.candidate.numbers}
    if result.champion is not None and result.champion.finite:
        models["champion"] = result.champion.numbers
    page.draw(*charts.of_answers(result.classes, result.candidate.labels, models))


def _add_training(page: Page, result: Result) -> None:
    curves = charts.curves(result.history)
    if not result.cross_validation and not curves:
        return
    page.heading("Training")
    if result.cross_validation:
        rows = []
        for head, folds in result.cross_validation.items():
            mean = sum(folds) / len(folds) if folds else None
            each = ", ".join(f"{fold:.3f}" for fold in folds)
            rows.append((head, None if mean is None else f"{mean:.4f}", each))
        strong = [at for at, row in enumerate(rows) if row[0] == result.head]
        page.text("Heads that were tried, by cross-validation on the training photos; the strong one was chosen.")
        page.table(("head", "mean accuracy", "folds"), rows, strong)
    if curves:
        page.draw(*curves)


def _add_batches(page: Page, ingested: Mapping[str, Event], batches: Sequence[str]) -> None:
    """What is new: each batch's photos, those refused and why, and what the champion said of it beforehand."""
    page.heading("New and refused photos")
    rows, warnings = [], []
    for batch in batches:
        if batch not in ingested:
            continue
        body = ingested[batch].body
        told, test = body.get("receipt", {}), body.get("champion_test")
        refused = ", ".join(f"{count} {reason}" for reason, count in told.get("refused", {}).items())
        changed = f"{told.get('relabelled', 0)} / {told.get('removed', 0)}"
        before = None if not test else f"{test['right']} of {test['n']}"
        rows.append((batch, told.get("accepted"), told.get("duplicates"), refused or "none", changed, before))
        warnings += [(batch, each["code"], each["detail"]) for each in told.get("warnings", ())]
    columns = ("batch", "new", "copies", "refused", "relabelled / removed", "champion right before it learnt them")
    page.table(columns, rows)
    if warnings:
        page.table(("batch", "warning", "detail"), warnings)
    if rows:
        page.text("Which files were refused, each with its reason: `ssclass batch show BATCH`.")


def _add_lineage(page: Page, event: Event, ingested: Mapping[str, Event]) -> None:
    body = event.body
    page.heading("Where it comes from")
    rows = [
        ("the candidate and its data, in git", f"`git checkout run/{body['key']}`"),
        ("the same training again", f"`git checkout run/{body['key']} && dvc repro`"),
        ("the data alone", f"`git checkout {body['data_version']} && dvc pull`"),
        ("its batches and photos", f"`ssclass lineage {body['key']}`"),
        ("code and params, by digest", f"`{body['code']}`, `{body['params']}`"),
    ]
    if adopted := body.get("adopted"):
        rows.append(("adopted from", f"{adopted['file']}, sha256 `{adopted['sha256'][:16]}`"))
    page.table(("what", "how"), rows)
