"""Keeping doubtful photos while answers go out: a thread of its own, few photos in memory, and never an error.

What comes faster than S3 takes it is let go. When as many photos, or bytes, are kept as may be, the oldest goes for
each new one; what is older than the days that were set goes by itself.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from ssclass.secrets import without_secrets
from ssclass.serving.collected import Collected, collected, keep, remove_old
from ssclass.store import Store

WAITING = 16  # photos that wait to be kept
WAITING_BYTES = 32_000_000
PAUSE = 60.0  # seconds without another try after S3 did not do it
EVERY = 3600.0  # seconds between two looks for what is too old

log = logging.getLogger(__name__)


class Collector:
    """Keeps at most `photos` photos and `size` bytes under ``collect/``, each for `days` days.

    `count` is told what became of each that was offered: kept, known, dropped or failed.
    """

    def __init__(self, store: Store, photos: int, size: int, days: float, count: Callable[[str], None]) -> None:
        self._store, self._photos, self._size, self._days, self._count = store, photos, size, days, count
        self._queue: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._lock, self._bytes = threading.Lock(), 0
        self._kept: deque[Collected] | None = None
        self._looked_at = self._failed_at = -float("inf")
        self._thread = threading.Thread(target=self._run, name="collecting", daemon=True)
        self._thread.start()

    def offer(self, data: bytes) -> None:
        """Keep a photo later, if there is room for it; returns at once, and raises nothing."""
        with self._lock:
            if self._bytes + len(data) > WAITING_BYTES:
                self._count("dropped")
                return
            self._bytes += len(data)
        try:
            self._queue.put_nowait(data)
        except queue.Full:
            self._done(data)
            self._count("dropped")

    def end(self) -> None:
        """Let go what waits, and stop."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._queue.put(None)
        self._thread.join(10)

    def _done(self, data: bytes) -> None:
        with self._lock:
            self._bytes -= len(data)

    def _run(self) -> None:
        while True:
            try:
                data = self._queue.get(timeout=EVERY)
            except queue.Empty:
                data = b""
            if data is None:
                return
            try:
                outcome = self._step(data)
            except Exception as error:  # S3 is away, or full, or forbids it: the answers go on
                outcome, self._kept, self._failed_at = "failed", None, time.monotonic()
                log.warning("photos are not kept: %s", without_secrets(str(error)))
            if data:
                self._done(data)
                self._count(outcome)

    def _step(self, data: bytes) -> str:
        if time.monotonic() - self._failed_at < PAUSE:
            return "dropped"
        if self._kept is None or time.monotonic() - self._looked_at > EVERY:
            remove_old(self._store, self._days)
            self._kept, self._looked_at = deque(collected(self._store)), time.monotonic()
        if not data or len(data) > self._size:
            return "dropped"
        sha256 = hashlib.sha256(data).hexdigest()
        if any(each.sha256 == sha256 for each in self._kept):
            return "known"
        room = self._size - len(data)
        while len(self._kept) >= self._photos or sum(each.size for each in self._kept) > room:
            self._store.erase(self._kept[0].key)
            self._kept.popleft()
        self._kept.append(keep(self._store, data, sha256))
        return "kept"
