"""Batches that wait in S3, and taking one in: check, let the champion score it, join or hold."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass import progress
from ssclass.data.batches import SUCCESS, UNKNOWN, Batch, BatchRef, in_class_folders, read_batch
from ssclass.data.build import build_shard, implausible, quarantine
from ssclass.data.checks import drip
from ssclass.data.shards import Receipt, Row, Shard, read_shard
from ssclass.environment import temporary_folder
from ssclass.errors import BatchError, ChangedError, OvertakenError
from ssclass.retrain.calibration import cross_validated_calibration
from ssclass.retrain.delivered import delivered_features
from ssclass.retrain.predict import decided_classifier, memo_of
from ssclass.retrain.result import label_index
from ssclass.retrain.scores import predicted
from ssclass.retrain.statistics import calibration
from ssclass.store import Store
from ssclass.workspace.deliveries import find_deliveries, list_deliveries, told_apart_by
from ssclass.workspace.ledger import ADMITTED, HELD, WAITING, Event, State
from ssclass.workspace.transaction import Change
from ssclass.workspace.version import Version
from ssclass.workspace.workspace import Workspace

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier, FeaturesOf
    from ssclass.model.features import Features
    from ssclass.model.spec import Spec

INGESTED = "INGESTED"
RECENT, DRAWN = 30, 20
"""Markers are looked at again, as something may have been sent anew: those of so many batches that were ingested last,
and of so many of the others, which are drawn each hour. `ssclass verify` looks at all."""


@dataclass(frozen=True)
class Ingested:
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


@dataclass(frozen=True)
class Checked:
    """What the checks of a batch say, against one version: either why it is held, or the shard that joins.

    delivery: what the line in the ledger says of it (`told_apart_by`).
    """

    ref: BatchRef
    commit: str | None
    delivery: dict[str, Any]
    held: dict[str, Any] | None = None
    batch: Batch | None = None
    receipt: Receipt | None = None
    shard: Path | None = None
    test: dict[str, Any] | None = None


def waiting(store: Store, state: State) -> list[BatchRef]:
    """Marked batches that are to be taken in: those that nobody decided on, and those that were admitted; in order.

    A batch that was held with corrections of photos that were not in the data set comes last, whenever its marker was
    written: those photos may come with one of the others.
    """

    def corrects_what_was_not_there(ref: BatchRef) -> bool:
        return any(delivery.unknown for delivery in state.deliveries.get(ref.id, {}).values())

    there = list_deliveries(store, state, known=state.ingested)
    wanted = [ref for ref in there if state.status(ref.id, ref.etag) in (WAITING, ADMITTED)]
    return sorted(wanted, key=corrects_what_was_not_there)


def sent_again(store: Store, state: State) -> list[BatchRef]:
    """Batches that were sent again with other content under an id that is in use; looked for among RECENT and DRAWN.

    Nothing of them would ever be looked at: `ingest` holds them, so that a person hears of it.
    """
    others = older(state)
    drawn = random.Random(int(time.time() // 3600)).sample(others, min(DRAWN, len(others)))
    return sent_anew(store, state, drawn + list(state.ingested)[-RECENT:])


def older(state: State) -> list[str]:
    """The ingested batches but for the newest RECENT, oldest first."""
    return list(state.ingested)[:-RECENT]


def sent_anew(store: Store, state: State, names: Sequence[str]) -> list[BatchRef]:
    """Those of these ingested batches whose marker was written again over other content, and nobody was told."""
    return [
        ref
        for ref in find_deliveries(store, state, names)
        if state.taken_under_another_marker(ref.id, ref.etag) and not _as_many_files(store, state, ref)
    ]


def _as_many_files(store: Store, state: State, ref: BatchRef) -> bool:
    """Whether class folders hold as many files as when they were taken in, by a line that says no more of them.

    Then only _SUCCESS was written again, as far as that line tells.
    """
    if state.ingested[ref.id].body.get("contents") is not None:
        return False
    told = state.ingested[ref.id].body.get("receipt", {})
    before = told.get("accepted", 0) + told.get("duplicates", 0) + sum(told.get("refused", {}).values())
    return ref.marker == SUCCESS and sum(1 for _ in in_class_folders(store, ref)) == before


def ingest(workspace: Workspace, ref: BatchRef) -> Ingested:
    """Take one batch in, in one pushed commit: its shard and its line in the ledger, or only the line that holds it.

    StoreError when S3 fails, LostRaceError when other writers were first ten times, OvertakenError where its marker was
    written again meanwhile, or a person dropped it: then nothing has changed.
    """
    try:
        return _ingest(workspace, ref)
    except ChangedError as error:
        raise OvertakenError(f"{ref.id}: {error}") from error


def _ingest(workspace: Workspace, ref: BatchRef) -> Ingested:
    workspace.claim()
    with temporary_folder(workspace.settings) as folder:
        checked = [check(workspace, workspace.at(), ref, folder)]

        def write(change: Change) -> Ingested:
            if (done := _done_already(change.version.state, ref)) is not None:
                return done
            if change.version.state.kept_out(ref.id, ref.etag):
                raise OvertakenError(f"{ref.id}: a person dropped it before it was taken in; it stays out")
            if checked[-1].commit != change.version.commit:  # another writer was here: check against what it wrote
                checked.append(check(workspace, change.version, ref, folder))
            return _publish(change, checked[-1])

        return workspace.write(write)


def check(workspace: Workspace, version: Version, ref: BatchRef, folder: Path) -> Checked:
    """Check a batch against a version: read it, build its shard in `folder`, and let the champion score it."""
    store, state, params = workspace.store, version.state, version.params
    delivery = told_apart_by(store, ref)  # before any photo is read: one that is replaced meanwhile is noticed

    def held(reason: str, **more: Any) -> Checked:
        return Checked(ref, version.commit, delivery, held={"reason": reason, **more})

    if ref.id in state.ingested:
        earlier = state.ingested[ref.id].body["sequence"]
        return held(
            f"the id is in use since data/{earlier}, and its marker was written again; send the photos under a new id, "
            f"then `ssclass batch drop {ref.id}`"
        )
    try:
        batch = read_batch(store, ref, params.dataset.classes)
    except BatchError as error:
        delivery["contents"] = None  # written again, it is read again: a right, a class or a file may have come
        return held(str(error))
    out = folder / f"{ref.id}.parquet"
    with TemporaryDirectory(prefix="photos-", dir=folder) as spool:
        report = _reporter(f"batch {ref.id}")
        receipt = build_shard(store, batch, params, version.dataset, Path(spool), out, report, state.next_version)
    shard = read_shard(out)
    if state.status(ref.id, ref.etag) == ADMITTED:
        if _others_than_those_held(state, ref, delivery):
            reason = "its files were replaced since it was held; look at them, then admit it again"
            return held(f"{reason} (`ssclass batch admit {ref.id}`)", receipt=summary(receipt))
        test = champion_test(workspace, version, shard, out)
        return Checked(ref, version.commit, delivery, None, batch, receipt, out, test)

    if (waits := _corrects_what_is_held(receipt, state)) is not None:
        return held(waits, receipt=summary(receipt))
    if holding := [warning for warning in receipt.warnings if warning.code in params.ingest.hold]:
        reason = "; ".join(f"{warning.code}: {warning.detail}" for warning in holding) + " (ingest.hold)"
        return held(reason, receipt=summary(receipt))
    test = champion_test(workspace, version, shard, out)
    if test and test["p"] < params.ingest.implausible:
        reason = (
            f"the champion has only {test['right']} of {test['n']} right; of other photos that it had not learnt from "
            f"it has {test['champion_right']} of {test['champion_n']} right, so the labels are probably wrong "
            f"(p = {test['p']:.1e}, ingest.implausible {params.ingest.implausible:g})"
        )
        return held(reason, champion_test=test, receipt=summary(receipt))
    if test and (warning := drip([*_tests_since_admitted(state), test], params)) and warning.code in params.ingest.hold:
        return held(f"{warning.code}: {warning.detail} (ingest.hold)", champion_test=test, receipt=summary(receipt))
    return Checked(ref, version.commit, delivery, None, batch, receipt, out, test)


def _others_than_those_held(state: State, ref: BatchRef, delivery: dict[str, Any]) -> bool:
    """Whether a batch that a person admitted holds other files than when it was held, under the same marker."""
    held = state.deliveries.get(ref.id, {}).get(ref.etag)
    return held is not None and held.contents not in (None, delivery["contents"])


def _tests_since_admitted(state: State) -> list[dict[str, Any]]:
    """The champion tests of the ingested batches, in their order, since a person last admitted one."""
    tests: list[dict[str, Any]] = []
    for batch, event in state.ingested.items():
        if (batch, event.body["etag"]) in state.admitted:
            tests.clear()
        elif batch not in state.revoked and event.body.get("champion_test"):
            tests.append(event.body["champion_test"])
    return tests


def _publish(change: Change, checked: Checked) -> Ingested:
    """Make the checks' answer the ledger's: the shard joins, or the batch is held."""
    ref = checked.ref
    if checked.held is not None:
        event = Event.now("decision", decision=HELD, batch=ref.id, etag=ref.etag, **checked.delivery, **checked.held)
        change.publish(f"Hold {ref.id}", [event])
        return Ingested(ref.id, HELD, reason=checked.held["reason"])
    batch, receipt, shard = checked.batch, checked.receipt, checked.shard
    assert batch, "a batch that is not held was read"
    assert receipt, "and has a receipt"
    assert shard, "and a shard"
    if receipt.refused:
        quarantine(change.store, batch, receipt, _reporter(f"quarantine of {ref.id}"))
    md5 = change.add_shards(shard)[shard.name]
    event = Event.now(
        "ingest",
        batch=ref.id,
        etag=ref.etag,
        **checked.delivery,
        sequence=receipt.sequence,
        md5=md5,
        receipt=summary(receipt),
        champion_test=checked.test,
    )
    change.publish(f"Ingest {ref.id}: {receipt.accepted} photos", [event], tags=[f"data/{receipt.sequence}"])
    return Ingested(ref.id, INGESTED, receipt.accepted, receipt.duplicates, len(receipt.refused))


def _done_already(state: State, ref: BatchRef) -> Ingested | None:
    """Say what another writer, or this one before it was killed, made of the same delivery; None for nothing."""
    done = state.ingested.get(ref.id)
    if done is not None and done.body["etag"] == ref.etag:
        told = done.body.get("receipt", {})
        refused = sum(told.get("refused", {}).values())
        return Ingested(ref.id, INGESTED, told.get("accepted", 0), told.get("duplicates", 0), refused)
    if (held := state.held.get((ref.id, ref.etag))) is not None:
        return Ingested(ref.id, HELD, reason=held.body["reason"])
    return None


def _corrects_what_is_held(receipt: Receipt, state: State) -> str | None:
    """Say why corrections wait: they name photos that are not in the data set, and held batches may have them."""
    unknown = sum(refusal.reason == UNKNOWN for refusal in receipt.refused)
    others = sorted({batch for batch, _ in state.held} - {receipt.batch_id})
    if not unknown or not others:
        return None
    return (
        f"it corrects {unknown} photos that are not in the data set, and {', '.join(others[:5])} "
        f"{'is' if len(others) == 1 else 'are'} held; decide on that first, then `ssclass batch admit "
        f"{receipt.batch_id}`"
    )


def champion_test(workspace: Workspace, version: Version, shard: Shard, path: Path) -> dict[str, Any] | None:
    """Count the batch's photos that the champion has right, before it is trained on them; None when it cannot say."""
    state = version.state
    if state.champion is None or not shard.rows:
        return None
    champion, memo = decided_classifier(workspace, state.champion), memo_of(workspace)

    def features_of(spec: Spec) -> Features:
        report = _reporter(f"features of {shard.batch_id}")
        return delivered_features(spec, memo, workspace.store, shard, path, version.params, report)

    classes = version.params.dataset.classes
    test = plausibility(champion, features_of, shard.rows, classes, *state.record_of(state.champion))
    usual = cross_validated_calibration(workspace.private / "champions" / state.champion)
    return {"key": state.champion, **test, **{f"usual_{name}": value for name, value in usual.items()}}


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
    counted. `loss`, `confidence` and `calibration_error` of its answers stand beside, where there are any.
    """
    odds = champion.predict(features_of)
    answered = predicted(odds, champion.classes, classes)
    known = np.array([row.label in champion.classes for row in rows])
    correct = (answered == label_index(rows, classes))[known]
    right, n = int(correct.sum()), len(correct)
    p = implausible(right, n, champion_right, champion_n)
    test = {"right": right, "n": n, "champion_right": champion_right, "champion_n": champion_n, "p": p}
    labels = np.array([champion.classes.index(row.label) for row in rows if row.label in champion.classes], int)
    return {**test, **(calibration(np.nan_to_num(odds[known], nan=0.0, posinf=0.0, neginf=0.0), labels) or {})}


def summary(receipt: Receipt) -> dict[str, Any]:
    """Sum up a receipt for the ledger: counts, without the names of photos."""
    reasons: dict[str, int] = {}
    for item in receipt.refused:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    return {
        "source": receipt.source,
        "accepted": receipt.accepted,
        "duplicates": receipt.duplicates,
        "refused": reasons,
        "counts": receipt.counts,
        "warnings": [asdict(warning) for warning in receipt.warnings],
        "relabelled": len(receipt.relabel),
        "removed": len(receipt.remove),
    }


def _reporter(what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.report(what, done, total)
