"""Batches that wait in S3, and taking one in: check, let the champion score it, join or hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass import progress
from ssclass.data.batches import BatchRef, list_batches, read_batch
from ssclass.data.build import build_shard, implausible, quarantine
from ssclass.data.shards import Receipt, Row, Shard, iter_photos, read_shard
from ssclass.errors import BatchError
from ssclass.retrain.scores import predicted
from ssclass.retrain.train import champion_classifier, label_index
from ssclass.store import Store
from ssclass.workspace.dvc import add_shard
from ssclass.workspace.ledger import HELD, Event, State
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier, FeaturesOf
    from ssclass.model.features import Features
    from ssclass.model.spec import Spec

INGESTED = "INGESTED"


@dataclass(frozen=True)
class Taken:
    """What became of a batch: INGESTED or HELD, with the reason for the latter."""

    batch: str
    outcome: str
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def waiting(store: Store, state: State) -> list[BatchRef]:
    """Marked batches that nobody has decided on yet, in the order in which they are taken."""
    return [
        ref
        for ref in list_batches(store, known=state.ingested)
        if (ref.id, ref.etag) not in state.dropped
        and ((ref.id, ref.etag) not in state.held or (ref.id, ref.etag) in state.admitted)
    ]


def take_in(workspace: Workspace, ref: BatchRef) -> Taken:
    """Take one batch in, in one pushed commit: its shard and its line in the ledger, or only the line that holds it.

    StoreError when S3 fails, LostRaceError when another writer was first; then nothing has changed.
    """
    store, state, params = Store(workspace.settings), workspace.state(), workspace.params
    out = workspace.scratch / f"{ref.id}.parquet"
    try:
        batch = read_batch(store, ref, params.dataset.classes)
    except BatchError as error:
        return _hold(workspace, ref, {"reason": str(error)})
    with TemporaryDirectory(prefix="photos-", dir=workspace.scratch) as spool:
        told = _reporter(f"batch {ref.id}")
        receipt = build_shard(store, batch, params, workspace.dataset(), Path(spool), out, told, state.next_version)
    shard = read_shard(out)

    admitted = (ref.id, ref.etag) in state.admitted
    holding = [each for each in receipt.warnings if each.code in params.ingest.hold]
    if holding and not admitted:
        reason = "; ".join(f"{each.code}: {each.detail}" for each in holding) + " (ingest.hold)"
        return _hold(workspace, ref, {"reason": reason, "receipt": _brief(receipt)})
    test = _champion_test(workspace, state, shard, out)
    if test and test["p"] < params.ingest.implausible and not admitted:
        reason = (
            f"the champion has {test['right']} of {test['n']} right, implausible for one with "
            f"{test['champion_right']} of {test['champion_n']} photos right that it had not learnt from "
            f"(p = {test['p']:.1e}, ingest.implausible {params.ingest.implausible:g})"
        )
        return _hold(workspace, ref, {"reason": reason, "champion_test": test, "receipt": _brief(receipt)})

    if receipt.refused:
        quarantine(store, batch, receipt, _reporter(f"quarantine of {ref.id}"))
    tracked = add_shard(workspace.root, out)
    event = Event.now(
        "ingest",
        batch=ref.id,
        etag=ref.etag,
        sequence=receipt.sequence,
        md5=tracked.md5,
        receipt=_brief(receipt),
        champion_test=test,
    )
    workspace.publish(f"Ingest {ref.id}: {receipt.accepted} photos", [event], tags=[f"data/{receipt.sequence}"])
    return Taken(ref.id, INGESTED, receipt.accepted, receipt.duplicates, len(receipt.refused))


def _champion_test(workspace: Workspace, state: State, shard: Shard, path: Path) -> dict[str, Any] | None:
    """Test before train: how many of the batch's photos the champion has right; None when it cannot say."""
    if state.champion is None or not shard.rows:
        return None
    from ssclass.model.features import FeatureMemo, shard_features

    classes = workspace.params.dataset.classes
    champion = champion_classifier(workspace, state.champion)
    memo = FeatureMemo(workspace.private, Store(workspace.settings))

    def features_of(spec: Spec) -> Features:
        report = _reporter(f"features of {shard.batch_id}")
        return shard_features(spec, memo, shard, lambda: iter_photos(path), progress=report)

    test = plausibility(champion, features_of, shard.rows, classes, *state.record_of(state.champion))
    return {"key": state.champion, **test}


def plausibility(
    champion: Classifier | Adopted,
    features_of: FeaturesOf,
    rows: Sequence[Row],
    classes: Sequence[str],
    champion_right: int,
    champion_n: int,
) -> dict[str, Any]:
    """How many of a batch's photos the champion has right, and `p`: how likely so few are, given its record.

    `features_of` gives the features of `rows`, in order. Photos of a class that the champion does not know are not
    counted.
    """
    called = predicted(champion.predict(features_of), champion.classes, classes)
    known = np.array([row.label in champion.classes for row in rows])
    hit = (called == label_index(rows, classes))[known]
    right, n = int(hit.sum()), len(hit)
    p = implausible(right, n, champion_right, champion_n)
    return {"right": right, "n": n, "champion_right": champion_right, "champion_n": champion_n, "p": p}


def _hold(workspace: Workspace, ref: BatchRef, body: dict[str, Any]) -> Taken:
    workspace.publish(f"Hold {ref.id}", [Event.now("decision", decision=HELD, batch=ref.id, etag=ref.etag, **body)])
    return Taken(ref.id, HELD, reason=body["reason"])


def _brief(receipt: Receipt) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for item in receipt.refused:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    return {
        "source": receipt.source,
        "accepted": receipt.accepted,
        "duplicates": receipt.duplicates,
        "refused": reasons,
        "counts": receipt.counts,
        "warnings": [asdict(each) for each in receipt.warnings],
        "relabelled": len(receipt.relabel),
        "removed": len(receipt.remove),
    }


def _reporter(what: str) -> Any:
    return lambda done, total: progress.report(what, done, total)
