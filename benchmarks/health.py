"""Alarms of the loop's health: `python -m benchmarks health DIR [REPEATS]`, 40 repeats unless told otherwise.

DIR holds class folders. For each repeat the photos are shuffled; 300 are the past, and the head `linear` learns from
them; the others come in batches of 40. Printed: false alarms a year, with a batch a day, where nothing has changed;
and for each kind of change, which begins with the first batch, after how many batches there was an alarm (median, and
the share of repeats without any). The changes: labels flipped at random; twice as many of one class as of the other,
and four times; photos darker by a third, and by a half.

On the study's 741 photos: docs/serving.md.
"""

from __future__ import annotations

import io
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.accuracy import Labelled, grouped
from ssclass.data.dataset import Dataset
from ssclass.data.images import inspect
from ssclass.data.shards import Receipt, Row, Shard
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.spec import feature_spec
from ssclass.model.training import train
from ssclass.params import FeatureParams, ModelParams, Params
from ssclass.retrain.health import health
from ssclass.workspace.ledger import Event, State

PAST, BATCH, BATCHES = 300, 40, 8


@dataclass(frozen=True)
class Change:
    """What changes: the share of labels flipped, how many of one class for one of the other, how bright photos are."""

    name: str
    flipped: float = 0.0
    balance: float = 1.0
    bright: float = 1.0


CHANGES = (
    Change("nothing"),
    Change("15 % of the labels flipped", flipped=0.15),
    Change("30 % of the labels flipped", flipped=0.3),
    Change("two of one class for one", balance=2),
    Change("four of one class for one", balance=4),
    Change("a third darker", bright=0.67),
    Change("half as bright", bright=0.5),
)


def main(folder: Path, repeats: int = 40) -> None:
    """Measure every change."""
    read = Labelled.of(folder)
    params = read.params.model_copy(update={"model": ModelParams(head="linear")})
    photos, pictures, labels = read.photos, read.pictures, [read.classes[label] for label in read.labels]
    darker = {change.bright: [dimmed(data, change.bright) for _, data in photos] for change in CHANGES}
    groups = grouped(pictures, params)
    rows = [
        Row(sha256, label, "train", group, picture.dhash, picture.palette, sha256, picture.width, picture.height)
        for (sha256, _), label, group, picture in zip(photos, labels, groups, pictures, strict=True)
    ]
    spec = feature_spec(FeatureParams())
    extractor = make_extractor(spec)
    features: dict[float, Features] = {}
    palettes: dict[float, list[bytes]] = {}
    for bright, kept in darker.items():
        named = [(sha256, data) for (sha256, _), data in zip(photos, kept, strict=True)]
        features[bright] = Features(*extract(spec, named, extractor))
        palettes[bright] = [inspect(data, params.ingest).palette for data in kept]
    for change in CHANGES:
        changed = [replace(row, palette=kept) for row, kept in zip(rows, palettes[change.bright], strict=True)]
        seen = features[1.0], features[change.bright]
        found = [alarms(seed, change, rows, changed, seen, params) for seed in range(repeats)]
        if change.name == "nothing":
            rate = sum(len(each) for each in found) / (repeats * BATCHES)
            print(f"{len(rows)} photos, {repeats} repeats; nothing changes: {365 * rate:.1f} false alarms a year")
            continue
        delays = [each[0] for each in found if each]
        median = statistics.median(delays) if delays else "–"
        print(
            f"{change.name:28} alarm after {median} batches; none in {repeats - len(delays)} of {repeats}", flush=True
        )


def dimmed(data: bytes, bright: float) -> bytes:
    """A photo, less bright."""
    if bright == 1:
        return data
    made = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:
        ImageEnhance.Brightness(picture.convert("RGB")).enhance(bright).save(made, "JPEG", quality=95)
    return made.getvalue()


def alarms(
    seed: int,
    change: Change,
    rows: Sequence[Row],
    changed: Sequence[Row],
    seen: tuple[Features, Features],
    params: Params,
) -> list[int]:
    """The numbers (from 1) of the batches at which an alarm began."""
    chance = np.random.default_rng(seed)
    classes = params.dataset.classes
    labels = np.array([classes.index(row.label) for row in rows])
    order = chance.permutation(len(rows))
    past, rest = order[:PAST], order[PAST:]
    groups = [rows[at].group for at in past]
    spec = feature_spec(FeatureParams())
    trained = train(seen[0].rows(past), labels[past], groups, spec, params)
    out_of_fold = trained.cv[trained.head].probabilities.argmax(1) == labels[past]
    answers = trained.classifier.members[0].predict(seen[1]).argmax(1)
    state, shards, told, before = State(), [shard("past", 1, [rows[at] for at in past])], [], set[str]()
    state.ingested["past"] = Event("ingest", "2026-01-01T00:00:00+00:00", {"batch": "past"})
    for number in range(1, BATCHES + 1):
        share = change.balance / (1 + change.balance)
        weights = np.where(labels[rest] == 0, share, 1 - share)
        chosen = chance.choice(rest, BATCH, replace=False, p=weights / weights.sum())
        rest = np.setdiff1d(rest, chosen)
        flipped = chance.random(BATCH) < change.flipped
        given = np.where(flipped, 1 - labels[chosen], labels[chosen])
        made = [replace(changed[at], label=classes[label]) for at, label in zip(chosen, given, strict=True)]
        shards.append(shard(f"b{number}", number + 1, made))
        test = {"key": "k", "right": int((answers[chosen] == given).sum()), "n": BATCH}
        test |= {"champion_right": int(out_of_fold.sum()), "champion_n": PAST}
        body = {"batch": f"b{number}", "etag": "e", "champion_test": test, "receipt": {"source": "main"}}
        state.ingested[f"b{number}"] = Event("ingest", "2026-01-01T00:00:00+00:00", body)
        now = health(state, Dataset.of(shards))
        kinds = {alarm.partition("(")[0].partition(" of ")[0].replace(f"b{number}", "") for alarm in now.alarms}
        if kinds - before:
            told.append(number)
        before = kinds
    return told


def shard(batch: str, sequence: int, rows: Sequence[Row]) -> Shard:
    """A batch of the data set."""
    return Shard(tuple(rows), Receipt(batch, "manifest.json", "etag", sequence, len(rows), 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
