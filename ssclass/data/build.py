"""A batch → a shard: download, check, find copies, split, write; and the test for batches that cannot be right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from json import dumps
from pathlib import Path

from ssclass.data.batches import UNKNOWN, Batch, Progress
from ssclass.data.checks import warnings
from ssclass.data.dataset import Dataset, correct, count
from ssclass.data.fetch import DENIED, Denied, Fetching, Known, Outcome, Taken, check_access, keep, no_class
from ssclass.data.shards import Receipt, Refusal, Row, Warned, write_shard
from ssclass.data.split import Place, Torn, assign
from ssclass.distributions import beta_binomial
from ssclass.errors import ObjectError
from ssclass.params import Params
from ssclass.spread import elsewhere, spread
from ssclass.store import FORBIDDEN, Store

QUARANTINE = "quarantine"
THREADS = 8  # each holds the bytes of one photo, at most ingest.max_bytes; what unpacks it is ssclass.data.decoders
TOGETHER = 8  # photos that travel at once where other machines fetch them
ENDLESS = "end missing"
"""Code of the warning about photos without their last bytes."""


def build_shard(
    store: Store,
    batch: Batch,
    params: Params,
    dataset: Dataset,
    scratch: Path,
    out: Path,
    progress: Progress | None = None,
    sequence: int | None = None,
) -> Receipt:
    """Write the shard of a batch to `out`, beside nothing else; what was refused and why is in the receipt.

    `sequence` is the number of the data version that it makes; default: one more than the data set's last shard.

    `scratch` is an empty folder for the photos on their way (the size of the batch). Memory does not grow with the
    batch. StoreError when S3 fails; a photo never fails the batch, nor does an object that S3 will not give.
    """
    present = dict(dataset.by_sha256)
    known = {row.sha256: row for shard in dataset.shards for row in shard.rows} | present
    asked, refused = _corrections(batch, params.dataset.classes, present, known)
    relabel, remove = asked.relabel, asked.remove
    correct(present, relabel, remove)
    taken: list[Taken] = []
    denied: list[ObjectError] = []
    duplicates = 0
    for done, outcome in enumerate(_fetched(store, batch, params, Known(present), scratch), 1):
        if isinstance(outcome, Taken):
            taken.append(outcome)
        elif isinstance(outcome, Refusal):
            refused.append(outcome)
        elif isinstance(outcome, Denied):
            denied.append(outcome.error)
            refused.append(outcome.refusal)
        else:
            duplicates += 1
        if progress:
            progress(done, len(batch.entries))
    check_access(batch, params.dataset.classes, denied)
    fresh, conflicts = _distinct(taken)
    duplicates += len(taken) - len(fresh) - len(conflicts)
    refused += conflicts
    at = params.dataset
    named = [photo.entry.split for photo in fresh]
    known |= present  # a photo that was removed keeps its side: champions have learnt from it, or were judged by it
    places = assign(fresh, named, list(known.values()), at.holdout_fraction, at.near_duplicate_bits)
    rows: list[Row] = []
    for photo, place in zip(fresh, places, strict=True):
        if isinstance(place, Torn):
            refused.append(Refusal(photo.entry.key, "copy across split", place.detail))
        else:
            rows.append(_row(photo, place))
    order = {entry.key: i for i, entry in enumerate(batch.entries)}
    receipt = Receipt(
        batch_id=batch.ref.id,
        marker=batch.ref.marker,
        etag=batch.ref.etag,
        sequence=sequence or dataset.next_sequence,
        accepted=len(rows),
        duplicates=duplicates,
        counts=count(rows),
        refused=tuple(sorted(refused, key=lambda item: order.get(item.key, -1))),
        warnings=(*warnings(rows, relabel, remove, dataset, params), *_endless(fresh, rows)),
        relabel=relabel,
        remove=remove,
        source=batch.source,
        relabel_again=asked.relabel_again,
        remove_again=asked.remove_again,
    )
    write_shard(out, ((row, (scratch / row.sha256).read_bytes()) for row in rows), receipt)
    return receipt


def _fetched(store: Store, batch: Batch, params: Params, known: Known, scratch: Path) -> Iterator[Outcome]:
    """What becomes of each photo of a batch, in order; those that are taken lie in the scratch folder then.

    The processes that the settings name fetch and decode them; from other machines their bytes come with the answer.
    """
    afar = elsewhere(store.settings)
    make = partial(Fetching, store, batch.ref.prefix, params, known, None if afar else scratch)
    size = TOGETHER if afar else 1
    photos = (batch.entries[at : at + size] for at in range(0, len(batch.entries), size))
    for found in spread(store.settings, make, photos, 2 if afar else THREADS, network=False):
        for outcome, data in found:
            yield keep(scratch, outcome, data) if afar else outcome


def _endless(fresh: Sequence[Taken], rows: Sequence[Row]) -> Iterator[Warned]:
    """Warns of photos that came in though their files lack the end; the ledger keeps it, so it names none of them."""
    joined = {row.sha256 for row in rows}
    if endless := sum(photo.sha256 in joined and not photo.picture.ended for photo in fresh):
        yield Warned(ENDLESS, f"files that lack their last bytes: {endless}; their pictures are whole")


@dataclass(frozen=True)
class _Corrections:
    relabel: dict[str, str]
    remove: tuple[str, ...]
    relabel_again: dict[str, str]
    remove_again: tuple[str, ...]


def _corrections(
    batch: Batch, classes: Sequence[str], present: Mapping[str, Row], known: Mapping[str, Row]
) -> tuple[_Corrections, list[Refusal]]:
    """What of a batch's relabel and remove applies or holds already, and what does not, with the reason.

    present: the photos that count; known: also those that were removed.
    """
    refused = [
        Refusal(sha256, UNKNOWN, f"to be {what}, but not in the data set")
        for what, asked, among in (("relabelled", batch.relabel, present), ("removed", batch.remove, known))
        for sha256 in asked
        if sha256 not in among
    ]
    relabel: dict[str, str] = {}
    again: dict[str, str] = {}
    for sha256, label in batch.relabel.items():
        if label not in classes:
            refused.append(Refusal(sha256, "unknown label", no_class(label, classes)))
        elif sha256 in present:
            (again if present[sha256].label == label else relabel)[sha256] = label
    return _Corrections(
        relabel,
        tuple(sha256 for sha256 in batch.remove if sha256 in present),
        again,
        tuple(sha256 for sha256 in batch.remove if sha256 in known and sha256 not in present),
    ), refused


def _distinct(taken: list[Taken]) -> tuple[list[Taken], list[Refusal]]:
    """Each photo once, as it came first; a photo that came with two labels not at all."""
    copies: dict[str, list[Taken]] = defaultdict(list)
    for photo in taken:
        copies[photo.sha256].append(photo)
    fresh: list[Taken] = []
    refused: list[Refusal] = []
    for same in copies.values():
        labels = sorted({photo.entry.label for photo in same})
        if len(labels) == 1:
            fresh.append(same[0])
        else:
            detail = f"the same photo came as {' and as '.join(labels)} in this batch"
            refused += [Refusal(photo.entry.key, "label conflict", detail) for photo in same]
    return fresh, refused


def _row(photo: Taken, place: Place) -> Row:
    seen = photo.picture
    return Row(
        sha256=seen.sha256,
        label=photo.entry.label,
        split=place.split,
        group=place.group,
        dhash=seen.dhash,
        palette=seen.palette,
        key=photo.entry.key,
        width=seen.width,
        height=seen.height,
    )


def quarantine(store: Store, batch: Batch, receipt: Receipt, progress: Progress | None = None) -> int:
    """Copy refused photos to quarantine/<batch>/, and their reasons.json; how many. Again changes nothing.

    What is not there, or what S3 will not give, is left out: that is no reason to stop. StoreError when S3 fails.
    """
    keys = {entry.key for entry in batch.entries}
    refused = [item for item in receipt.refused if item.key in keys and item.reason not in ("missing", DENIED)]
    target = f"{QUARANTINE}/{batch.ref.id}/"
    if not receipt.refused:
        return 0

    def copied(item: Refusal) -> bool:
        try:
            store.copy(batch.ref.prefix + item.key, target + item.key)
        except ObjectError as error:
            if error.code in FORBIDDEN and store.head(batch.ref.prefix + item.key):
                raise  # of writing to quarantine/: a policy's fault, not the photo's
            return False
        return True

    count = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for done, there in enumerate(pool.map(copied, refused), 1):
            count += there
            if progress:
                progress(done, len(refused))
    reasons = [asdict(item) for item in receipt.refused]
    store.put(target + "reasons.json", dumps(reasons, ensure_ascii=False, indent=1).encode())
    return count


def implausible(right: int, n: int, champion_right: int, champion_n: int) -> float:
    """How likely a champion of this held-out score gets at most `right` of a batch's `n` photos right (0-1).

    The lower tail of the binomial, its rate known only from champion_right of champion_n: with Jeffreys' prior the
    posterior is Beta(right + 1/2, wrong + 1/2), so the prediction is beta-binomial (Gelman et al., Bayesian Data
    Analysis, 2.1-2.4). A batch is held when this is less than `ingest.implausible`.
    """
    if n == 0:
        return 1.0
    return beta_binomial(right, n, champion_right + 0.5, champion_n - champion_right + 0.5)
