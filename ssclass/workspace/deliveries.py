"""Which delivery of a batch a marker in S3 stands for: one that the ledger knows, or another.

A sender may write a marker again at any time. Where the batch's files are what they were when it was decided on, that
is the same delivery, and the decision stands. Where they are others, it is another delivery, also if the marker has the
same bytes: an empty ``_SUCCESS``, or a manifest whose photos were replaced. Files are listed only of a batch whose
marker was written again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ssclass.data.batches import BatchRef, bare, contents, find_batches, list_batches
from ssclass.store import Store
from ssclass.workspace.ledger import State


def list_deliveries(store: Store, state: State, known: Collection[str] = ()) -> list[BatchRef]:
    """Every batch whose marker is there, but for `known` ids, in the order (marker time, id)."""
    return [_recognised(store, state, ref) for ref in list_batches(store, known)]


def find_deliveries(store: Store, state: State, names: Sequence[str]) -> list[BatchRef]:
    """Those of these batches whose marker is there, in the order of the names."""
    return [_recognised(store, state, ref) for ref in find_batches(store, names)]


def told_apart_by(store: Store, ref: BatchRef) -> dict[str, Any]:
    """What a ledger line says of a delivery, so that it is recognised: `marked` (time of its marker) and `contents`."""
    return {"marked": ref.time, "contents": contents(store, ref)}


def _recognised(store: Store, state: State, ref: BatchRef) -> BatchRef:
    """The batch with the etag by which the ledger knows this delivery; with one of its own where it does not."""
    marker = bare(ref.etag)
    known = {etag: of for etag, of in state.deliveries.get(ref.id, {}).items() if bare(etag) == marker}
    if not known:
        return ref
    for etag, delivery in known.items():
        if delivery.marked in (None, ref.time):  # None: of an older version, which did not look at times
            return replace(ref, etag=etag)
    if any(delivery.contents is not None for delivery in known.values()):
        there = contents(store, ref)
        for etag, delivery in reversed(known.items()):
            if delivery.contents == there:
                return replace(ref, etag=etag)
    return replace(ref, etag=f"{marker}@{ref.time}")
