"""What a person should know of a batch before it joins, from its rows and the data set's. Pure.

Each warning has a code. `ingest.hold` in params.yaml lists the codes that hold the batch until somebody answers;
the others are told and the batch goes on. docs/formats.md has the table. The ledger keeps the details for ever, so that
none of them says which photo it is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from ssclass.data.dataset import Dataset
from ssclass.data.shards import Row, Warned
from ssclass.params import Params

FEW = 5  # near-copies, or corrections, below which nothing is said
BY_CHANCE = 1e-3  # a class balance that is likelier than this is no news, however different it looks
USUAL = 3  # batches that there must have been before one can be of unusual size


def warnings(
    rows: Sequence[Row], relabel: Mapping[str, str], remove: Sequence[str], dataset: Dataset, params: Params
) -> Iterator[Warned]:
    """Warnings about a batch: the rows that it would add, the corrections that apply, the data set before it."""
    at = params.ingest
    corrected, before = len(relabel) + len(remove), len(dataset.rows)
    if corrected > max(FEW, at.corrections * before):
        yield Warned("many corrections", f"{len(relabel)} relabelled and {len(remove)} removed of {before} photos")
    if not rows:
        return
    if absent := [name for name in params.dataset.classes if name not in {row.label for row in rows}]:
        yield Warned("class missing", f"no photo of {', '.join(absent)}")
    for group, size in Counter(row.group for row in rows).items():
        if size > max(FEW, at.flood * len(rows)):
            yield Warned("flood", f"{size} of {len(rows)} photos are near-copies of one")
        labels = sorted({row.label for row in rows if row.group == group}) if size > 1 else []
        if len(labels) > 1:
            said = f"{size} near-copies are labelled {' and '.join(labels)}"
            yield Warned("copies differ in label", said)
    if moved := _balance(Counter(row.label for row in rows), Counter(row.label for row in dataset.rows), at.balance):
        yield moved
    if moved := _size(len(rows), [len(shard.rows) for shard in dataset.shards if shard.rows], at.growth):
        yield moved


def _balance(new: Counter[str], old: Counter[str], limit: float) -> Warned | None:
    """Total variation distance of the class shares above `limit`, and not by chance (chi-squared, homogeneity)."""
    from scipy.stats import chi2_contingency

    names = sorted(set(new) | set(old))
    if not old or len(names) < 2:
        return None
    shares = [(new[name] / new.total(), old[name] / old.total()) for name in names]
    distance = sum(abs(a - b) for a, b in shares) / 2
    if distance <= limit or chi2_contingency([[new[name] for name in names], [old[name] for name in names]])[1] > (
        BY_CHANCE
    ):
        return None
    said = ", ".join(f"{name} {a:.0%} (before {b:.0%})" for name, (a, b) in zip(names, shares, strict=True))
    return Warned("unlike balance", said)


def _size(new: int, old: list[int], limit: float) -> Warned | None:
    if len(old) < USUAL or 1 / limit <= new / median(old) <= limit:
        return None
    return Warned("unlike size", f"{new} photos, where batches had {median(old):g} so far (median)")
