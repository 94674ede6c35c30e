"""What a person decides: ledger events written by hand, each one pushed commit.

These are the commands of an emergency: each says in seconds what it did or what is in its way, and given again it
changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssclass.data.batches import BatchRef
from ssclass.errors import InputError, NotFoundError, StoreError
from ssclass.retrain.challenger import challenger
from ssclass.settings import Settings
from ssclass.tracking import publish
from ssclass.tracking.client import Tracking
from ssclass.workspace.deliveries import find_deliveries, told_apart_by
from ssclass.workspace.dvc import CANDIDATE
from ssclass.workspace.ledger import ADMITTED, DROPPED, HELD_BATCH, WAITING, Event, State
from ssclass.workspace.transaction import Change
from ssclass.workspace.workspace import Workspace

WAIT = 10.0
"""Seconds to wait for another process that writes in this folder, or for a service that is away."""


def impatient(settings: Settings) -> Settings:
    """Settings for a command that a person waits for: a service that is away is told after seconds, not a minute."""
    return settings.model_copy(update={"patience": min(settings.patience, WAIT)})


def append(workspace: Workspace, kind: str, message: str, **body: Any) -> Event:
    """Write one event, from origin's newest state."""
    return _append(workspace, kind, message, lambda state: body)


def freeze(workspace: Workspace, reason: str) -> Event | None:
    """Stop promotion; None when it is frozen for the same reason. InputError when it is frozen for another one."""

    def body(state: State) -> dict[str, Any] | None:
        if state.frozen is None:
            return {"reason": reason}
        if state.frozen == reason:
            return None
        raise InputError(
            f"promotion is frozen already ({state.frozen}); `ssclass unfreeze` first, if it is to be frozen for "
            "another reason"
        )

    return _append_unless(workspace, "freeze", f"Freeze: {reason}", body)


def roll_back(workspace: Workspace, number: int | None) -> tuple[Event | None, int]:
    """Make an earlier champion the champion, freeze promotion, and move the alias; the event, and the number in force.

    `number` is the champion's, from 1; default: the one before the champion that was promoted last. Given again
    nothing more is written (the event is None), and the alias is set where it was not. TrackingError when MLflow is
    away: the ledger has it by then, and the alias follows with the next retrain or the same command.
    """
    wanted = number

    def body(state: State) -> dict[str, Any] | None:
        nonlocal wanted
        if state.champion is None:
            raise NotFoundError(
                f"{workspace.root}: no champion yet, nothing to roll back; `ssclass retrain` makes the first"
            )
        in_force = state.number_of(state.champion)
        wanted = number or (in_force if state.rolled_back else in_force - 1)
        if not 1 <= wanted <= len(state.champions):
            raise NotFoundError(
                f"{workspace.root}: no champion {wanted}; there are 1 to {len(state.champions)}, `ssclass history` "
                "lists them"
            )
        if wanted == in_force and state.rolled_back:
            return None
        key = state.champions[wanted - 1]
        if not _has_candidate(workspace, key):
            raise NotFoundError(
                f"{workspace.root}: champion {wanted} is no longer in DVC's store, `ssclass gc` took it; choose another"
            )
        return {"key": key, "number": wanted}

    event = _append_unless(workspace, "rollback", f"Roll back to champion {number or 'before'}", body)
    assert wanted is not None, "the body has chosen one"
    tracking = Tracking(impatient(workspace.settings))
    _, state = publish.set_alias(workspace, tracking, workspace.at().state)
    if challenger(state) is None:  # to register one takes longer: the next retrain does
        publish.follow_challenger(workspace, tracking, state)
    return event, wanted


def _has_candidate(workspace: Workspace, key: str) -> bool:
    """Whether the classifier of a decision can be had; while S3 is away, it is taken to be there."""
    try:
        files = workspace.decided(key).files(CANDIDATE)
    except StoreError as error:
        return "neither in DVC's cache nor in the bucket" not in str(error)
    try:
        return all(workspace.objects.exists(each.md5) for each in files)
    except StoreError:
        return True


def revoke(workspace: Workspace, batch: str, reason: str) -> Event:
    """Take an ingested batch out: a new data version without its shard. What it was stays in the older ones.

    NotFoundError when it is not in the data set.
    """

    def write(change: Change) -> Event:
        state = change.version.state
        if batch not in state.ingested or batch in state.revoked:
            held = any(name == batch for name, _ in state.held)
            remedy = f"`ssclass batch drop {batch}` keeps it out" if held else "`ssclass batch list` shows what is"
            raise NotFoundError(f"{batch}: not in the data set; {remedy}")
        ingest = state.ingested[batch].body
        change.drop_shard(batch)
        event = Event.now(
            "revoke", batch=batch, etag=ingest["etag"], md5=ingest["md5"], sequence=state.next_version, reason=reason
        )
        change.publish(f"Revoke {batch}: {reason}", [event], tags=[f"data/{state.next_version}"])
        return event

    return workspace.write(write, WAIT)


def admit(workspace: Workspace, batch: str, etag: str | None = None) -> Event | None:
    """Let a HELD batch in with the next retrain; None when that is decided. InputError when it cannot be read.

    `etag`: of the marker that was looked at; InputError where the batch was sent again since, and is held anew.
    """

    def body(state: State) -> dict[str, Any] | None:
        admitted = {case for case in state.admitted - state.dropped if case[0] == batch}
        if admitted and not any(name == batch for name, _ in state.held):
            return None
        case = _held(state, batch)
        _is_as_seen(case, etag)
        held = state.held[case].body
        if batch in state.ingested:
            raise InputError(f"{batch}: {held['reason']}")
        if "receipt" not in held:
            raise InputError(
                f"{batch}: it cannot be read, so there is nothing to let in ({held['reason']}); correct it and "
                "write its marker "
                f"again, or `ssclass batch drop {batch}`"
            )
        return {"batch": batch, "etag": case[1]}

    return _append_unless(workspace, "admit", f"Admit {batch}", body)


def drop(workspace: Workspace, batch: str, etag: str | None = None) -> Event | None:
    """Keep a batch out for good, whether it is HELD or waits; None when that is decided.

    It is kept out as it is: written again over other files, it is another delivery. `etag`: as for `admit`.
    """

    def body(state: State) -> dict[str, Any] | None:
        if etag is not None:
            if (batch, etag) in state.dropped:
                return None
            _is_as_seen(_held(state, batch), etag)
        for ref in [] if etag is not None else _marker(workspace, state, batch):
            status = state.status(ref.id, ref.etag)
            if status == DROPPED:
                return None
            if status == WAITING:
                return {"batch": batch, "etag": ref.etag, **told_apart_by(workspace.store, ref)}
            if status in (ADMITTED, HELD_BATCH):  # the line that held it says which delivery it is
                return {"batch": batch, "etag": ref.etag}
        if (admitted := _admitted(state, batch)) is not None:
            return {"batch": batch, "etag": admitted}
        if any(name == batch for name, _ in state.dropped) and not any(name == batch for name, _ in state.held):
            return None
        return {"batch": batch, "etag": _held(state, batch)[1]}

    return _append_unless(workspace, "drop", f"Drop {batch}", body)


def _marker(workspace: Workspace, state: State, batch: str) -> list[BatchRef]:
    """The batch as its marker in S3 names it, or nothing; while S3 is away, the ledger alone answers."""
    try:
        return find_deliveries(workspace.store, state, [batch])
    except StoreError:
        return []


def _admitted(state: State, batch: str) -> str | None:
    """The etag under which a batch was admitted and has not joined yet; None where it was not, or is held anew."""
    if any(name == batch for name, _ in state.held):
        return None
    etags = reversed(state.deliveries.get(batch, {}))
    return next((etag for etag in etags if state.status(batch, etag) == ADMITTED), None)


def _held(state: State, batch: str) -> tuple[str, str]:
    """The held case of a batch; there is one at most. NotFoundError lists those that are held."""
    for case in state.held:
        if case[0] == batch:
            return case
    names = ", ".join(sorted({name for name, _ in state.held})) or "none"
    raise NotFoundError(f"{batch}: not a held batch (held: {names}); `ssclass status` lists them")


def _is_as_seen(case: tuple[str, str], etag: str | None) -> None:
    """InputError where a held batch has another marker than the one that a person looked at."""
    if etag not in (None, case[1]):
        raise InputError(f"{case[0]}: sent again since it was looked at, and held anew; look at it, and decide again")


def _append(workspace: Workspace, kind: str, message: str, body: Callable[[State], dict[str, Any]]) -> Event:
    event = _append_unless(workspace, kind, message, body)
    assert event is not None, "this body is never None"
    return event


def _append_unless(
    workspace: Workspace, kind: str, message: str, body: Callable[[State], dict[str, Any] | None]
) -> Event | None:
    """Write the event that `body` makes of origin's newest state; None where it says that there is nothing to write."""

    def write(change: Change) -> Event | None:
        made = body(change.version.state)
        if made is None:
            return None
        event = Event.now(kind, **made)
        change.publish(message, [event])
        return event

    return workspace.write(write, WAIT)
