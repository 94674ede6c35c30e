"""A lock on a folder of the workspace, between processes of one machine; whoever waits is told who holds it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ssclass.errors import FailedError

log = logging.getLogger(__name__)

QUIET = 2.0
"""Seconds of waiting that are not worth a word."""


class Lock:
    """The lock of one file. The same process may take it again inside; the operating system frees it after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path)

    @contextmanager
    def held(self, wait: float | None = None) -> Iterator[None]:
        """Hold the lock; FailedError when another process still holds it after `wait` seconds (None: no limit).

        Who waits for more than two seconds is told who holds it and since when.
        """
        self._acquire(wait)
        holder = self.path.with_suffix(".holder")
        outermost = self._lock.lock_counter == 1
        if outermost:
            with suppress(OSError):
                command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
                holder.write_text(json.dumps({"pid": os.getpid(), "command": command, "since": time.time()}))
        try:
            yield
        finally:
            if outermost:
                holder.unlink(missing_ok=True)
            self._lock.release()

    def _acquire(self, wait: float | None) -> None:
        first = QUIET if wait is None else min(QUIET, wait)
        try:
            self._lock.acquire(timeout=first)
        except Timeout:
            if wait is not None and wait <= first:
                raise self._busy() from None
            log.warning("%s: waiting for %s", self.path.parent.parent, self.holder())
            try:
                self._lock.acquire(timeout=-1 if wait is None else wait - first)
            except Timeout:
                raise self._busy() from None

    def holder(self) -> str:
        """Who holds the lock, in words: its process id, its command, and since when."""
        try:
            told = json.loads(self.path.with_suffix(".holder").read_text())
            since = datetime.fromtimestamp(told["since"]).astimezone()
            return f"process {told['pid']} ({told['command']}), which writes here since {since:%H:%M:%S}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process that writes here"

    def _busy(self) -> FailedError:
        return FailedError(
            f"{self.path.parent.parent}: busy with {self.holder()}; wait for it, or end it and run this again"
        )
