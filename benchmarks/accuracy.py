"""Accuracy of the shipped params on class folders: `python -m benchmarks.accuracy DIR [SEEDS [SPLITS]]`; else 3 and 0.

Decodes, extracts features (photos a second), then, as many times as asked for,

- repeats the grouped cross-validation with other folds: every head, which one `auto` takes, and that one against
  `linear` on plain features (whole photos, 224 pixels) on the same folds, by exact McNemar;
- holds 160 photos back, trains on the others as a retrain does, and counts how many of the 160 are right.

On the 741 photos of the study's kind: bilinear 0.957 to 0.965, linear on plain features 0.91 (docs/models.md).
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssclass.data.images import Picture, Refused, inspect
from ssclass.data.split import Place, assign
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.model.training import plan, train
from ssclass.params import FeatureParams, ModelParams, Params, load_params
from ssclass.retrain.statistics import mcnemar_exact
from ssclass.workspace.create import template_file

HELD_BACK = 160  # as many as the study's


@dataclass
class Labelled:
    """The photos of class folders: (sha256, bytes) and what was seen of each, labels int [n], and what was refused.

    `params`: the shipped ones, with these classes.
    """

    params: Params
    photos: list[tuple[str, bytes]]
    pictures: list[Picture]
    labels: np.ndarray
    refused: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.params.dataset.classes

    @classmethod
    def of(cls, folder: Path) -> Labelled:
        """Read and inspect every file of the class folders."""
        shipped = load_params(template_file("params.yaml"))
        classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        params = Params.model_validate(shipped.model_dump() | {"dataset": {"classes": classes}})
        photos, pictures, labels, refused = [], [], [], []
        for label, name in enumerate(classes):
            for path in sorted((folder / name).iterdir()):
                data = path.read_bytes()
                try:
                    pictures.append(inspect(data, params.ingest))
                except Refused as why:
                    refused.append(f"{path}: {why}")
                    continue
                photos.append((hashlib.sha256(data).hexdigest(), data))
                labels.append(label)
        return cls(params, photos, pictures, np.array(labels), refused)


def main(folder: Path, seeds: int = 3, splits: int = 0) -> None:
    """Print one line a measurement."""
    read = Labelled.of(folder)
    params, classes, photos, labels = read.params, read.classes, read.photos, read.labels
    for line in read.refused:
        print(line)
    groups = grouped(read.pictures, params)

    ((spec, _),) = plan(params)
    features = measured("shipped", spec, photos)
    plain_spec = feature_spec(FeatureParams())
    plain = measured("plain", plain_spec, photos)
    linear = params.model_copy(update={"model": ModelParams(head="linear")})

    scores = np.zeros((2, *labels.shape, len(classes)))
    for seed in range(seeds):
        start = time.perf_counter()
        found = train(features, labels, groups, spec, seeded(params, seed))
        seconds = time.perf_counter() - start
        beside = train(plain, labels, groups, plain_spec, seeded(linear, seed)).cv["linear"]
        heads = ", ".join(f"{name} {each.mean:.4f} ± {each.sd:.4f}" for name, each in found.cv.items())
        pair = found.cv[found.head].probabilities, beside.probabilities
        print(f"seed {seed}: {heads}; {found.head} chosen, {seconds:.1f} s; {against(*pair, labels)}", flush=True)
        scores += pair
    if seeds:
        print(f"mean over the seeds: {against(*scores, labels)}")

    for seed in range(splits):
        judge = held_back(groups, seed)
        learn = np.setdiff1d(np.arange(len(labels)), judge)
        start = time.perf_counter()
        given = features.rows(learn), labels[learn], [groups[row] for row in learn]
        trained = train(*given, spec, seeded(params, seed))
        seconds = time.perf_counter() - start
        answers = trained.classifier.members[0].predict(features.rows(judge))
        right = int((answers.argmax(axis=1) == labels[judge]).sum())
        about = f"{trained.head} on {len(learn)} photos, {seconds:.1f} s"
        print(f"split {seed}: {right} of {len(judge)} right, {about}", flush=True)


def measured(name: str, spec: FeatureSpec, photos: Sequence[tuple[str, bytes]]) -> Features:
    """Features of photos; prints how fast they were made."""
    extractor = make_extractor(spec)
    extractor(np.zeros((1, spec.size, spec.size, 3), np.uint8))  # traced before the clock starts
    start = time.perf_counter()
    features = Features(*extract(spec, photos, extractor))
    speed = len(photos) / (time.perf_counter() - start)
    print(f"{name} features: {speed:.1f} photos/s, {spec.views} view(s) of {max(spec.sizes)} pixels", flush=True)
    return features


def grouped(pictures: Sequence[Picture], params: Params) -> list[str]:
    """Near-duplicate group of each photo, as at ingest."""
    dataset = params.dataset
    places = assign(pictures, [None] * len(pictures), [], dataset.holdout_fraction, dataset.near_duplicate_bits)
    return [place.group for place in places if isinstance(place, Place)]


def held_back(groups: Sequence[str], seed: int) -> np.ndarray:
    """Row numbers of `HELD_BACK` photos, whole groups, drawn by `seed`."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(members)):
        group = list(members.values())[number]
        rows += group if len(rows) + len(group) <= HELD_BACK else []
    return np.sort(rows)


def seeded(params: Params, seed: int) -> Params:
    """The same with other folds."""
    return params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})


def against(one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> str:
    """Two vectors of out-of-fold answers side by side."""
    right = one.argmax(axis=1) == labels, other.argmax(axis=1) == labels
    wins, losses = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    return (
        f"{right[0].mean():.4f} against {right[1].mean():.4f} of linear on plain features, "
        f"{wins} to {losses}, p = {mcnemar_exact(wins, losses):.1e}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
