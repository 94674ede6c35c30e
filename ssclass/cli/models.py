"""Commands about models: retrain, evaluate, predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssclass.cli.common import (
    FILE,
    FOLDER,
    as_json,
    in_workspace,
    print_json,
    print_line,
    print_table,
    settings_at,
    settings_for,
    workspace_at,
)
from ssclass.errors import InputError

if TYPE_CHECKING:
    from ssclass.serving.bulk import Summary

FEW = 8
"""Photos for which making an engine takes longer than it saves."""


@click.command()
@in_workspace
@as_json
def retrain(folder: Path | None, as_json: bool) -> None:
    """Take in waiting batches, train if there is something new, promote if better."""
    from ssclass import progress
    from ssclass.environment import check_imports
    from ssclass.started import check_started
    from ssclass.workspace.ledger import HELD

    settings = settings_at(folder)
    check_imports()
    from ssclass.upkeep.settled import look

    if (outcome := look(settings)) is None:  # Prefect and its temporary server take longer than all the rest
        check_started(settings)
        from flows.retrain import retrain as flow

        with progress.shown():
            outcome = flow(str(settings.workspace))
    if as_json:
        print_json(outcome.as_dict())
    else:
        for each in outcome.batches:
            print_line(
                f"{each.batch}: {each.outcome}, {each.accepted} photos in, {each.duplicates} there already, "
                f"{each.refused} refused"
            )
        print_line(f"{outcome.decision}: {outcome.reason}")
    held = [each for each in outcome.batches if each.outcome == HELD]
    for each in held:
        print(
            (
                f"ssclass: batch {each.batch} is HELD: {each.reason}; `ssclass batch admit {each.batch}` or `ssclass "
                f"batch drop {each.batch}`"
            ),
            file=sys.stderr,
        )
    if held:
        sys.exit(2)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--classes", required=True, help="Its classes, in the order of its outputs; commas between.")
@click.option(
    "--preprocess",
    required=True,
    help="How it wants pixels: none (0 to 255), 0..1, -1..1, caffe, torch, or the module of keras.applications.",
)
@click.option("--logits", is_flag=True, help="Its outputs lack the softmax or sigmoid.")
@click.option("--size", type=click.IntRange(min=1), help="Side of its images, pixels, where it takes any.")
@in_workspace
@as_json
def adopt(
    model: Path, classes: str, preprocess: str, logits: bool, size: int | None, folder: Path | None, as_json: bool
) -> None:
    """Make the Keras classifier in MODEL, a .keras file, the first champion, if it is good enough."""
    from ssclass import progress
    from ssclass.upkeep.adopt import Declared
    from ssclass.upkeep.adopt import adopt as take
    from ssclass.workspace.ledger import HELD, PROMOTED

    names = tuple(name.strip() for name in classes.split(","))
    with progress.shown():
        event, taken = take(workspace_at(folder), Declared(model, names, preprocess, logits, size), progress.report)
    if as_json:
        print_json(event.body | {"taken": [each.as_dict() for each in taken]})
        return
    for each in taken:
        print_line(f"{each.batch}: {each.outcome}, {each.accepted} photos in, {each.refused} refused")
    print_line(f"{event.body['decision']}: {event.body['reason']}")
    for each in (each for each in taken if each.outcome == HELD):
        print_line(f"ssclass: batch {each.batch} is HELD: {each.reason}", err=True)
    if event.body["decision"] != PROMOTED:
        print(
            "ssclass: are --classes in the order of its outputs, and --preprocess and --logits right?", file=sys.stderr
        )


@click.command()
@click.argument("photos", type=FOLDER)
@click.option(
    "--models",
    "--model",
    default="champion",
    show_default=True,
    help="Versions, aliases, runs or folders; commas between.",
)
@click.option("--metrics", default="all", show_default=True, help="Names of metrics; commas between.")
@click.option(
    "--from-dir",
    is_flag=True,
    help="Stream from disk in batches, again for each model: memory does not grow with the folder.",
)
@in_workspace
@as_json
def evaluate(photos: Path, models: str, metrics: str, from_dir: bool, folder: Path | None, as_json: bool) -> None:
    """Score models on the class folders in PHOTOS."""
    from ssclass import progress
    from ssclass.errors import InputError
    from ssclass.retrain.scores import METRICS
    from ssclass.serving.evaluate import evaluate_folder
    from ssclass.serving.model import open_model

    chosen = METRICS if metrics == "all" else tuple(name.strip() for name in metrics.split(","))
    if unknown := [name for name in chosen if name not in METRICS]:
        raise InputError(f"--metrics: {unknown[0]!r} is none of {', '.join(METRICS)}")
    names = [name.strip() for name in models.split(",")]
    settings = settings_for(names, folder)
    opened = [open_model(name, settings) for name in names]
    with progress.shown():
        scores, refused = evaluate_folder(photos, opened, in_memory=not from_dir)
    unreadable = [{"file": str(file.path), "reason": f"{error.reason}: {error.detail}"} for file, error in refused]
    found = {
        "photos": next(iter(scores.values())).n,
        "unreadable": unreadable,
        "models": {
            name: {key: value for key, value in each.as_dict().items() if key in chosen or metrics == "all"}
            | {"n": each.n, "right": each.right}
            for name, each in scores.items()
        },
    }
    if as_json:
        print_json(found)
        return
    for item in unreadable:
        print_line(f"left out {item['file']}: {item['reason']}", err=True)
    print_table(
        ("model", "right", *chosen),
        [
            (name, f"{each.right} of {each.n}", *(f"{getattr(each, metric):.4f}" for metric in chosen))
            for name, each in scores.items()
        ],
    )
    if metrics == "all":
        for name, each in scores.items():
            rows = [
                (
                    label,
                    f"{one.recall:.4f}",
                    f"{one.precision:.4f}",
                    f"{one.f_measure:.4f}",
                    one.support,
                    *each.confusion[i],
                )
                for i, (label, one) in enumerate(each.per_class.items())
            ]
            print_table(
                (name, "recall", "precision", "f_measure", "photos", *(f"called {label}" for label in each.per_class)),
                rows,
            )


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1)
@click.option("--model", default="champion", show_default=True, help="A version, alias, run or folder.")
@click.option(
    "--from", "source", metavar="DIR|s3://…|FILE.parquet", help="All photos there, instead of FILES; needs --to."
)
@click.option("--to", type=FILE, help="The Parquet file for their answers; the same command again goes on with it.")
@in_workspace
@as_json
def predict(
    files: tuple[Path, ...], model: str, source: str | None, to: Path | None, folder: Path | None, as_json: bool
) -> None:
    """Say what is on each photo in FILES, or on all photos in a folder, in S3 or in a Parquet file."""
    if (source is None) != (to is None) or (source is None) == (not files):
        raise click.UsageError("Name FILES, or --from and --to.")
    if source is not None and to is not None:
        _predict_all(source, to, model, folder, as_json)
        return
    from ssclass.data.images import Refused
    from ssclass.serving.model import open_model, read_photo

    opened = open_model(model, settings_for([model], folder))
    ask = opened.predict if len(files) > FEW else opened.predict_few
    found: list[dict[str, Any]] = []
    failed = False
    for path in files:
        image = read_photo(path, opened.size)
        if isinstance(image, Refused):
            failed = True
            print_line(f"ssclass: {path}: {image.reason}: {image.detail}; give a photo that opens", err=True)
            continue
        answer = (float(value) for value in ask(image[None])[0])
        odds: dict[str, float] = dict(zip(opened.classes, answer, strict=True))
        found.append({"file": str(path), "label": max(odds, key=lambda name: odds[name]), "probabilities": odds})
    if as_json:
        print_json(found)
    else:
        for item in found:
            print_line(f"{item['file']}: {item['label']} ({item['probabilities'][item['label']]:.3f})")
    if failed:
        sys.exit(2)


def _predict_all(source: str, to: Path, model: str, folder: Path | None, as_json: bool) -> None:
    from ssclass import progress
    from ssclass.params import IngestParams
    from ssclass.serving.bulk import Job, begun, finished, predict_all
    from ssclass.serving.model import open_model
    from ssclass.serving.unlabelled import photos_at

    limits = IngestParams(min_side=1)
    job = begun(to, source, model)
    if job is not None and (whole := finished(to)) is not None:
        _say_predicted(to, whole, as_json)
        return
    settings = settings_for([model], folder)
    photos = photos_at(source, settings, limits.max_bytes)
    opened = open_model(model if job is None or job.run_id is None else f"run:{job.run_id}", settings)
    now = Job(source, model, opened.run_id, opened.key, opened.classes)
    if job is not None and (job.key, job.classes) != (now.key, now.classes):
        raise InputError(f"{to}: was begun with another model in {model}; name a new file with --to")
    with progress.shown():
        done = predict_all(opened, job or now, photos, to, limits, progress.report, settings)
    _say_predicted(to, done, as_json)


def _say_predicted(to: Path, done: Summary, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(to), **vars(done)})
    else:
        print_line(f"{to}: {done.photos} photos, {done.unreadable} of them cannot be read (column error)")


COMMANDS = (retrain, adopt, evaluate, predict)
