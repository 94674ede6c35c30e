"""What takes longer than a page may: reading held batches, looking for suspicious labels; one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ssclass.errors import SsclassError
from ssclass.retrain.predict import Progress

log = logging.getLogger(__name__)


class Jobs:
    """Jobs by name. Each is begun once, and its result is kept."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="review")
        self._lock = threading.Lock()
        self._futures: dict[str, Future[Any]] = {}
        self._said: dict[str, str] = {}

    def begin(self, name: str, work: Callable[[Progress], Any]) -> None:
        """Begin a job, unless it is under way or done; one that failed begins again."""

        def tell(what: str, done: int, total: int) -> None:
            self._said[name] = f"{what}: {done} of {total}"

        with self._lock:
            before = self._futures.get(name)
            if before is None or (before.done() and before.exception() is not None):
                self._said[name] = "in a moment"
                self._futures[name] = self._pool.submit(work, tell)

    def result(self, name: str) -> Any:
        """The result of a job; None while it is under way, or was never begun. It raises what the job raised."""
        future = self._futures.get(name)
        return future.result() if future is not None and future.done() else None

    def state(self, name: str) -> str:
        """``none``, ``running``, ``failed`` or ``done``."""
        future = self._futures.get(name)
        if future is None:
            return "none"
        if not future.done():
            return "running"
        return "failed" if future.exception() is not None else "done"

    def said(self, name: str) -> str:
        """How far a job is, or why it failed, in words."""
        future = self._futures.get(name)
        error = future.exception() if future is not None and future.done() else None
        if isinstance(error, SsclassError):
            return str(error)
        if error is not None:
            log.error("a job of the review failed", exc_info=error)
            return "it failed; the terminal says why"
        return self._said.get(name, "")

    def drop(self, name: str) -> None:
        """Throw a job's result away, so that it can begin anew."""
        with self._lock:
            future = self._futures.get(name)
            if future is not None and future.done():
                del self._futures[name]

    def close(self) -> None:
        """Begin no more jobs; the one under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
