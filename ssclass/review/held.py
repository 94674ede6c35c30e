"""A held batch, looked into as the ingest would: its photos with what the champion says, and what would be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ssclass.data.batches import find_batches, read_batch
from ssclass.data.build import build_shard
from ssclass.data.shards import Receipt, Refusal, Row, read_shard
from ssclass.errors import BatchError, NotFoundError
from ssclass.retrain.delivered import delivered_features
from ssclass.retrain.predict import Progress, decided_classifier, memo_of, silent
from ssclass.retrain.result import Answers
from ssclass.review.queues import Item
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class HeldBatch:
    """A held batch: its photos, those that the champion disagrees with first, and the files that would be refused.

    `etag`: of the marker that it is held under. `reason`: why it is held. `relabelled` and `removed`: photos of the
    data set that it would correct. `shard`: the file that has its photos. `unreadable`: why there are none.
    """

    batch: str
    etag: str
    reason: str
    items: tuple[Item, ...]
    refused: tuple[Refusal, ...]
    shard: Path
    duplicates: int = 0
    relabelled: int = 0
    removed: int = 0
    unreadable: str = ""

    @property
    def disputed(self) -> int:
        """How many photos the champion calls something else than their label."""
        return sum(item.disagrees for item in self.items)


def read_held(workspace: Workspace, batch: str, folder: Path, progress: Progress = silent) -> HeldBatch:
    """Look into a held batch; its photos go to a shard in `folder`, checked as those that are taken in.

    NotFoundError when it is not held, or no longer in S3; StoreError when S3 fails.
    """
    version = workspace.at()
    state, params, store = version.state, version.params, workspace.store
    etag, event = next(((etag, event) for (name, etag), event in state.held.items() if name == batch), ("", None))
    refs = find_batches(store, [batch])
    if event is None or not refs:
        raise NotFoundError(f"{batch}: not a held batch, or no longer in S3; `ssclass status` lists those that are")
    reason, out = str(event.body["reason"]), folder / f"{batch}.parquet"
    try:
        read = read_batch(store, refs[0], params.dataset.classes)
    except BatchError as error:
        return HeldBatch(batch, etag, reason, (), (), out, unreadable=str(error))
    with TemporaryDirectory(prefix="photos-", dir=folder) as spool:
        report = partial(progress, f"photos of {batch}")
        receipt = build_shard(store, read, params, version.dataset, Path(spool), out, report, state.next_version)
    shard = read_shard(out)
    answers = None
    if state.champion is not None and shard.rows:
        champion, memo = decided_classifier(workspace, state.champion), memo_of(workspace)
        report = partial(progress, f"the champion on {batch}")
        raw = champion.predict(lambda spec: delivered_features(spec, memo, store, shard, out, params, report))
        answers = Answers.of(champion, raw, shard.rows, params.dataset.classes)
    items = _worst_first(shard.rows, answers, batch)
    refused, corrections = receipt.refused, _corrections(receipt)
    return HeldBatch(batch, etag, reason, tuple(items), refused, out, receipt.duplicates, *corrections)


def _corrections(receipt: Receipt) -> tuple[int, int]:
    return len(receipt.relabel), len(receipt.remove)


def _worst_first(rows: Sequence[Row], answers: Answers | None, batch: str) -> list[Item]:
    """What the champion disagrees with, the surest first; then the others, the least sure first."""
    if answers is None:
        return [Item(row.sha256, row.label, row.label, 0.0, batch, row.key, batch) for row in rows]
    sure, correct = answers.numbers.max(axis=1), answers.correct
    order = np.lexsort((np.where(correct, sure, -sure), correct))
    return [
        Item(
            rows[at].sha256,
            rows[at].label,
            answers.classes[answers.predicted[at]] if answers.predicted[at] >= 0 else "another class",
            float(sure[at]),
            batch,
            rows[at].key,
            batch,
        )
        for at in order.tolist()
    ]
