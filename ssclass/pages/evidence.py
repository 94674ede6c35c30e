"""The photos behind a decision: which each model has right alone, which labels both doubt, how slices fare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssclass.data.images import Refused, thumbnail
from ssclass.errors import StoreError
from ssclass.pages.page import Picture, jpeg
from ssclass.retrain.result import Result
from ssclass.retrain.statistics import Interval, clopper_pearson
from ssclass.workspace.version import Version, photos_of

SHOWN = 24
"""Photos of a group that are shown, the surest first."""
SIDE, QUALITY = 180, 72
"""Of a thumbnail: pixels of the longer side, and JPEG's quality."""
DOUBTED = 0.2
"""A label is suspicious where neither model gives it more probability than this."""

Group = tuple[str, str, list[int]]
"""A heading, a sentence, and the places of held-out photos."""


@dataclass(frozen=True)
class Slice:
    """Held-out photos that have something in common: how many of `n` each model has right."""

    kind: str
    name: str
    n: int
    candidate: int
    champion: int | None
    interval: Interval


def groups(result: Result) -> list[Group]:
    """The groups of photos that a report shows, as places in the held-out set, the surest answer first."""
    ours = result.candidate
    sure = ours.numbers.max(axis=1) if len(ours.photos) else np.zeros(0)

    def ordered(mask: np.ndarray) -> list[int]:
        return sorted(np.flatnonzero(mask).tolist(), key=lambda at: (-sure[at], at))

    if result.champion is None:
        wrong = ordered(~ours.correct)
        return [("What the candidate has wrong", "The surest first.", wrong), _doubted(result)]
    theirs = result.champion
    return [
        ("Only the candidate is right", "The champion is wrong on these.", ordered(ours.correct & ~theirs.correct)),
        ("Only the champion is right", "The candidate is wrong on these.", ordered(~ours.correct & theirs.correct)),
        ("Both are wrong", "Neither model has these.", ordered(~ours.correct & ~theirs.correct)),
        _doubted(result),
    ]


def _doubted(result: Result) -> Group:
    """Labels that the models, none of which has learnt from these photos, hold to be unlikely."""
    labels = result.candidate.labels
    given = [
        answers.numbers[np.arange(len(labels)), labels]
        for answers in (result.candidate, result.champion)
        if answers is not None
    ]
    most = np.max(given, axis=0)
    alike = np.ones(len(labels), bool)
    if result.champion is not None:
        alike = result.candidate.predicted == result.champion.predicted
    places = np.flatnonzero((most < DOUBTED) & alike & ~result.candidate.correct)
    text = f"No model gives the label more than {DOUBTED:g}, and all call the photo the same. It may be the label."
    return "Suspicious labels", text, sorted(places.tolist(), key=lambda at: (most[at], at))


def name_of(place: int) -> str:
    """The name of a held-out photo's picture on the page."""
    return f"photo-{place + 1:04}"


def pictures(version: Version, result: Result, shown: Sequence[Group]) -> dict[str, Picture]:
    """A picture of each photo that is to be shown, by `name_of`, without metadata; of those that are gone, none.

    Where S3 is away the photos are named, and not shown.
    """
    places = sorted({place for _, _, group in shown for place in group[:SHOWN]})
    here = version.dataset.by_sha256
    wanted = {result.holdout[place] for place in places} & here.keys()
    try:
        found = {sha256: _thumbnail(data) for sha256, data in photos_of(version, wanted)}
    except StoreError:
        found = {}
    made = {}
    for place in places:
        sha256 = result.holdout[place]
        if sha256 in here:
            made[name_of(place)] = Picture(found.get(sha256, b""), _caption(result, place))
        else:
            made[name_of(place)] = Picture(b"", "A photo that is no longer in the data set.")
    return made


def _thumbnail(data: bytes) -> bytes:
    try:
        return jpeg(thumbnail(data, SIDE), QUALITY)
    except Refused:
        return b""


def _caption(result: Result, place: int) -> str:
    ours, theirs = result.candidate, result.champion
    lines = [f"{result.classes[ours.labels[place]]}", f"candidate: {_called(result, ours.predicted[place])} "]
    lines[1] += f"{ours.numbers[place].max():.3f}"
    if theirs is not None:
        lines.append(f"champion: {_called(result, theirs.predicted[place])} {theirs.numbers[place].max():.3f}")
    return "\n".join([*lines, f"{result.holdout[place][:16]}… in {result.batches[place]}"])


def _called(result: Result, index: int) -> str:
    return result.classes[index] if index >= 0 else "another class"


def slices(version: Version, result: Result) -> list[Slice]:
    """Slices by class, by batch, and by source where there are several; each photo is in one of each kind."""
    sources = {row.sha256: shard.receipt.source for shard in version.dataset.shards for row in shard.rows}
    names = {
        "class": [result.classes[label] for label in result.candidate.labels],
        "batch": list(result.batches),
        "source": [sources.get(sha256, "no longer there") for sha256 in result.holdout],
    }
    if len(set(names["source"])) < 2:
        del names["source"]
    ours, theirs = result.candidate.correct, None if result.champion is None else result.champion.correct
    made = []
    for kind, each in names.items():
        of = np.array(each)
        for name in dict.fromkeys(each):
            mine = of == name
            n, right = int(mine.sum()), int(ours[mine].sum())
            champion = None if theirs is None else int(theirs[mine].sum())
            made.append(Slice(kind, name, n, right, champion, clopper_pearson(right, n)))
    return made
