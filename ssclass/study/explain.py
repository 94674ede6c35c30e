"""Seeing a model: its mistakes, where it looks, what its channels look for, how sure it should be. One page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssclass.data.images import decode, thumbnail
from ssclass.errors import NotFoundError
from ssclass.retrain.predict import Progress, silent
from ssclass.retrain.scores import score
from ssclass.serving.model import Model
from ssclass.study.answers import Answers, Photos, ask, out_of_fold, threshold
from ssclass.study.charts import charts
from ssclass.study.pages import Page, Picture, jpeg, png
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.study.maps import Seen

SIDE = 200  # of a shown photo's longer side, pixels
MISTAKES = 40  # shown; the surest first
RIGHT = 6  # shown of each class: from the surest to the least sure
CHANNELS = 5  # shown of each class, and of each layer


def look(model: Model, photos: Photos, workspace: Workspace | None, progress: Progress = silent) -> Page:
    """The whole page about a model on photos."""
    from ssclass.study.maps import Seen

    answers = ask(model, photos, progress)
    scores = score(answers.odds, answers.labels, model.classes)
    low, high = scores.accuracy_interval.low, scores.accuracy_interval.high
    page = Page(f"Model {model.name} on {photos.said}")
    page.text(
        f"{scores.right} of {scores.n} right: accuracy {scores.accuracy:.4f} (95 % {low:.3f}–{high:.3f}), loss "
        f"{scores.loss:.4f}, calibration error {scores.calibration_error:.3f}."
    )
    if answers.unreadable:
        page.table(("left out", "why"), list(answers.unreadable.items()))
    try:
        seen = Seen(model)
    except NotFoundError as error:
        seen = None
        page.text(str(error))

    page.heading("Mistakes")
    hit = answers.called == answers.labels
    sure = answers.odds.max(axis=1)
    wrong = sorted(np.flatnonzero(~hit).tolist(), key=lambda at: -sure[at])
    shown = wrong[:MISTAKES]
    right = [
        at
        for label in range(len(model.classes))
        for at in _spread(np.flatnonzero(hit & (answers.labels == label)), sure)
    ]
    rows = [*shown, *right]
    pictures = dict(photos.read({answers.names[at] for at in rows}))
    maps = channels = None
    if seen and rows:
        progress("maps", 0, len(rows))
        images = np.stack([decode(pictures[answers.names[at]], model.size) for at in rows])
        places, channels, _ = seen.worths(images, answers.called[rows])  # together: `worths` says why
        maps = seen.photo_maps(places, SIDE)
        progress("maps", len(rows), len(rows))
        page.text(
            "Beside each photo, what its places are worth for the class that the model calls: red speaks for it, blue "
            f"against it. {_exactly(seen)}"
        )
    made = _gallery(model, answers, rows, pictures, maps)
    if shown:
        some = "" if len(shown) == len(wrong) else f"; {len(shown)} of them"
        page.text(f"{len(wrong)} of {scores.n}, the surest first{some}.")
        page.show({f"mistake-{number:03}": each for number, each in enumerate(made[: len(shown)], 1)})
    else:
        page.text("None.")
    page.heading("Right answers")
    page.text("Of each class, from the surest to the least sure.")
    page.show({f"right-{number:03}": each for number, each in enumerate(made[len(shown) :], 1)})

    page.heading("How sure it is, and should be")
    page.show(charts(model, answers, scores.calibration_error, hit), charts=True)
    _tell_threshold(page, model, answers, workspace, progress)

    if seen and channels is not None:
        kept = [one[len(shown) :] for one in channels]  # of the right answers
        _show_filters(page, model, seen, answers.labels[right], kept, progress)
    return page


def write(page: Page, folder: Path) -> Path:
    """index.html and each picture as a file; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page.write_pictures(folder)
    (folder / "index.html").write_text(page.html(), encoding="utf-8")
    return folder / "index.html"


def log(workspace: Workspace, model: Model, folder: Path) -> str:
    """Put the folder on the model's MLflow run, under ``look/``; the run's id. NotFoundError for one without a run."""
    from ssclass.study.erase import LOOK, LOOK_TAG
    from ssclass.tracking.client import Tracking

    if model.run_id is None:
        raise NotFoundError(f"{model.name}: a folder has no MLflow run; leave --log out, or name a version or a run")
    tracking = Tracking.of(workspace)
    with tracking.named():
        tracking.client.set_tag(model.run_id, LOOK_TAG, "yes")  # first: `ssclass forget` finds the pages by it
        tracking.client.log_artifacts(model.run_id, str(folder), LOOK)
    return model.run_id


def _spread(rows: NDArray[np.integer], sure: NDArray[np.floating]) -> list[int]:
    """RIGHT of these rows, evenly from the surest to the least sure."""
    ordered = sorted((int(row) for row in rows), key=lambda row: -sure[row])
    places = np.linspace(0, len(ordered) - 1, min(RIGHT, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def _exactly(seen: Seen) -> str:
    """What kind of map it is, in a sentence."""
    if seen.linear:
        return "The head is linear on pooled features: these are exact class-activation maps."
    if seen.directions:
        return (
            "The head compares directions: a place is worth what the score loses when it looks like the mean place of "
            "these photos."
        )
    return "The head is not linear: these are gradients times activations of the last feature map (HiResCAM)."


def _gallery(
    model: Model,
    answers: Answers,
    rows: Sequence[int],
    pictures: dict[str, bytes],
    maps: NDArray[np.float32] | None,
) -> list[Picture]:
    """Each photo, with its map beside it where there is one."""
    from ssclass.study.maps import overlay, stretched

    made = []
    for number, at in enumerate(rows):
        photo = thumbnail(pictures[answers.names[at]], SIDE)
        if maps is not None:
            photo = np.concatenate([photo, overlay(photo, stretched(maps[number], *photo.shape[:2]))], axis=1)
        called, label = model.classes[answers.called[at]], model.classes[answers.labels[at]]
        said = f"is {label}, called {called}" if called != label else label
        name = answers.names[at]
        short = f"{name[:16]}…" if len(name) == 64 else name
        made.append(Picture(jpeg(photo), f"{said}, {answers.odds[at].max():.3f}\n{short}"))
    return made


def _tell_threshold(
    page: Page, model: Model, answers: Answers, workspace: Workspace | None, progress: Progress
) -> None:
    if len(model.classes) != 2:
        page.text("With more than two classes the likeliest one is called; there is no threshold to choose.")
        return
    found = out_of_fold(workspace, model, progress)
    if isinstance(found, str):
        page.text(f"No threshold from cross-validation: {found}.")
        return
    chosen = threshold(*found)
    second = model.classes[1]
    ours = int(((answers.odds[:, 1] > chosen.value) == answers.labels).sum())
    plain = int((answers.called == answers.labels).sum())
    page.table(
        (
            f"call it {second} above",
            f"right of {chosen.n} training photos, out of fold",
            f"right of {len(answers.labels)} here",
        ),
        [
            ("0.5", f"{chosen.half:.4f}", f"{plain} ({plain / len(answers.labels):.4f})"),
            (f"{chosen.value:.3f}", f"{chosen.accuracy:.4f}", f"{ours} ({ours / len(answers.labels):.4f})"),
        ],
    )
    page.text(
        "The second threshold has the most training photos right by cross-validated probabilities. It is chosen there "
        "and only reported here; the model itself calls the likelier class."
    )


def _show_filters(
    page: Page,
    model: Model,
    seen: Seen,
    labels: NDArray[np.integer],
    channels: Sequence[NDArray[np.float32]],
    progress: Progress,
) -> None:
    """Pictures that channels answer to most: those of the last layer that speak for a class, some of earlier ones."""
    from ssclass.study.filters import favourites, layers

    trunk = seen.trunk()
    found = layers(trunk.network)
    worth = np.sum([one for one in channels if one.shape[1] == trunk.network.output.shape[-1]], axis=0)
    captions: dict[int, str] = {}
    for label in np.unique(labels):
        mean = worth[labels == label].mean(axis=0)
        for channel in np.argsort(-mean)[:CHANNELS].tolist():
            captions.setdefault(channel, f"{model.classes[label]}: channel {channel}, worth {mean[channel]:+.3f}")
    wanted = {found[-1].name: captions}
    draw = np.random.default_rng(0)
    for layer in found[:-1]:
        some = draw.choice(layer.output.shape[-1], CHANNELS, replace=False).tolist()
        wanted[layer.name] = {channel: f"{layer.name}, channel {channel}" for channel in some}
    page.heading("What channels look for")
    page.text(
        "Pictures to which a channel answers most, by gradient ascent from noise. First the channels of the last map "
        "that speak most for each class on the right answers above, then channels of earlier layers, drawn by lot."
    )
    for layer in reversed(found):
        of = wanted[layer.name]
        pixels = favourites(trunk, layer, list(of), tick=partial(progress, f"channels of {layer.name}"))
        page.show(
            {
                f"channel-{layer.name}-{channel}": Picture(png(image), said, 150)
                for (channel, said), image in zip(of.items(), pixels, strict=True)
            }
        )
