"""Features of a batch that is not in the data set yet, computed here or on the cluster of the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.data.batches import INCOMING
from ssclass.data.shards import Shard, iter_photos
from ssclass.errors import ObjectError
from ssclass.params import Params
from ssclass.spread import elsewhere, spread
from ssclass.store import Store

if TYPE_CHECKING:
    from ssclass.model.features import Extracted, FeatureMemo, Features
    from ssclass.model.spec import Spec

TOGETHER = 64
"""Photos that a process of a cluster is asked about at once: a multiple of what any network is given at a time, so that
it is given the same ones together as here."""


def delivered_features(
    spec: Spec,
    memo: FeatureMemo,
    store: Store,
    shard: Shard,
    path: Path,
    params: Params,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Features of a batch's photos in the order of its shard, whose file is at `path`.

    On a cluster each process fetches its photos from the batch's folder in S3, and holds them against their sha256.
    Where one is no longer there as it was, all are computed here, from the shard.
    """
    from ssclass.model.extraction import make_extractor
    from ssclass.model.features import shard_features

    def extracted(spec: Spec, report: Callable[[int], None]) -> Extracted | None:
        return _extracted_elsewhere(store, shard, params, spec, report)

    return shard_features(
        spec,
        memo,
        shard,
        lambda: iter_photos(path),
        extractor=partial(make_extractor, engine=params.features.engine),
        progress=progress,
        extracted=extracted if elsewhere(store.settings) else None,
    )


def _extracted_elsewhere(
    store: Store, shard: Shard, params: Params, spec: Spec, report: Callable[[int], None]
) -> Extracted | None:
    """What `ssclass.model.extraction.extract` gives; None where it has to be done here.

    Adopted models would have to travel.
    """
    from ssclass.model.spec import ModelSpec

    if isinstance(spec.network, ModelSpec):
        return None
    wanted = set(spec.photos(shard.rows))
    asked = [(row.sha256, row.key) for row in shard.rows if row.sha256 in wanted]
    parts = (asked[at : at + TOGETHER] for at in range(0, len(asked), TOGETHER))
    arrays: dict[str, np.ndarray] = {}
    done = 0
    make = partial(_extracting, store, f"{INCOMING}/{shard.batch_id}/", spec, params)
    for found in spread(store.settings, make, parts):
        if found is None:
            return None
        for name, part in found.items():
            if name not in arrays:
                arrays[name] = np.empty((len(asked), *part.shape[1:]), part.dtype)
            arrays[name][done : done + len(part)] = part
        done += len(part)
        report(done)
    return tuple(sha256 for sha256, _ in asked), arrays


def _extracting(
    store: Store, prefix: str, spec: Spec, params: Params
) -> Callable[[Sequence[tuple[str, str]]], dict[str, Any] | None]:
    """A function of (sha256, key) of some photos: their feature arrays, None where one of them is another now."""
    from ssclass.model.extraction import extract, make_extractor

    extractor = make_extractor(spec.network, params.features.engine)

    def extracted(asked: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
        photos = []
        for sha256, key in asked:
            try:
                data = store.get(prefix + key, limit=params.ingest.max_bytes + 1)  # another may be of any size
            except ObjectError:
                return None
            if data is None or hashlib.sha256(data).hexdigest() != sha256:
                return None
            photos.append((sha256, data))
        return extract(spec, photos, extractor)[1]

    return extracted
