"""Explain a model on one page: its mistakes, class-activation maps, what its channels detect, its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssclass.data.images import decode, thumbnail
from ssclass.errors import NotFoundError
from ssclass.pages import charts
from ssclass.pages.page import Page, Picture, jpeg, png
from ssclass.retrain.predict import Progress, silent
from ssclass.retrain.scores import score
from ssclass.serving.model import Model
from ssclass.study.answers import Answers, Photos, answer_photos, out_of_fold, threshold
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.study.maps import MappedModel

SIDE = 200  # of a shown photo's longer side, pixels
MISTAKES = 40  # shown; the surest first
RIGHT = 6  # shown of each class: from the surest to the least sure
CHANNELS = 5  # shown of each class, and of each layer


def explain(model: Model, photos: Photos, workspace: Workspace | None, progress: Progress = silent) -> Page:
    """Make the page that explains a model on photos."""
    from ssclass.study.maps import MappedModel

    answers = answer_photos(model, photos, progress)
    scores = score(answers.probabilities, answers.labels, model.classes)
    low, high = scores.accuracy_interval.low, scores.accuracy_interval.high
    page = Page(f"Model {model.name} on {photos.title}")
    page.text(
        f"{scores.right} of {scores.n} right: accuracy {scores.accuracy:.4f} (95 % {low:.3f}–{high:.3f}), loss "
        f"{scores.loss:.4f}, calibration error {scores.calibration_error:.3f}."
    )
    if answers.unreadable:
        page.table(("left out", "why"), list(answers.unreadable.items()))
    try:
        mapped = MappedModel(model)
    except NotFoundError as error:
        mapped = None
        page.text(str(error))

    page.heading("Mistakes")
    certainty = answers.probabilities.max(axis=1)
    wrong = sorted(np.flatnonzero(~answers.correct).tolist(), key=lambda at: -certainty[at])
    shown = wrong[:MISTAKES]
    right = [
        at
        for label in range(len(model.classes))
        for at in _spread(np.flatnonzero(answers.correct & (answers.labels == label)), certainty)
    ]
    rows = [*shown, *right]
    pictures = dict(photos.read({answers.names[at] for at in rows}))
    maps = channels = None
    if mapped and rows:
        progress("maps", 0, len(rows))
        images = [decode(pictures[answers.names[at]], model.size) for at in rows]
        # All at once, as `contributions` compares a place with the mean place of the photos that it is given.
        places, channels, _ = mapped.contributions(images, answers.predicted[rows])
        maps = mapped.photo_maps(places, SIDE)
        progress("maps", len(rows), len(rows))
        page.text(
            "Beside each photo, how much each place contributes to the class that the model predicts: red speaks for "
            f"it, blue against it. {_kind_of_map(mapped)}"
        )
    made = _gallery(model, answers, rows, pictures, maps)
    if shown:
        some = "" if len(shown) == len(wrong) else f"; {len(shown)} of them"
        page.text(f"{len(wrong)} of {scores.n}, the surest first{some}.")
        page.show({f"mistake-{number:03}": picture for number, picture in enumerate(made[: len(shown)], 1)})
    else:
        page.text("None.")
    page.heading("Right answers")
    page.text("Of each class, from the surest to the least sure.")
    page.show({f"right-{number:03}": picture for number, picture in enumerate(made[len(shown) :], 1)})

    page.heading("How sure it is, and should be")
    page.draw(*charts.of_answers(model.classes, answers.labels, {"model": answers.probabilities}))
    _add_threshold(page, model, answers, workspace, progress)

    if mapped and channels is not None:
        kept = [one[len(shown) :] for one in channels]  # of the right answers
        _add_channels(page, model, mapped, answers.labels[right], kept, progress)
    return page


def write(page: Page, folder: Path) -> Path:
    """Write index.html and each picture as a file; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page.write_pictures(folder)
    (folder / "index.html").write_text(page.html(), encoding="utf-8")
    return folder / "index.html"


def log(workspace: Workspace, model: Model, folder: Path) -> str:
    """Log the folder to the model's MLflow run, under ``look/``; returns the run's id.

    NotFoundError for a model without a run.
    """
    from ssclass.study.erase import PAGES, PAGES_TAG
    from ssclass.tracking.client import Tracking

    if model.run_id is None:
        raise NotFoundError(f"{model.name}: a folder has no MLflow run; leave --log out, or name a version or a run")
    tracking = Tracking.of(workspace)
    with tracking.named():
        tracking.client.set_tag(model.run_id, PAGES_TAG, "yes")  # first: `ssclass forget` finds the pages by it
        tracking.client.log_artifacts(model.run_id, str(folder), PAGES)
    return model.run_id


def _spread(rows: NDArray[np.integer], certainty: NDArray[np.floating]) -> list[int]:
    """Choose RIGHT of these rows, evenly from the surest to the least sure."""
    ordered = sorted((int(row) for row in rows), key=lambda row: -certainty[row])
    places = np.linspace(0, len(ordered) - 1, min(RIGHT, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def _kind_of_map(mapped: MappedModel) -> str:
    """A sentence on the kind of map that the model allows."""
    if mapped.linear:
        return "The head is linear on pooled features: these are exact class-activation maps."
    if mapped.directions:
        return (
            "The head compares directions: a place contributes what the score loses when it becomes the mean place of "
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
    """Pictures of the photos, each with its map beside it where there is one."""
    from ssclass.study.maps import overlay, stretched

    made = []
    for number, at in enumerate(rows):
        photo = thumbnail(pictures[answers.names[at]], SIDE)
        if maps is not None:
            photo = np.concatenate([photo, overlay(photo, stretched(maps[number], *photo.shape[:2]))], axis=1)
        predicted, label = model.classes[answers.predicted[at]], model.classes[answers.labels[at]]
        caption = f"is {label}, predicted {predicted}" if predicted != label else label
        name = answers.names[at]
        short = f"{name[:16]}…" if len(name) == 64 else name
        made.append(Picture(jpeg(photo), f"{caption}, {answers.probabilities[at].max():.3f}\n{short}"))
    return made


def _add_threshold(page: Page, model: Model, answers: Answers, workspace: Workspace | None, progress: Progress) -> None:
    if len(model.classes) != 2:
        page.text("With more than two classes the most probable one is predicted; there is no threshold to choose.")
        return
    found = out_of_fold(workspace, model, progress)
    if isinstance(found, str):
        page.text(f"No threshold from cross-validation: {found}.")
        return
    chosen = threshold(*found)
    second = model.classes[1]
    ours = int(((answers.probabilities[:, 1] > chosen.value) == answers.labels).sum())
    plain = int(answers.correct.sum())
    page.table(
        (
            f"predict {second} above",
            f"right of {chosen.n} training photos, out of fold",
            f"right of {len(answers.labels)} here",
        ),
        [
            ("0.5", f"{chosen.accuracy_at_half:.4f}", f"{plain} ({plain / len(answers.labels):.4f})"),
            (f"{chosen.value:.3f}", f"{chosen.accuracy:.4f}", f"{ours} ({ours / len(answers.labels):.4f})"),
        ],
    )
    page.text(
        "The second threshold has the most training photos right by cross-validated probabilities. It is chosen there "
        "and only reported here; the model itself predicts the more probable class."
    )


def _add_channels(
    page: Page,
    model: Model,
    mapped: MappedModel,
    labels: NDArray[np.integer],
    channels: Sequence[NDArray[np.float32]],
    progress: Progress,
) -> None:
    """Add pictures of what channels detect: those of the last layer that speak for a class, some of earlier layers."""
    from ssclass.study.filters import shown_layers, visualise_channels

    trunk = mapped.trunk()
    found = shown_layers(trunk.network)
    contribution = np.sum([one for one in channels if one.shape[1] == trunk.network.output.shape[-1]], axis=0)
    captions: dict[int, str] = {}
    for label in np.unique(labels):
        mean = contribution[labels == label].mean(axis=0)
        for channel in np.argsort(-mean)[:CHANNELS].tolist():
            captions.setdefault(channel, f"{model.classes[label]}: channel {channel}, contributes {mean[channel]:+.3f}")
    wanted = {found[-1].name: captions}
    draw = np.random.default_rng(0)
    for layer in found[:-1]:
        some = draw.choice(layer.output.shape[-1], CHANNELS, replace=False).tolist()
        wanted[layer.name] = {channel: f"{layer.name}, channel {channel}" for channel in some}
    page.heading("What channels detect")
    page.text(
        "Pictures that activate a channel most, by gradient ascent from noise. First the channels of the last map "
        "that contribute most to each class on the right answers above, then channels of earlier layers, drawn by lot."
    )
    for layer in reversed(found):
        captions = wanted[layer.name]
        pixels = visualise_channels(trunk, layer, list(captions), tick=partial(progress, f"channels of {layer.name}"))
        page.show(
            {
                f"channel-{layer.name}-{channel}": Picture(png(image), caption, 150)
                for (channel, caption), image in zip(captions.items(), pixels, strict=True)
            }
        )
