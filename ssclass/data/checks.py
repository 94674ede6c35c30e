"""What a person should know of a batch before it joins, from its rows and the data set's. Pure.

Each warning has a code. `ingest.hold` in params.yaml lists the codes that hold the batch until somebody answers;
the others are told and the batch goes on. docs/formats.md has the table. The ledger keeps the details for ever, so that
none of them says which photo it is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ssclass.data.dataset import Dataset, correct
from ssclass.data.nearness import Nearness
from ssclass.data.shards import Row, Warned
from ssclass.data.split import CROWD, HOLDOUT
from ssclass.distributions import beta_binomial, beta_binomial_moments, binomial_at_least, homogeneous
from ssclass.params import Params

FEW = 5  # near-copies, or corrections, below which nothing is said
FEW_HELD_OUT = 2  # corrections of held-out photos, of which there are fewer, and each of which is a vote
BY_CHANCE = 1e-3  # a class balance, or a share of copies, that is likelier than this is no news, however it looks
USUAL = 3  # batches that there must have been before one can be of unusual size
ONE_GROUP = 0.25  # share of the held-out photos, or of a first batch's twice, that no one dish should have
SHORTFALL = 0.05  # of the photos of several batches that champions had wrong beyond what is usual
MORE_GROUPED = 0.3  # share of a batch's photos that must be near-copies beyond what is usual


def warnings(
    rows: Sequence[Row], relabel: Mapping[str, str], remove: Sequence[str], dataset: Dataset, params: Params
) -> Iterator[Warned]:
    """Warnings about a batch: the rows that it would add, the corrections that apply, the data set before it."""
    at = params.ingest
    yield from _corrections(relabel, remove, dataset, at.corrections)
    if not rows:
        return
    there = dict(dataset.by_sha256)
    correct(there, relabel, remove)
    if absent := [name for name in params.dataset.classes if name not in {row.label for row in rows}]:
        yield Warned("class missing", f"no photo of {', '.join(absent)}")
    differing: set[str] = set()
    for group, size in Counter(row.group for row in rows).items():
        if size > max(FEW, at.flood * len(rows)):
            yield Warned("flood", f"{size} of {len(rows)} photos are near-copies of one")
        labels = sorted({row.label for row in rows if row.group == group}) if size > 1 else []
        if len(labels) > 1:
            said = f"{size} near-copies are labelled {' and '.join(labels)}"
            yield Warned("copies differ in label", said)
            differing.add(group)
    yield from _contradictions(rows, list(there.values()), params.dataset.near_duplicate_bits, differing)
    yield from _held_out_groups(rows, list(there.values()))
    if moved := _grouped(rows, [shard.rows for shard in dataset.shards]):
        yield moved
    if moved := _balance(Counter(row.label for row in rows), Counter(row.label for row in dataset.rows), at.balance):
        yield moved
    if moved := _size(len(rows), [len(shard.rows) for shard in dataset.shards if shard.rows], at.growth):
        yield moved


def _corrections(relabel: Mapping[str, str], remove: Sequence[str], dataset: Dataset, limit: float) -> Iterator[Warned]:
    """Corrections of more than the share `limit` of the data set, or of its held-out photos, which are the ruler."""
    held_out = {row.sha256 for row in dataset.rows if row.split == HOLDOUT}
    for which, few, of in (("", FEW, len(dataset.rows)), ("held-out ", FEW_HELD_OUT, len(held_out))):
        renamed = sum(not which or sha256 in held_out for sha256 in relabel)
        removed = sum(not which or sha256 in held_out for sha256 in remove)
        if renamed + removed > max(few, limit * of):
            yield Warned("many corrections", f"{renamed} relabelled and {removed} removed of {of} {which}photos")


def _contradictions(rows: Sequence[Row], there: Sequence[Row], bits: int, known: Collection[str]) -> Iterator[Warned]:
    """New photos that are near-copies of photos of the data set, all of which have another label.

    A few of them, in groups of which that was said already (`known`), are not said again.
    """
    index = Nearness([*there, *rows], bits, len(there))
    found = []
    for place, row in enumerate(rows, len(there)):
        copies = [there[j] for j in index.near(place) if j < len(there)]
        if copies and row.label not in {copy.label for copy in copies}:
            found.append((row, copies[0]))
    if len(found) > FEW or any(row.group not in known for row, _ in found):
        row, copy = found[0]
        many = len(found) > FEW
        first = f"{row.label}, of one that is {copy.label}"
        said = f"{len(found)} near-copies of photos of the data set have another label (one: {first})"
        yield Warned("copies contradict" if many else "copies differ in label", said)


def _held_out_groups(rows: Sequence[Row], there: Sequence[Row]) -> Iterator[Warned]:
    """Groups that this batch adds to and that would be a large part of the held-out photos: one dish, many votes."""
    held_out = Counter(row.group for row in (*there, *rows) if row.split == HOLDOUT)
    for group in dict.fromkeys(row.group for row in rows if row.split == HOLDOUT):
        size, n = held_out[group], held_out.total()
        if n >= CROWD and size > ONE_GROUP * n:
            said = f"{size} of {n} held-out photos would be near-copies of one"
            yield Warned("one group held out", said)


def _grouped(rows: Sequence[Row], before: Sequence[Sequence[Row]]) -> Warned | None:
    """A batch whose photos are near-copies of each other far more often than in the batches before it.

    Compared is the share of photos that share their group with another of their batch. Where nothing came before, one
    group of more than half of the batch (and of CROWD photos) is too many.
    """

    def grouped(batch: Sequence[Row]) -> int:
        return sum(size for size in Counter(row.group for row in batch).values() if size > 1)

    known = [batch for batch in before if batch]
    largest = max(Counter(row.group for row in rows).values())
    if not known:
        if largest >= CROWD and largest > 2 * ONE_GROUP * len(rows):
            return Warned("unlike groups", f"{largest} of {len(rows)} photos are taken for near-copies of one another")
        return None
    n, usual = sum(map(len, known)), sum(map(grouped, known))
    now, rate = grouped(rows), (usual + 1) / (n + 2)  # Laplace's rule of succession
    if (
        now / len(rows) <= usual / n + MORE_GROUPED
        or largest < FEW
        or binomial_at_least(now, len(rows), rate) > BY_CHANCE
    ):
        return None
    said = f"{now} of {len(rows)} photos are taken for near-copies of one another, where {usual} of {n} were so far"
    return Warned("unlike groups", said)


@dataclass(frozen=True)
class Running:
    """Champions' score on the last `batches` batches together: `right` of `n`, `expected` by their records."""

    batches: int
    right: int
    n: int
    expected: float
    p: float


def running_score(tests: Sequence[Mapping[str, Any]]) -> Running | None:
    """The window of newest batches on which champions were right least plausibly; None where there is none.

    `tests`: champion tests in the order of the batches (docs/formats.md: `key`, `right`, `n`, `champion_right`,
    `champion_n`), the newest last. A batch with a few wrong labels is plausible, sixty of them are not. Windows are the
    last 2, 4, 8, … batches; `p` is the chance of so few right in the worst of them, times the number of windows
    (Bonferroni). What a champion gets right of a window is beta-binomial, as in `build.implausible`; the sum over
    several champions is taken for beta-binomial, too, with the mean and the variance that it has.
    """
    known = [test for test in tests if test["n"]]
    sizes = [2**power for power in range(1, 20) if 2**power < len(known)] + [len(known)] * (len(known) > 1)
    found = [_window(known[-size:]) for size in sizes]
    if not found:
        return None
    worst = min(found, key=lambda window: window.p)
    return replace(worst, p=min(1.0, worst.p * len(found)))


def _window(tests: Sequence[Mapping[str, Any]]) -> Running:
    right = sum(test["right"] for test in tests)
    n: Counter[tuple[str, int, int]] = Counter()  # champion and record → photos: its errors are common to its batches
    for test in tests:
        n[test["key"], test["champion_right"], test["champion_n"]] += test["n"]
    stats = [beta_binomial_moments(of, hits + 0.5, total - hits + 0.5) for (_, hits, total), of in n.items()]
    expected, variance = (sum(each) for each in zip(*stats, strict=True))
    count, rate = n.total(), expected / n.total()
    # One beta-binomial with this mean and variance: n r (1 - r) (1 + (n - 1) c), where c is 1 / (a + b + 1).
    common = (variance / (count * rate * (1 - rate)) - 1) / (count - 1)
    strength = 1 / max(common, 1e-9) - 1
    p = beta_binomial(right, count, rate * strength, (1 - rate) * strength)
    return Running(len(tests), right, count, expected, p)


def drip(tests: Sequence[Mapping[str, Any]], params: Params) -> Warned | None:
    """A warning of batches each a little worse than their champions: `running_score` below `ingest.implausible`.

    A champion's record flatters it a little, as it was chosen by it, so that over many photos any shortfall would be
    significant; it must be more than SHORTFALL of the photos, too.
    """
    score = running_score(tests)
    if score is None or score.p >= params.ingest.implausible or score.expected - score.right <= SHORTFALL * score.n:
        return None
    said = (
        f"champions had {score.right} right of the {score.n} photos of the last {score.batches} batches before they "
        f"learnt from them, where {score.expected:.0f} would be usual (p = {score.p:.1e}); look for wrong labels in "
        "these batches (`ssclass batch list`), or admit this one if the world has changed"
    )
    return Warned("running score", said)


def _balance(new: Counter[str], old: Counter[str], limit: float) -> Warned | None:
    """Total variation distance of the class shares above `limit`, and not by chance (chi-squared, homogeneity)."""
    names = sorted(set(new) | set(old))
    if not old or len(names) < 2:
        return None
    shares = [(new[name] / new.total(), old[name] / old.total()) for name in names]
    distance = sum(abs(a - b) for a, b in shares) / 2
    if distance <= limit or homogeneous([[of[name] for name in names] for of in (new, old)]) > BY_CHANCE:
        return None
    said = ", ".join(f"{name} {a:.0%} (before {b:.0%})" for name, (a, b) in zip(names, shares, strict=True))
    return Warned("unlike balance", said)


def _size(new: int, old: list[int], limit: float) -> Warned | None:
    if len(old) < USUAL or 1 / limit <= new / median(old) <= limit:
        return None
    return Warned("unlike size", f"{new} photos, where batches had {median(old):g} so far (median)")
