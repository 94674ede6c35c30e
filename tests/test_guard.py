"""The plausibility guard on the demo's own deliveries, twenty times dealt: flipped labels HELD, good ones let in.

On real photos where they are, and on drawings; features are computed once and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ssclass.data.images import Refused, inspect
from ssclass.data.shards import Row
from ssclass.data.split import HOLDOUT, Place, assign
from ssclass.demo.drawings import draw
from ssclass.demo.run import DRAWN, deliveries, gather
from ssclass.errors import WeightsError
from ssclass.model.classifier import Classifier
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.params import DatasetParams, ModelParams, Params, TrainParams
from ssclass.retrain.ingest import plausibility
from ssclass.retrain.result import label_index
from ssclass.retrain.scores import predicted
from ssclass.settings import home
from tests.support.pipelines import CLASSES, REAL, real_photos

SEEDS = 20
PHOTOS = 120  # of each class, at most
PARAMS = Params(dataset=DatasetParams(classes=CLASSES), model=ModelParams(head="linear"), train=TrainParams(folds=3))


@dataclass(frozen=True)
class Set:
    """Photos by class, what the pipeline knows of each (label, split and group still open), and their features."""

    found: dict[str, list[Path]]
    rows: dict[Path, Row]
    features: Features
    spec: FeatureSpec


def examine(found: dict[str, list[Path]]) -> dict[Path, Row]:
    """Every photo that the pipeline would not refuse, by the file's own path."""
    rows = {}
    for label, files in found.items():
        for path in files:
            data = path.read_bytes()
            try:
                seen = inspect(data, PARAMS.ingest)
            except Refused:
                continue
            rows[path.resolve()] = Row(
                hashlib.sha256(data).hexdigest(), label, "", "", seen.dhash, seen.palette, "", seen.width, seen.height
            )
    return rows


def featured(rows: dict[Path, Row], spec: FeatureSpec) -> Features:
    """The features of all photos, from the memo that the tests keep beside the weights."""
    from ssclass.model.extraction import extract, make_extractor

    sha256s = tuple(row.sha256 for row in rows.values())
    digest = hashlib.sha256("".join(sha256s).encode()).hexdigest()
    memo = FeatureMemo(home() / "tests", None)
    if (kept := memo.get(spec, digest, sha256s)) is not None:
        return kept
    photos = ((row.sha256, path.read_bytes()) for path, row in rows.items())
    features = Features(*extract(spec, photos, make_extractor(spec)))
    memo.put(spec, digest, features)
    return features


@pytest.fixture(scope="module", params=["photos", "drawings"])
def examined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Set:
    if request.param == "photos" and not real_photos():
        pytest.skip("no real photos here; the drawings have to do")
    try:
        spec = feature_spec(PARAMS.features)
    except WeightsError as error:
        pytest.skip(f"no features without weights: {error}")
    folder = REAL
    if request.param == "drawings":
        folder = tmp_path_factory.mktemp("drawn")
        draw(folder, CLASSES, DRAWN)
    found = {name: files[:PHOTOS] for name, files in gather(folder).items()}
    rows = examine(found)
    return Set(found, rows, featured(rows, spec), spec)


def rows_in(delivery: Path, examined: Set, existing: Sequence[Row]) -> list[Row]:
    """A delivery's photos as ingest would take them in, beside those that are there already."""
    named = {path.resolve(): path.parent.name for path in sorted(delivery.rglob("*")) if path.is_symlink()}
    fresh = [replace(examined.rows[path], label=label) for path, label in named.items() if path in examined.rows]
    at = PARAMS.dataset
    places = assign(fresh, [None] * len(fresh), existing, at.holdout_fraction, at.near_duplicate_bits)
    return [
        replace(row, split=place.split, group=place.group)
        for row, place in zip(fresh, places, strict=True)
        if isinstance(place, Place)
    ]


def trained(rows: Sequence[Row], examined: Set) -> tuple[Classifier, int, int]:
    """A champion of these photos' training split, and how many of the held-out ones it has right, of how many."""
    from ssclass.model.training import train

    learn = [row for row in rows if row.split != HOLDOUT]
    held = [row for row in rows if row.split == HOLDOUT]
    features = examined.features.take(row.sha256 for row in learn)
    labels, groups = label_index(learn, CLASSES), [row.group for row in learn]
    champion = train(features, labels, groups, examined.spec, PARAMS).classifier
    answers = champion.predict(lambda spec: examined.features.take(row.sha256 for row in held))
    right = predicted(answers, champion.classes, CLASSES) == label_index(held, CLASSES)
    return champion, int(right.sum()), len(held)


def chances(seed: int, examined: Set, folder: Path) -> dict[str, float]:
    """p of the flipped third delivery and of the good one, under a champion of the first two."""
    places = {batch: place for _, batch, place in deliveries(examined.found, folder, seed)}
    rows: list[Row] = []
    for batch in ("day-1", "day-2"):
        rows += rows_in(places[batch], examined, rows)
    champion, right, n = trained(rows, examined)

    def p(batch: str) -> float:
        came = rows_in(places[batch], examined, rows)
        features = examined.features.take(row.sha256 for row in came)
        return float(plausibility(champion, lambda spec: features, came, CLASSES, right, n)["p"])

    return {"flipped": p("day-3-flipped"), "good": p("day-3")}


def test_flipped_labels_are_held_for_every_seed_and_good_ones_hardly_ever(examined: Set, tmp_path: Path):
    def dealt() -> Iterator[dict[str, float]]:
        for seed in range(SEEDS):
            (tmp_path / str(seed)).mkdir()
            yield chances(seed, examined, tmp_path / str(seed))

    p = list(dealt())
    held = [each["flipped"] < PARAMS.ingest.implausible for each in p]
    let_in = [each["good"] >= PARAMS.ingest.implausible for each in p]
    print(
        f"flipped HELD {sum(held)} of {SEEDS} (largest p {max(each['flipped'] for each in p):.1e}); "
        f"good let in {sum(let_in)} of {SEEDS} (smallest p {min(each['good'] for each in p):.1e})"
    )
    assert all(held)
    assert sum(let_in) >= SEEDS - 1
