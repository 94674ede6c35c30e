"""Labels that a choice of photos saves: `python -m benchmarks wanted DIR [SEEDS]`, 10 seeds unless told otherwise.

DIR holds class folders. Features are computed once. For each seed 200 photos are held back, 40 others, drawn at
random, are labelled; then 20 at a time are chosen, labelled and learnt from, by the head `linear`, until 320 are.
Printed: a line a way to choose with the mean accuracy on the photos held back, and how many labels it needs for the
accuracy that random choice has with 300. Then the same where a fifth of the photos lies there ten times, as a burst of
one dish does: copies that differ by a little noise, one of which is worth a label.

On the study's 741 photos: docs/serving.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy import Labelled, grouped
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.spec import feature_spec
from ssclass.model.training import train
from ssclass.params import FeatureParams, ModelParams, Params
from ssclass.serving.ranking import doubt, embedded, ranked

HELD_BACK, FIRST, STEP, LAST, BESIDE = 200, 40, 20, 320, 300
BURST, NOISE = 10, 0.05

Way = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], Sequence[int]]
"""(chance, probabilities of the pool, its vectors, vectors of what is labelled) → rows of the pool, chosen."""


def at_random(chance: np.random.Generator, odds: np.ndarray, pool: np.ndarray, known: np.ndarray) -> Sequence[int]:
    """Any photos."""
    return list(chance.permutation(len(odds))[:STEP])


def doubtful(chance: np.random.Generator, odds: np.ndarray, pool: np.ndarray, known: np.ndarray) -> Sequence[int]:
    """The most doubtful ones, whatever they are like."""
    return list(np.argsort(-doubt(odds), kind="stable")[:STEP])


def spread(chance: np.random.Generator, odds: np.ndarray, pool: np.ndarray, known: np.ndarray) -> Sequence[int]:
    """The most unlike ones, whatever is said of them (k-center, Sener & Savarese 2018)."""
    return ranked(np.ones(len(odds)), pool, known, STEP)


def ours(chance: np.random.Generator, odds: np.ndarray, pool: np.ndarray, known: np.ndarray) -> Sequence[int]:
    """What `ssclass wanted` names."""
    return ranked(doubt(odds), pool, known, STEP)


WAYS: dict[str, Way] = {"random": at_random, "doubt alone": doubtful, "unlike alone": spread, "ssclass wanted": ours}


def main(folder: Path, seeds: int = 10) -> None:
    """Measure every way, with and without bursts."""
    read = Labelled.of(folder)
    params = read.params.model_copy(update={"model": ModelParams(head="linear")})
    spec = feature_spec(FeatureParams())
    features, labels = Features(*extract(spec, read.photos, make_extractor(spec))), read.labels
    groups = np.array(grouped(read.pictures, params))
    for title, copies in (("as they are", 1), (f"a fifth of them {BURST} times", BURST)):
        means = {name: np.mean([curve(way, seed, features, labels, groups, params, copies) for seed in range(seeds)], 0)
                 for name, way in WAYS.items()}  # fmt: skip
        target = means["random"][(BESIDE - FIRST) // STEP]
        print(f"{len(labels)} photos {title}, {seeds} seeds; random choice of {BESIDE}: {target:.4f}")
        for name, mean in means.items():
            reached = np.flatnonzero(mean >= target)
            needed = FIRST + STEP * int(reached[0]) if len(reached) else f"more than {LAST}"
            steps = "  ".join(f"{FIRST + STEP * at}: {mean[at]:.3f}" for at in range(0, len(mean), 3))
            print(f"{name:16} {needed} labels; {steps}", flush=True)


def curve(
    way: Way, seed: int, features: Features, labels: np.ndarray, groups: np.ndarray, params: Params, copies: int
) -> list[float]:
    """Accuracies on the photos held back after each step of labelling."""
    chance = np.random.default_rng(seed)
    judge: list[int] = []
    for group in chance.permutation(np.unique(groups)):
        judge += list(np.flatnonzero(groups == group)) if len(judge) < HELD_BACK else []
    rest = np.setdiff1d(np.arange(len(labels)), judge)
    features, labels, groups, rest = with_bursts(chance, features, labels, groups, rest, copies)
    vectors = embedded(features.arrays[mean_of(features)].reshape(len(labels), -1))
    spec = feature_spec(FeatureParams())
    known, accuracies = chance.permutation(rest)[:FIRST], []
    while True:
        given = features.rows(known), labels[known], [str(groups[row]) for row in known]
        member = train(*given, spec, params).classifier.members[0]
        accuracies.append(float((member.predict(features.rows(judge)).argmax(1) == labels[judge]).mean()))
        if len(known) >= LAST:
            return accuracies
        pool = np.setdiff1d(rest, known)
        chosen = way(chance, member.predict(features.rows(pool)), vectors[pool], vectors[known])
        known = np.r_[known, pool[list(chosen)]]


def mean_of(features: Features) -> str:
    """The name of the array of means."""
    return next(name for name in features.arrays if name.endswith(".out.mean"))


def with_bursts(
    chance: np.random.Generator,
    features: Features,
    labels: np.ndarray,
    groups: np.ndarray,
    rest: np.ndarray,
    copies: int,
) -> tuple[Features, np.ndarray, np.ndarray, np.ndarray]:
    """The same with so many near-copies of a fifth of the photos that may be chosen."""
    if copies == 1:
        return features, labels, groups, rest
    again = np.repeat(chance.permutation(rest)[: len(rest) // 5], copies - 1)
    arrays = {}
    for name, array in features.arrays.items():
        noise = chance.normal(1, NOISE, array[again].shape).astype(np.float32)
        arrays[name] = np.concatenate([array, array[again] * noise])
    names = (*features.sha256s, *(f"copy {number}" for number in range(len(again))))
    more = np.arange(len(labels), len(labels) + len(again))
    joined = Features(names, arrays), np.r_[labels, labels[again]], np.r_[groups, groups[again]]
    return *joined, np.r_[rest, more]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
