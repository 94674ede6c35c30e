"""Hints that a batch may be waiting: from S3's notifications, and from the sweep that needs none.

A notification may come twice, late, out of order, or be about something else: all it can do is make a retrain look
at S3, a little early. The sweep finds whatever no notification told, or whose event Prefect lost.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from typing import Any
from urllib.parse import unquote_plus

from ssclass.errors import SsclassError
from ssclass.names import RETRAIN, resource_of, retrain_deployment
from ssclass.notices import post
from ssclass.retrain.ingest import waiting
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.text import shown
from ssclass.workspace.origin import Origin

QUIET = 30.0  # seconds between two events: batches that arrive meanwhile share the second, a minute's cause three
SWEPT = "sweep"
SETTLE = 30.0  # seconds that an event has to become a run before a sweep asks what was missed
SOON = 15.0  # seconds between tries while something is away, or a retrain is under way
LONGEST = 6 * 3600.0  # seconds that no retrain takes; the longest pause before a failing one is tried again
PAGE = 100  # flow runs that are asked for at a time
LONGEST_NAME = 100  # characters of a batch's id
MOST = 1000  # batches that wait to be told of: one event makes a retrain look at all there are
MARKER = re.compile(r"(?:(.*)/)?incoming/([^/]+)/(?:manifest\.json|_SUCCESS)")
Serve = Callable[[Callable[[bytes], None]], None]
log = logging.getLogger(__name__)


def batches_in(body: bytes | str, place: str) -> set[str]:
    """Ids of the batches at `place` whose markers a notification names. Anything else, in it or instead, is nothing.

    `place`: bucket, or bucket/prefix.

    Understood: S3's and MinIO's ``Records``, the same inside an SNS envelope, and EventBridge's ``detail``.
    """
    try:
        message = json.loads(body)
        if isinstance(message, dict) and isinstance(message.get("Message"), str):
            message = json.loads(message["Message"])
    except (ValueError, RecursionError):  # brackets without end
        return set()
    if not isinstance(message, dict):
        return set()
    records = message.get("Records")
    named: list[Any] = (
        [each.get("s3") for each in records if isinstance(each, dict)] if isinstance(records, list) else []
    )
    found = set()
    for told, encoded in [*((each, True) for each in named), (message.get("detail"), False)]:
        try:
            name, key = told["bucket"]["name"], told["object"]["key"]
        except (TypeError, KeyError):
            continue
        if not isinstance(key, str):
            continue
        matched = MARKER.fullmatch(unquote_plus(key) if encoded else key)
        if matched and "/".join(filter(None, (name, matched[1]))) == place:
            found.add(matched[2])
    return found


@dataclass
class Hints:
    """Batches to tell of: the first at once, those that follow within `quiet` seconds together, none twice in a row."""

    quiet: float = QUIET
    clock: Callable[[], float] = time.monotonic
    told: float = float("-inf")
    pending: dict[str, str] = field(default_factory=dict)
    recent: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, batches: Iterable[str], source: str) -> None:
        """Note batches; from any thread."""
        with self.lock:
            for batch in batches:
                if len(self.pending) >= MOST:
                    return
                if source == SWEPT or self.clock() - self.recent.get(batch, float("-inf")) > SETTLE:
                    self.pending.setdefault(batch, source)

    def due(self) -> dict[str, str]:
        """The batches to tell of now, with who named them; call :meth:`done` once that worked."""
        with self.lock:
            return dict(self.pending) if self.clock() - self.told >= self.quiet else {}

    def done(self, batches: Iterable[str]) -> None:
        """These have been told of."""
        with self.lock:
            self.told = self.clock()
            self.recent = {batch: at for batch, at in self.recent.items() if self.told - at <= SETTLE}
            for batch in batches:
                self.pending.pop(batch, None)
                self.recent[batch] = self.told


@dataclass
class Backoff:
    """When to sweep the same thing up again: after `first` seconds, then twice that, … while it stays the same."""

    first: float
    clock: Callable[[], float] = time.monotonic
    seen: tuple[str, ...] = ()
    pause: float = 0.0
    until: float = float("-inf")

    def lets(self, found: tuple[str, ...]) -> bool:
        """Whether to tell of what a sweep found."""
        if found != self.seen:
            self.seen, self.pause, self.until = found, self.first / 2, float("-inf")
        if not found or self.clock() < self.until:
            return False
        self.pause = min(self.pause * 2, LONGEST)
        self.until = self.clock() + self.pause - 1
        return True


def tell(settings: Settings, batches: dict[str, str]) -> None:
    """One event for all these batches; FailedError when Prefect did not take it."""
    names = sorted(shown(batch, LONGEST_NAME) for batch in batches)
    post(
        "ssclass.batch.arrived",
        resource_of(settings, f"ssclass.batch.{names[0]}"),
        {"batch": ", ".join(names)[:200], "count": len(names), "source": ", ".join(sorted(set(batches.values())))},
    )


def sweep(settings: Settings, origin: Origin) -> tuple[str, ...] | None:
    """Names of what waits: marked batches that are not in the data version, and data that nobody decided on.

    Reads a listing and the ledger, no photos. None when a retrain is under way or about to start: it will see them.
    """
    if retrain_under_way(settings):
        return None
    state = origin.state()
    found = [ref.id for ref in waiting(Store(settings), state)]
    if not found:
        found = list(state.undecided_changes())
    return tuple(found)


def retrain_under_way(settings: Settings) -> bool:
    """Whether a retrain of this workspace runs, or waits for its turn.

    Ours are those of our deployment, and those that a person started in our folder or on our origin. One that was to
    begin more than `LONGEST` ago is a ghost.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateName,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound

    recent = FlowRunFilterExpectedStartTime.model_validate({"after_": datetime.now(UTC) - timedelta(seconds=LONGEST)})

    def runs(**state: Any) -> Iterator[Any]:
        for page in count():
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[RETRAIN])),
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(**state), expected_start_time=recent),
                limit=PAGE,
                offset=page * PAGE,
            )
            yield from found
            if len(found) < PAGE:
                return

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(retrain_deployment(settings)).id
        except ObjectNotFound:
            deployment = None
        ours = {str(settings.workspace), settings.git, Origin(settings).url}
        busy = [StateType.RUNNING, StateType.PENDING]
        soon = ["Late", "AwaitingConcurrencySlot", "AwaitingRetry"]
        return any(
            run.deployment_id == deployment if run.deployment_id else run.parameters.get("workspace") in ours
            for run in chain(runs(type=FlowRunFilterStateType(any_=busy)), runs(name=FlowRunFilterStateName(any_=soon)))
        )


def listen(settings: Settings, sqs: str | None, serve: Serve | None, stop: threading.Event) -> None:
    """Listen until `stop`: to a queue by its URL, to whatever `serve` hands over; and sweep, first of all."""
    hints, backoff, origin = Hints(), Backoff(settings.sweep), Origin(settings)

    def heard(body: bytes, source: str = "webhook") -> None:
        found = batches_in(body, settings.place)
        if found:
            log.warning("%s: %s", source, ", ".join(sorted(found)))
        hints.add(found, source)

    if serve:
        serve(heard)
    if sqs:
        from ssclass.stack.queue import poll

        threading.Thread(target=poll, args=(settings, sqs, heard, stop), daemon=True, name="sqs").start()

    due_sweep, failed = float("-inf"), 0
    while not stop.wait(0.5):
        try:
            if time.monotonic() >= max(due_sweep, hints.told + SETTLE):
                due_sweep = time.monotonic() + min(SOON, settings.sweep)  # if nothing comes of it
                found = sweep(settings, origin)
                if found is not None:  # else soon again: the retrain may have been killed, and nobody noticed yet
                    due_sweep = time.monotonic() + settings.sweep
                if found is not None and backoff.lets(found):
                    log.warning("sweep: %s", ", ".join(found))
                    hints.add(found, SWEPT)
            if due := hints.due():
                tell(settings, due)
                hints.done(due)
            failed = 0
        except Exception as error:  # the loop outlives whatever is away
            failed += 1
            if not isinstance(error, SsclassError):
                log.debug("listen", exc_info=True)
            log.warning("%s; trying again", error or type(error).__name__)
            stop.wait(min(2.0**failed, SOON))
