"""Where things come from and where they went: model → data version → batches → photos, and back.

Told from the ledger and the shards alone, so that it holds whatever became of MLflow and S3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ssclass.data.dataset import Dataset, count
from ssclass.data.shards import Shard
from ssclass.data.split import TRAIN
from ssclass.errors import NotFoundError
from ssclass.history.shards import shards_ever
from ssclass.workspace.ledger import HELD, Event, State
from ssclass.workspace.workspace import Workspace

_USES = {True: "trained on", False: "scored on"}


def lineage(workspace: Workspace, name: str) -> dict[str, Any]:
    """Tell where something comes from and where it went.

    `name` is a champion's number, a decision key, ``champion``, a data version, a batch or a photo's sha256.

    A sha256 may be cut to its first 8 digits or more. NotFoundError when it is none of them.
    """
    state = workspace.at().state
    if key := decision_key(name, state):
        return of_model(workspace, key)
    if re.fullmatch(r"data/\d+", name):
        return of_version(workspace, name)
    if name in state.ingested:
        return of_batch(workspace, name)
    if re.fullmatch(r"[0-9a-f]{8,64}", name):
        return of_photo(workspace, name)
    raise NotFoundError(
        f"{name}: no champion, decision key, data version, batch or sha256 of this workspace; `ssclass history` and "
        "`ssclass batch list` list them"
    )


def decision_key(name: str, state: State) -> str | None:
    """The decision that a name is of: a champion's number, ``champion``, a key or a run of MLflow's; None for none."""
    if name == "champion" and state.champion:
        return state.champion
    if name.isdecimal() and len(name) < 8:
        if not 1 <= int(name) <= len(state.champions):
            raise NotFoundError(
                f"{name}: there are champions 1 to {len(state.champions)}; `ssclass history` lists them"
            )
        return state.champions[int(name) - 1]
    key = name.removeprefix("run/")
    if key in state.decisions:
        return key
    return next((key for key, event in state.decisions.items() if event.body["run_id"] == name), None)


def of_model(workspace: Workspace, key: str) -> dict[str, Any]:
    """Tell what a model was trained on: its run, data version, batches, and how many photos of each."""
    state = workspace.at().state
    body = state.decisions[key].body
    return {
        "kind": "model",
        **_decision(state.decisions[key], state),
        "run_id": body["run_id"],
        "code": body["code"],
        "params": body["params"],
        **{f"adopted {name}": value for name, value in body.get("adopted", {}).items()},
        "batches": _batches(workspace.decided(key).dataset),
    }


def of_version(workspace: Workspace, rev: str) -> dict[str, Any]:
    """Tell which batches are in a data version, and which decisions were made on it."""
    from ssclass.history.export import check_version

    state = workspace.at().state
    decisions = [_decision(event, state) for event in state.decisions.values() if event.body["data_version"] == rev]
    dataset = Dataset() if rev == "data/0" else workspace.at(check_version(workspace, rev)).dataset
    return {"kind": "data version", "data_version": rev, "batches": _batches(dataset), "decisions": decisions}


def of_batch(workspace: Workspace, batch: str) -> dict[str, Any]:
    """Tell where a batch went: the data version that it made, its photos, and the decisions on data with it."""
    state = workspace.at().state
    shard = next(shard for shard in shards_ever(workspace) if shard.batch_id == batch)
    rows = workspace.at().dataset.by_sha256
    return {
        "kind": "batch",
        "batch": batch,
        "data_version": f"data/{state.ingested[batch].body['sequence']}",
        "revoked": state.revoked[batch].at if batch in state.revoked else None,
        "photos": [
            {"sha256": row.sha256, "key": row.key, "label": row.label, "split": row.split, "now": row.sha256 in rows}
            for row in shard.rows
        ],
        "relabel": shard.receipt.relabel | shard.receipt.relabel_again,
        "remove": [*shard.receipt.remove, *shard.receipt.remove_again],
        "decisions": [_decision(event, state) for event in decisions_with(workspace.at().events, batch)],
    }


def of_photo(workspace: Workspace, sha256: str) -> dict[str, Any]:
    """Tell where a photo went: how it came, what became of it, and which models were trained or scored on it."""
    shards = list(shards_ever(workspace))
    names = {row.sha256 for shard in shards for row in shard.rows if row.sha256.startswith(sha256)}
    if len(names) != 1:
        said = "several photos begin so; give more digits" if names else "in no batch that was ever taken in"
        raise NotFoundError(f"{sha256}: {said}; `ssclass batch show ID` tells what was refused")
    (found,) = names
    state = workspace.at().state
    touching = {
        shard.batch_id: shard
        for shard in shards
        if any(row.sha256 == found for row in shard.rows) or found in shard.receipt.corrected
    }
    present: dict[str, Shard] = {}
    history: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    row = None
    for event in workspace.at().events:
        batch = event.body.get("batch")
        if event.kind in ("ingest", "revoke") and batch in touching:
            if event.kind == "ingest":
                present[batch] = touching[batch]
            else:
                present.pop(batch, None)
            row = Dataset.of(present.values()).by_sha256.get(found)
            version = f"data/{event.body['sequence']}"
            now = {"label": row.label if row else None, "split": row.split if row else None}
            history.append({"at": event.at, "event": event.kind, "batch": batch, "data_version": version, **now})
        elif event.kind == "decision" and event.body["decision"] != HELD and row is not None:
            learns = row.split == TRAIN
            if not (learns and "adopted" in event.body):  # an adopted model has learnt elsewhere
                models.append({**_decision(event, state), "use": _USES[learns], "label": row.label})
    return {"kind": "photo", "sha256": found, "in": row is not None, "history": history, "models": models}


def decisions_with(events: Sequence[Event], batch: str) -> Iterator[Event]:
    """The decisions that were made while a batch was in the data set."""
    there = False
    for event in events:
        if event.body.get("batch") == batch and event.kind in ("ingest", "revoke"):
            there = event.kind == "ingest"
        elif there and event.kind == "decision" and event.body["decision"] != HELD:
            yield event


def _batches(dataset: Dataset) -> list[dict[str, Any]]:
    found = []
    for shard in dataset.shards:
        rows = [dataset.by_sha256[row.sha256] for row in shard.rows if row.sha256 in dataset.by_sha256]
        found.append({"batch": shard.batch_id, "photos": len(rows), "counts": count(rows)})
    return found


def _decision(event: Event, state: State) -> dict[str, Any]:
    body = event.body
    key = body["key"]
    number = state.number_of(key) if key in state.champions else None
    return {"key": key, "decision": body["decision"], "champion": number, "data_version": body["data_version"]}
