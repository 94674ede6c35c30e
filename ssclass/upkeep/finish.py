"""Finishing what a `forget` began: whatever the ledger says is to be deleted, deleted wherever it still is.

Each retrain does this, on whichever machine: a command may have been killed, another machine may have written features
or a result back that it had begun before, and each clone has caches of its own. The ledger does not say which photos
were forgotten. What may stay follows from what is there: a shard that the ledger names, features of such a shard, a
result whose photos are in such shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from ssclass.data.batches import INCOMING, MANIFEST, bare
from ssclass.errors import FailedError, StoreError
from ssclass.files import write_whole
from ssclass.retrain.key import key_of
from ssclass.store import Store
from ssclass.study.erase import clean_rows, clean_steps, erase_pages, erase_reports, erase_sheets
from ssclass.upkeep.leftovers import blank_results, erase_features, erase_shards
from ssclass.upkeep.traces import Traces, known_shards
from ssclass.workspace.deliveries import find_deliveries
from ssclass.workspace.ledger import Event, State
from ssclass.workspace.workspace import Workspace

log = logging.getLogger(__name__)

SETTLES = timedelta(days=7)
"""A retrain that began before a photo was forgotten has ended by then: afterwards nothing is written back."""
MEMO = "forgotten.json"  # which forgettings this clone has finished


@dataclass
class Finished:
    """What was deleted or rewritten; the photos whose forgetting was finished; markers (batch, expected etag, etag).

    refused: what could not be deleted, and why, in words.
    """

    objects: list[str] = field(default_factory=list)
    photos: set[str] = field(default_factory=set)
    markers: list[tuple[str, str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def finish_forgetting(workspace: Workspace, *, alone: bool = False) -> Finished:
    """Delete what is left of forgotten photos, here and in the stores; again, or without a `forget`, nothing.

    `alone`: no batch is being taken in in this folder, so that what a killed process spooled there is nobody's.
    StoreError or TrackingError when a store cannot be used; what this user may not delete is only told.
    """
    version, done = workspace.at(), Finished()
    pending = unfinished(workspace, version.events)
    if not pending:
        return done
    journals = [_carry_out(workspace, str(event.body["journal"]), done) for event in pending if "journal" in event.body]
    shards = [shard for _, shard in known_shards(workspace)]
    done.objects += erase_shards(workspace, version.state.next_version)
    done.objects += erase_features(workspace, shards)
    photos = {row.sha256 for shard in shards for row in shard.rows}
    done.objects += blank_results(workspace, photos)
    done.objects += clean_rows(workspace, photos)
    done.objects += clean_steps(workspace, photos)
    models = {str(key) for event in pending for key in event.body.get("models", ())}
    asked = key_of(version) if version.dataset.used else None
    done.objects += erase_sheets(workspace, models, asked)
    seen = {str(key): int(event.body["sequence"]) for event in pending for key in event.body.get("models", ())}
    done.objects += erase_reports(workspace, seen)
    if alone:
        for folder in workspace.private.glob("ingest-*"):
            shutil.rmtree(folder, ignore_errors=True)
    if all(journals):
        finished = {str(event.body["sequence"]) for event in pending} | _finished(workspace)
        write_whole(workspace.private / MEMO, json.dumps(sorted(finished)))
    return done


def finish_here(workspace: Workspace) -> Finished:
    """The same, and where no retrain is under way in this folder, what a killed one spooled goes too."""
    with ExitStack() as stack:
        try:
            stack.enter_context(workspace.retraining(0))
            alone = True
        except FailedError:  # a retrain is under way here, and finishes it at its end
            alone = False
        return finish_forgetting(workspace, alone=alone)


def unfinished(workspace: Workspace, events: Iterable[Event]) -> list[Event]:
    """The forgettings that are young, or that this clone has not finished yet."""
    finished, now = _finished(workspace), datetime.now(UTC)
    return [
        event
        for event in events
        if event.kind == "forget"
        and "sequence" in event.body
        and (now - datetime.fromisoformat(event.at) < SETTLES or str(event.body["sequence"]) not in finished)
    ]


def _finished(workspace: Workspace) -> set[str]:
    try:
        return set(json.loads((workspace.private / MEMO).read_text()))
    except (OSError, ValueError, TypeError):
        return set()


# -- the note in the bucket: what only the person who asks can name ------------------------------------------


def journal_key(name: str) -> str:
    """Where the bucket keeps the note of a forgetting that is under way."""
    return f"results/forget/{name}.json"


def note(store: Store, name: str, found: Traces) -> None:
    """Write down what is to be deleted, before anything is."""
    store.put(journal_key(name), json.dumps(found.to_json()).encode())


def open_journals(workspace: Workspace) -> list[str]:
    """Names of the forgettings of the ledger whose note is still in the bucket: they are not finished."""
    there = {item.key for item in workspace.store.list("results/forget/")}
    names = (event.body.get("journal") for event in workspace.at().events if event.kind == "forget")
    return [str(name) for name in names if name and journal_key(name) in there]


def new_markers(store: Store, state: State, found: Traces) -> list[list[str]]:
    """(batch, etag now, etag after) of each manifest that is to be rewritten, were an etag the md5 of the bytes.

    The etag now is the one by which the ledger knows the delivery.
    """
    manifests = {key.split("/")[1]: key for key in found.records if _is_marker(key)}
    markers = []
    for ref in find_deliveries(store, state, list(manifests)):
        made = found.cleaned(manifests[ref.id], store.get(manifests[ref.id]) or b"")
        etag = hashlib.md5(made, usedforsecurity=False).hexdigest()
        if etag != bare(ref.etag):
            markers.append([ref.id, ref.etag, etag])
    return markers


def _is_marker(key: str) -> bool:
    return key.startswith(f"{INCOMING}/") and key.endswith(f"/{MANIFEST}") and key.count("/") == 2


def _carry_out(workspace: Workspace, name: str, done: Finished) -> bool:
    """Delete what the note of a forgetting names, then the note; False where this user may not."""
    store = workspace.store
    body = store.get(journal_key(name))
    if body is None:
        return True
    _keep_young(store, journal_key(name), body)
    found = Traces.from_json(json.loads(body))
    work = [(key, partial(store.erase, key, number)) for key, number in found.sent]
    work += [(key, partial(_rewrite_record, store, key, found, done.markers)) for key in found.records]
    before = len(done.refused)
    for key, step in work:
        try:
            step()
            done.objects.append(key)
        except StoreError as error:
            done.refused.append(str(error))
            log.warning("a photo that was forgotten is not gone yet: %s", error)
    done.objects += erase_pages(workspace)
    if len(done.refused) > before:
        return False
    store.erase(journal_key(name))
    _erase_notes(workspace, found.photos)
    done.photos |= found.photos
    return True


def _keep_young(store: Store, key: str, body: bytes) -> None:
    """Write a note anew before the bucket's rule takes it for an old result: nothing else names what is to go."""
    there = store.head(key)
    if there is not None and datetime.now(UTC) - there.modified > SETTLES:
        store.put(key, body)


def _erase_notes(workspace: Workspace, photos: frozenset[str]) -> None:
    """Notes that tell of these photos alone, which are forgotten now, and that no event names: of a command that failed
    where origin did not say whether its push had been applied."""
    store = workspace.store
    named = {journal_key(str(event.body["journal"])) for event in workspace.at().events if event.body.get("journal")}
    for item in list(store.list("results/forget/")):
        if item.key not in named:
            try:
                told = Traces.from_json(json.loads(store.get(item.key) or b""))
            except (ValueError, KeyError, TypeError):  # no note of ours
                continue
            if told.photos <= photos:
                store.erase(item.key)


def _rewrite_record(store: Store, key: str, found: Traces, markers: list[tuple[str, str, str]]) -> None:
    """Rewrite a manifest or quarantine's reasons, and erase every version that names a photo.

    `markers` gets the etag of a manifest, where it is not the one that was expected.
    """
    now = store.get(key)
    made = now if now is None else found.cleaned(key, now)
    if made is not None and made != now:
        store.put(key, made)
        head, etag = store.head(key), hashlib.md5(made, usedforsecurity=False).hexdigest()
        if _is_marker(key) and head is not None and head.etag != etag:
            markers.append((key.split("/")[1], etag, head.etag))
    for where, number, _ in list(store.versions(key)):
        if where == key and found.cleaned(key, data := store.get_version(key, number)) != data:
            store.erase(key, number)
