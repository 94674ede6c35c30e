"""The story of a batch: what arrived, what became of it and why, and which decision it was first part of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ssclass.data.batches import BatchRef
from ssclass.data.shards import Receipt
from ssclass.errors import NotFoundError, StoreError
from ssclass.history.shards import shards_ever
from ssclass.workspace.deliveries import list_deliveries
from ssclass.workspace.ledger import INGESTED, REVOKED, WAITING, State
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Story:
    """One batch. `received`: ISO 8601 UTC, None when its marker is no longer in S3 or S3 is away.

    events: what the ledger says of it, oldest first. receipt: counts; for a batch whose shard can be read, the
    whole receipt, each refusal with its reason. decision: the first that learnt from it.
    """

    batch: str
    status: str
    received: str | None = None
    reason: str = ""
    receipt: dict[str, Any] | None = None
    champion_test: dict[str, Any] | None = None
    data_version: str | None = None
    decision: dict[str, Any] | None = None
    events: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def stories(workspace: Workspace) -> list[Story]:
    """Tell of every batch that the ledger or S3 knows, in the order in which they came; without S3, of the ledger's."""
    version = workspace.at()
    try:
        refs = {ref.id: ref for ref in list_deliveries(workspace.store, version.state)}
    except StoreError:
        refs = {}
    names: dict[str, None] = {}
    events: dict[str, list[dict[str, Any]]] = {}
    for event in version.events:
        if batch := event.body.get("batch"):
            names[batch] = None
            events.setdefault(batch, []).append({"event": event.kind, "at": event.at, **event.body})
    state = version.state
    return [_story(name, refs.get(name), events.get(name, []), state) for name in names | dict.fromkeys(refs)]


def story(workspace: Workspace, batch: str) -> Story:
    """Tell of one batch in full; NotFoundError lists the newest ones."""
    found = {each.batch: each for each in stories(workspace)}
    if batch not in found:
        newest = ", ".join(list(found)[-5:]) or "none yet"
        raise NotFoundError(f"{batch}: no such batch (newest: {newest}); `ssclass batch list` shows all")
    told = found[batch]
    receipt = _receipt(workspace, told)
    return told if receipt is None else Story(**{**vars(told), "receipt": receipt.to_json()})


def _story(name: str, ref: BatchRef | None, events: list[dict[str, Any]], state: State) -> Story:
    ingest = next((event for event in reversed(events) if event["event"] == "ingest"), None)
    held = next((event for event in reversed(events) if event["event"] == "decision"), None)
    status, reason = _status(name, ref, state, held)
    source = ingest or held or {}
    decision = next(
        (
            {key: event.body[key] for key in ("key", "decision", "reason", "data_version")} | {"at": event.at}
            for event in state.decisions.values()
            if name in event.body["batches"]
        ),
        None,
    )
    return Story(
        batch=name,
        status=status,
        received=ref.time if ref else None,
        reason=reason,
        receipt=source.get("receipt"),
        champion_test=source.get("champion_test"),
        data_version=f"data/{ingest['sequence']}" if ingest else None,
        decision=decision,
        events=tuple(events),
    )


def _status(name: str, ref: BatchRef | None, state: State, held: dict[str, Any] | None) -> tuple[str, str]:
    etag = ref.etag if ref else held["etag"] if held else ""
    status = state.status(name, etag)
    if status == REVOKED:
        return status, str(state.revoked[name].body.get("reason", ""))
    if status in (INGESTED, WAITING) or held is None:
        return status, ""
    return status, str(held["reason"])


def _receipt(workspace: Workspace, told: Story) -> Receipt | None:
    """The receipt in the batch's shard; None where a photo of it was forgotten, or where it cannot be had."""
    if told.data_version is None:
        return None
    try:
        return next((shard.receipt for shard in shards_ever(workspace) if shard.batch_id == told.batch), None)
    except StoreError:
        return None
