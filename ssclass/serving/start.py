"""A service of a workspace's champion, put together from its parts."""

from __future__ import annotations

import threading
from functools import partial

from ssclass.params import IngestParams
from ssclass.serving.champion import Champion, named, open_champion
from ssclass.serving.collecting import Collector
from ssclass.serving.following import Following
from ssclass.serving.loop import Loop
from ssclass.serving.metrics import Metrics
from ssclass.serving.service import Service
from ssclass.settings import Settings
from ssclass.tracking.client import Tracking
from ssclass.tracking.glance import Named
from ssclass.workspace.workspace import Workspace


def start(workspace: Workspace, settings: Settings, key: str | None) -> Service:
    """The service of the champion of a workspace, which begins to follow the alias once it runs.

    `settings` are the workspace's, with a patience that suits a poll. Photos keep to the limits that the workspace's
    params.yaml sets for batches, but may be small.
    """
    tracking, metrics = Tracking(settings), Metrics()
    ingest = workspace.at().params.ingest

    def changed(champion: Champion) -> None:
        metrics.switches.inc()

    def count(outcome: str) -> None:
        metrics.collected.labels(outcome).inc()

    lock = threading.Lock()  # both bring the clone up to date

    def open_it(asked: Named) -> Champion:
        with lock:
            return open_champion(workspace, tracking, asked)

    following = Following(partial(named, tracking), open_it, changed)
    limits = IngestParams(max_bytes=ingest.max_bytes, max_pixels=ingest.max_pixels, min_side=1)
    at = workspace.settings
    collector = None
    if at.collect_photos:
        size = round(at.collect_megabytes * 1e6)
        collector = Collector(workspace.store, at.collect_photos, size, at.collect_days, count)
    return Service(following, limits, metrics, key, collector, Loop(metrics.registry, workspace, lock))
