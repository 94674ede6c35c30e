"""What a person decides: ledger events written by hand, each one pushed commit."""

from __future__ import annotations

from typing import Any

from ssclass.errors import LostRaceError, NotFoundError, StoreError
from ssclass.store import Store
from ssclass.tracking.publish import reconcile
from ssclass.workspace.dvc import CANDIDATE, drop_shard, outs, read_object
from ssclass.workspace.ledger import Event, State
from ssclass.workspace.workspace import Workspace

RACES = 10


def append(workspace: Workspace, kind: str, message: str, **body: Any) -> Event:
    """Write one event, from origin's newest state."""
    return _append(workspace, kind, message, lambda state: body)


def _append(workspace: Workspace, kind: str, message: str, body_from: Any) -> Event:
    for _ in range(RACES):
        with workspace.turn():
            event = Event.now(kind, **body_from(workspace.state()))
            try:
                workspace.publish(message, [event])
            except LostRaceError:
                continue
            return event
    raise LostRaceError(f"{workspace.root}: lost the race to push {RACES} times; see who else writes to origin")


def roll_back(workspace: Workspace, number: int | None) -> Event:
    """Make an earlier champion the champion, freeze promotion, and move the alias.

    `number` is the champion's, from 1; default: the one before the champion in force.
    """

    def body(state: State) -> dict[str, Any]:
        if state.champion is None:
            raise NotFoundError(
                f"{workspace.root}: no champion yet, nothing to roll back; `ssclass retrain` makes the first"
            )
        wanted = number if number is not None else state.number_of(state.champion) - 1
        if not 1 <= wanted <= len(state.champions):
            raise NotFoundError(
                f"{workspace.root}: no champion {wanted}; there are 1 to {len(state.champions)}, `ssclass history` "
                "lists them"
            )
        key = state.champions[wanted - 1]
        if not _has_candidate(workspace, key):
            raise NotFoundError(
                f"{workspace.root}: champion {wanted} is no longer in DVC's store, `ssclass gc` took it; choose another"
            )
        return {"key": key, "number": wanted}

    event = _append(workspace, "rollback", f"Roll back to champion {number or 'before'}", body)
    reconcile(workspace)
    return event


def _has_candidate(workspace: Workspace, key: str) -> bool:
    """Whether the classifier of a decision can be had; while S3 is away, it is taken to be there."""
    store = Store(workspace.settings)
    try:
        return all(read_object(workspace.root, store, md5) for md5 in outs(workspace.git, f"run/{key}", CANDIDATE))
    except StoreError:
        return True


def revoke(workspace: Workspace, batch: str, reason: str) -> Event:
    """Take an ingested batch out: a new data version without its shard. What it was stays in the older ones.

    NotFoundError when it is not in the data set.
    """
    for _ in range(RACES):
        with workspace.turn():
            state = workspace.state()
            if batch not in state.ingested or batch in state.revoked:
                held = any(name == batch for name, _ in state.held)
                remedy = f"`ssclass batch drop {batch}` keeps it out" if held else "`ssclass batch list` shows what is"
                raise NotFoundError(f"{batch}: not in the data set; {remedy}")
            ingest = state.ingested[batch].body
            drop_shard(workspace.root, batch)
            event = Event.now(
                "revoke",
                batch=batch,
                etag=ingest["etag"],
                md5=ingest["md5"],
                sequence=state.next_version,
                reason=reason,
            )
            try:
                workspace.publish(f"Revoke {batch}: {reason}", [event], tags=[f"data/{state.next_version}"])
            except LostRaceError:
                continue
            return event
    raise LostRaceError(f"{workspace.root}: lost the race to push {RACES} times; see who else writes to origin")


def answer_held(workspace: Workspace, batch: str, answer: str) -> Event:
    """`answer` a HELD batch with "admit" or "drop"."""

    def body(state: State) -> dict[str, Any]:
        for held, etag in state.held:
            if held == batch:
                return {"batch": batch, "etag": etag}
        names = ", ".join(held for held, _ in state.held) or "none"
        raise NotFoundError(f"{batch}: not a held batch (held: {names}); `ssclass status` lists them")

    return _append(workspace, answer, f"{answer.capitalize()} {batch}", body)
