"""How the loop is doing, from what the ledger and the rows of the data set say. Pure: nothing is read or written here.

Two questions are asked of every batch. Does the champion do on it, before it learns from it, as its record says? And is
it like the batches before it, in its labels and in its colours? A threshold is not a number that somebody chose: a
batch is held against batches drawn from the data set's own past, whole groups of near-copies at a time, and is told of
where fewer than `ALARM` of those are as far away, and none of the batches that its source sent lately was: where each
is of one class, say, that is no news. `python -m benchmarks health DIR` measures false alarms and delays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.checks import SHORTFALL, running_score
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Row, Shard
from ssclass.distributions import beta_binomial
from ssclass.retrain.calibration import RECENT, Calibration, calibrations, tests_by_source
from ssclass.retrain.statistics import Interval, clopper_pearson
from ssclass.workspace.ledger import Event, State

ALARM = 1e-3
"""How rare a batch must be among its like. With a batch a day, each of three alarms is false once in three years."""
DRAWS = 2000  # of batches from the past
FEW = 20  # photos below which a batch, or the past, says nothing
USUAL = 20  # batches of a source that one must be further away than
PAST = 2000  # photos, the newest, that a batch is held against
PALETTE = 512  # bytes of a photo's colours


@dataclass(frozen=True)
class Running:
    """The champions' score on the last batches of a source, before they learnt from them.

    `right` of `n` photos in `batches` batches; `expected` by the champions' records; `p`: the chance of so few.
    """

    batches: int
    right: int
    n: int
    expected: float
    p: float

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.right / self.n

    @property
    def interval(self) -> Interval:
        """The exact 95 % interval of that share."""
        return clopper_pearson(self.right, self.n)

    @property
    def alarming(self) -> bool:
        """Whether so few are implausible, and by more than a record may flatter."""
        return self.p < ALARM and self.expected - self.right > SHORTFALL * self.n

    def told(self, source: str) -> str:
        """The alarm in words."""
        return (
            f"champions had {self.right} of {self.n} photos of the last {self.batches} batches of source {source} "
            f"right before they learnt from them, where {self.expected:.0f} would be usual (p = {self.p:.1g})"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "accuracy": self.accuracy, "low": self.interval.low, "high": self.interval.high}


def running(state: State) -> dict[str, Running]:
    """Source → the champions' running accuracy on its last `RECENT` batches that they were asked about."""
    return {source: _running(of[-RECENT:]) for source, of in tests_by_source(state).items()}


def _running(tests: Sequence[Mapping[str, Any]]) -> Running:
    right, n = sum(test["right"] for test in tests), sum(test["n"] for test in tests)
    rates = [(test["champion_right"] + 0.5) / (test["champion_n"] + 1) for test in tests]
    expected = sum(test["n"] * rate for test, rate in zip(tests, rates, strict=True))
    worst = running_score(tests)
    if worst is not None:
        return Running(len(tests), right, n, expected, worst.p)
    test = tests[0]
    a, b = test["champion_right"] + 0.5, test["champion_n"] - test["champion_right"] + 0.5
    return Running(1, right, n, expected, beta_binomial(right, n, a, b))


@dataclass(frozen=True)
class Drift:
    """How far a batch is from the data set before it, and the share of batches from the past that are as far.

    `labels`: total variation distance of the class shares, 0 to 1. `colours`: distance of the mean palettes, 0 to 1.4.
    `usual_labels` and `usual_colours`: the largest that the last batches of its source had.
    """

    batch: str
    source: str
    labels: float
    labels_p: float
    colours: float
    colours_p: float
    usual_labels: float = 0.0
    usual_colours: float = 0.0

    @property
    def alarms(self) -> list[str]:
        """What is unlike the past, in words."""
        told = []
        if self.labels_p < ALARM and self.labels > self.usual_labels:
            told.append(f"its labels are unlike those before it (distance {self.labels:.2f}, p = {self.labels_p:.1g})")
        if self.colours_p < ALARM and self.colours > self.usual_colours:
            apart = f"distance {self.colours:.2f}, p = {self.colours_p:.1g}"
            told.append(f"its colours are unlike those before it ({apart})")
        return told

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "alarms": self.alarms}


def drift(dataset: Dataset, batch: str | None = None) -> Drift | None:
    """How unlike a batch of the data set (the newest unless one is named) is to what its source sent before it.

    Where that source sent less than `FEW` photos before, it is held against all photos before it. None where the batch
    or the past is too small to say.
    """
    shards = list(dataset.shards)
    place = next((at for at in reversed(range(len(shards))) if batch in (None, shards[at].batch_id)), None)
    if place is None:
        return None
    new = shards[place]
    now, past = _rows(dataset, [new]), _past(dataset, shards[:place], new.receipt.source)
    if min(len(now), len(past)) < FEW:
        return None
    lately = [at for at in range(place) if shards[at].receipt.source == new.receipt.source][-USUAL:]
    usual = [
        _apart(rows, _past(dataset, shards[:at], new.receipt.source))
        for at in lately
        if 2 * len(rows := _rows(dataset, [shards[at]])) >= len(now)  # the mean of a few is far away by chance
    ]
    labels, colours = (max((each[side] for each in usual), default=0.0) for side in (0, 1))
    return Drift(new.batch_id, new.receipt.source, *_remembered(tuple(now), tuple(past)), labels, colours)


def _rows(dataset: Dataset, shards: Sequence[Shard]) -> list[Row]:
    """The rows that count of the newest shards, up to some `PAST` photos, with their labels as they are now."""
    found: list[Row] = []
    for shard in reversed(shards):
        if len(found) >= PAST:
            break
        found += [dataset.by_sha256[row.sha256] for row in shard.rows if row.sha256 in dataset.by_sha256]
    return found


def _past(dataset: Dataset, before: Sequence[Shard], source: str) -> list[Row]:
    own = _rows(dataset, [shard for shard in before if shard.receipt.source == source])
    return own if len(own) >= FEW else _rows(dataset, before)


def _apart(now: Sequence[Row], past: Sequence[Row]) -> tuple[float, float]:
    """The distances of `compared`; 0 where there are too few photos to say."""
    if min(len(now), len(past)) < FEW:
        return 0.0, 0.0
    vectors, names = _vectors([*now, *past])
    size = np.array([len(now)])
    labels, colours = _distances(vectors[: len(now)].sum(0)[None], size, vectors.sum(0), len(vectors), names)[0]
    return float(labels), float(colours)


def _vectors(rows: Sequence[Row]) -> tuple[NDArray[np.float32], int]:
    """A row a photo: which label it has, and its colours at length 1; and the number of labels, which come first."""
    names = sorted({row.label for row in rows})
    vectors = np.zeros((len(rows), len(names) + PALETTE), np.float32)
    for at, row in enumerate(rows):
        vectors[at, names.index(row.label)] = 1
        colours = np.frombuffer(row.palette, np.uint8).astype(np.float32)
        length = float(np.linalg.norm(colours))
        vectors[at, len(names) : len(names) + len(colours)] = colours / length if length else 0
    return vectors, len(names)


def compared(now: Sequence[Row], past: Sequence[Row], seed: int = 0) -> tuple[float, float, float, float]:
    """(labels, p, colours, p): distances of a batch from the past, and how many drawn batches are as far. See `Drift`.

    A drawn batch takes whole groups of near-copies of both together, at random, until it has as many photos: were the
    batch like the past, it would be one of these. A p is at least 1 / (DRAWS + 1) and, of one tail, slightly too large.
    """
    rows = [*now, *past]
    vectors, names = _vectors(rows)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in rows))}
    group_of = np.array([numbers[row.group] for row in rows])
    sums = np.zeros((len(numbers), vectors.shape[1]), np.float32)
    np.add.at(sums, group_of, vectors)
    sizes = np.bincount(group_of)
    total = sums.sum(axis=0)
    chance = np.random.default_rng(seed)
    found = _distances(vectors[: len(now)].sum(axis=0)[None], np.array([len(now)]), total, len(rows), names)
    as_far = np.zeros(2, int)
    for _ in range(DRAWS // 100):
        orders = np.argsort(chance.random((100, len(numbers)), np.float32), axis=1)
        taken = np.cumsum(sizes[orders], axis=1) - sizes[orders] < len(now)
        chosen = np.zeros((100, len(numbers)), np.float32)
        np.put_along_axis(chosen, orders, taken.astype(np.float32), axis=1)
        drawn = _distances(chosen @ sums, chosen @ sizes, total, len(rows), names)
        as_far += (drawn >= found - 1e-6).sum(axis=0)
    p = (as_far + 1) / (DRAWS + 1)
    return float(found[0, 0]), float(p[0]), float(found[0, 1]), float(p[1])


@lru_cache(2)  # a retrain asks twice of each batch: when it is taken in, and at its end
def _remembered(now: tuple[Row, ...], past: tuple[Row, ...]) -> tuple[float, float, float, float]:
    return compared(now, past)


def _distances(
    sums: NDArray[np.float32], sizes: NDArray[Any], total: NDArray[np.float32], n: int, labels: int
) -> NDArray[np.float64]:
    """Distances of the means of batches [k, d], of so many rows each, from those of the rest; float64 [k, 2]."""
    rest = np.maximum(n - sizes, 1)[:, None]
    apart = sums / np.maximum(sizes, 1)[:, None] - (total - sums) / rest
    return np.stack([np.abs(apart[:, :labels]).sum(axis=1) / 2, np.linalg.norm(apart[:, labels:], axis=1)], axis=1)


@dataclass(frozen=True)
class Health:
    """The loop at a moment. Ages are in days, None where there is nothing of the kind yet."""

    champion_days: float | None
    decision_days: float | None
    batch_days: float | None
    held: int
    running: dict[str, Running]
    drift: Drift | None
    calibration: dict[str, Calibration] = field(default_factory=dict)

    @property
    def alarms(self) -> list[str]:
        """What a person should look at, in words."""
        told = [each.told(source) for source, each in self.running.items() if each.alarming]
        if self.drift is not None:
            told += [f"batch {self.drift.batch}: {alarm}" for alarm in self.drift.alarms]
        return told

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        told = {**vars(self), "running": {source: each.as_dict() for source, each in self.running.items()}}
        told["calibration"] = {source: vars(each) for source, each in self.calibration.items()}
        return told | {"drift": self.drift and self.drift.as_dict(), "alarms": self.alarms}


def health(state: State, dataset: Dataset, now: datetime | None = None, batch: str | None = None) -> Health:
    """What the ledger and the data set say of the loop; of drift, that of a batch, by default the newest."""
    at = now or datetime.now(UTC)

    def days(event: Event | None) -> float | None:
        if event is None:
            return None
        return max(0.0, (at - datetime.fromisoformat(event.at)).total_seconds() / 86400)

    champion = state.decisions[state.champion] if state.champion else None
    return Health(
        days(champion),
        days(next(reversed(state.decisions.values()), None)),
        days(next(reversed(state.ingested.values()), None)),
        len(state.held),
        running(state),
        drift(dataset, batch),
        calibrations(state),
    )


def told_by(state: State, dataset: Dataset, batch: str) -> list[str]:
    """The alarms that a batch which was taken in last brought, in words: that it is unlike, or the last straw."""
    now = health(state, dataset)
    told = [f"batch {batch}: {alarm}" for alarm in (now.drift.alarms if now.drift and now.drift.batch == batch else ())]
    before = State(
        **{**vars(state), "ingested": {name: each for name, each in state.ingested.items() if name != batch}}
    )
    known = {source for source, each in running(before).items() if each.alarming}
    return told + [each.told(source) for source, each in now.running.items() if each.alarming and source not in known]
