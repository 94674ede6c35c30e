"""Forgetting photos: out of every store that ssclass writes to, in every version.

First a new data version without them, pushed; then what is left of the old ones is deleted. A command that was stopped
in between is run again: it finds what is left. The ledger keeps how many photos were forgotten and which shards held
them, nothing that identifies a photo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssclass.data.batches import INCOMING, MANIFEST
from ssclass.data.build import QUARANTINE
from ssclass.data.dataset import Dataset, count
from ssclass.data.shards import Receipt, Row, Shard, write_shard
from ssclass.errors import InputError, NotFoundError
from ssclass.history.lineage import of_photo, shards_ever
from ssclass.store import Store
from ssclass.tracking.client import Tracking
from ssclass.workspace.dvc import DATA
from ssclass.workspace.ledger import Event
from ssclass.workspace.transaction import Change
from ssclass.workspace.workspace import Workspace

NOBODY = "0" * 64  # in place of a sha256, where a record keeps its length


@dataclass(frozen=True)
class Forgotten:
    """What was found and taken out. `models` saw a photo; `tags` can no longer be pulled."""

    batches: tuple[str, ...]
    models: tuple[dict[str, Any], ...]
    tags: tuple[str, ...]
    objects: tuple[str, ...]


def forget(workspace: Workspace, sha256s: Sequence[str], reason: str) -> Forgotten:
    """Take photos out of everything; InputError unless each is a whole sha256. NotFoundError when none is anywhere."""
    for sha256 in sha256s:
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise InputError(f"{sha256}: not a sha256 of 64 hex digits; `ssclass lineage` finds it from its beginning")
    gone = frozenset(sha256s)
    return workspace.write(lambda change: _forget(change, gone, reason))


def _forget(change: Change, gone: frozenset[str], reason: str) -> Forgotten:
    from ssclass.study.erase import clean

    workspace, version = change.workspace, change.version
    store, state = workspace.store, version.state
    holding = [shard for shard in shards_ever(workspace) if _holds(shard, gone)]
    models = _models(workspace, gone)
    heirs = _heirs(version.dataset, gone)
    now = {each.path: each.md5 for each in version.files(DATA)}
    old = {f"{DATA}/{shard.batch_id}.parquet" for shard in holding} & set(now)
    made = [_rewrite(change, shard, gone, heirs) for shard in holding if _path(shard) in old]
    md5s = {now[path] for path in old} | {
        str(state.revoked[shard.batch_id].body["md5"]) for shard in holding if shard.batch_id in state.revoked
    }
    md5s |= {md5 for event in version.events if event.kind == "forget" for md5 in event.body["md5s"]}
    tags = tuple(_tags_with(workspace, md5s))
    sheets = _erase_sheets(workspace, models)  # first: once the photo is gone, nothing says which runs saw it
    if holding:
        if made:
            change.add_shards(*made)
        event = Event.now(
            "forget",
            photos=len(gone),
            batches=[shard.batch_id for shard in holding],
            md5s=sorted(md5s),
            sequence=state.next_version,
            reason=reason,
        )
        change.publish(f"Forget {len(gone)} photos: {reason}", [event], tags=[f"data/{state.next_version}"])
    for md5 in md5s:
        workspace.objects.erase(md5)
        (workspace.private / "shards" / f"{md5}.parquet").unlink(missing_ok=True)
    objects = [*_erase_features(workspace, store, holding), *_erase_sent(store, gone)]
    objects += [*sheets, *_clean_records(workspace, store, gone), *clean(workspace, gone)]
    if not holding and not objects:
        raise NotFoundError(
            "none of these photos is in the data set, in incoming/ or in quarantine/; nothing to forget"
        )
    return Forgotten(tuple(shard.batch_id for shard in holding), models, tags, tuple(objects))


def _path(shard: Shard) -> str:
    return f"{DATA}/{shard.batch_id}.parquet"


def _holds(shard: Shard, gone: frozenset[str]) -> bool:
    receipt = shard.receipt
    named = {*receipt.relabel, *receipt.remove, *(item.key for item in receipt.refused)}
    return not gone.isdisjoint(named | {row.sha256 for row in shard.rows} | {row.group for row in shard.rows})


def _heirs(dataset: Dataset, gone: frozenset[str]) -> dict[str, str]:
    """New names of the groups that were named after a forgotten photo: their first member that remains."""
    heirs: dict[str, str] = {}
    for shard in dataset.shards:
        for row in shard.rows:
            if row.group in gone and row.sha256 not in gone:
                heirs.setdefault(row.group, row.sha256)
    return heirs


def _rewrite(change: Change, shard: Shard, gone: frozenset[str], heirs: dict[str, str]) -> Path:
    rows = [replace(row, group=heirs.get(row.group, row.group)) for row in shard.rows if row.sha256 not in gone]
    by_sha256: dict[str, Row] = {row.sha256: row for row in rows}
    old = shard.receipt
    receipt: Receipt = replace(
        old,
        accepted=len(rows),
        counts=count(rows),
        refused=tuple(item for item in old.refused if item.key not in gone),
        relabel={sha256: label for sha256, label in old.relabel.items() if sha256 not in gone},
        remove=tuple(sha256 for sha256 in old.remove if sha256 not in gone),
    )
    path = change.scratch / f"{shard.batch_id}.parquet"
    kept = change.version.photos(shard.batch_id, set(by_sha256))
    write_shard(path, ((by_sha256[sha256], data) for sha256, data in kept), receipt)
    return path


def _models(workspace: Workspace, gone: frozenset[str]) -> tuple[dict[str, Any], ...]:
    found: dict[str, dict[str, Any]] = {}
    for sha256 in gone:
        try:
            told = of_photo(workspace, sha256)
        except NotFoundError:
            continue
        for model in told["models"]:
            if found.get(model["key"], {}).get("use") != "trained on":
                found[model["key"]] = model
    return tuple(found.values())


def _tags_with(workspace: Workspace, md5s: set[str]) -> Iterable[str]:
    for tag in workspace.git("tag", "--list", "data/*", "run/*").splitlines():
        if any(each.md5 in md5s for each in workspace.at(tag).files(DATA)):
            yield tag


def _erase_features(workspace: Workspace, store: Store, shards: Iterable[Shard]) -> list[str]:
    names = {f"{shard.photos_digest}.npz" for shard in shards if shard.rows}
    for path in list((workspace.private / "features").rglob("*.npz")):
        if path.name in names:
            path.unlink()
    found = sorted({key for key, _, _ in store.versions("features/") if key.rsplit("/", 1)[-1] in names})
    for key in found:
        store.erase(key)
    return found


def _erase_sent(store: Store, gone: frozenset[str]) -> list[str]:
    """Photos as they were sent, and copies in quarantine: each version is read, as names say nothing."""
    erased = []
    for folder in (INCOMING, QUARANTINE):
        for key, version, _ in list(store.versions(f"{folder}/")):
            if hashlib.sha256(store.get_version(key, version)).hexdigest() in gone:
                store.erase(key, version)
                erased.append(key)
    return erased


def _clean_records(workspace: Workspace, store: Store, gone: frozenset[str]) -> list[str]:
    """Manifests without the photos, results with their place left blank; older versions of both go."""
    changed = []
    for path in list((workspace.private / "results").rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        if any(sha256 in text for sha256 in gone):
            path.write_text(_blanked(text, gone), encoding="utf-8")
    for folder in (INCOMING, "results"):
        for key, version, _ in list(store.versions(f"{folder}/")):
            if not key.endswith(".json"):
                continue
            data = store.get_version(key, version)
            if not any(sha256.encode() in data for sha256 in gone):
                continue
            newest = store.get(key) == data
            store.erase(key, version)
            changed.append(key)
            if newest:
                text = data.decode("utf-8")
                is_manifest = key.startswith(f"{INCOMING}/") and key.endswith(f"/{MANIFEST}")
                store.put(key, (_without(text, gone) if is_manifest else _blanked(text, gone)).encode())
    return changed


def _erase_sheets(workspace: Workspace, models: Iterable[dict[str, Any]]) -> list[str]:
    """Contact sheets in MLflow of the runs that learnt from a photo: it may be seen there."""
    tracking = Tracking.of(workspace)
    sheet = "figures/augmentation.png"
    return [f"run/{model['key']}: {sheet}" for model in models if tracking.erase(model["key"], sheet)]


def _without(manifest: str, gone: frozenset[str]) -> str:
    body = json.loads(manifest)
    for name in ("photos", "relabel", "remove"):
        if name in body:
            body[name] = [item for item in body[name] if item.get("sha256") not in gone]
    return json.dumps(body, ensure_ascii=False, indent=1)


def _blanked(text: str, gone: frozenset[str]) -> str:
    for sha256 in gone:
        text = text.replace(sha256, NOBODY)
    return text
