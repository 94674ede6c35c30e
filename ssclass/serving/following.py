"""Which champion answers: a thread asks MLflow twice a second what the alias points at, and opens what is new.

A new champion takes over once it is open, verified and warm. Until then, and while MLflow is away or what it names may
not answer, the last good one goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ssclass.errors import SsclassError, TrackingError
from ssclass.secrets import without_secrets
from ssclass.serving.champion import Champion
from ssclass.tracking.glance import Named

POLL = 0.5  # seconds between two questions
AGAIN = 15.0  # seconds after which a champion that may not answer is looked at again: it may have been mended
KEPT = 2  # champions in memory: a rollback to the one before needs no opening

log = logging.getLogger(__name__)


class Following:
    """The champion in force. `current` is read at the start of a request, which it then answers to the end."""

    def __init__(
        self, ask: Callable[[], Named | None], open_it: Callable[[Named], Champion], changed: Callable[[Champion], None]
    ) -> None:
        self._ask, self._open, self._changed = ask, open_it, changed
        self.current: Champion | None = None
        self.away: str | None = None
        self.refused: tuple[Named, str] | None = None
        self.asked_at: float | None = None
        self._again_at = 0.0
        self._kept: dict[Named, Champion] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def end(self) -> None:
        """Stop following."""
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.step()
            self._ended.wait(POLL)

    def step(self) -> None:
        """Ask once, and change over where the alias points elsewhere. Nothing is raised: the service goes on."""
        try:
            named = self._ask()
        except Exception as error:
            self._note_away(error)
            return
        self.away, self.asked_at = None, time.monotonic()
        if named is None or (self.current is not None and named == self.current.named):
            self.refused = None
            return
        if self.refused is not None and self.refused[0] == named and time.monotonic() < self._again_at:
            return
        try:
            champion = self._kept.pop(named, None) or self._open(named)
        except TrackingError as error:
            self._note_away(error)
            return
        except Exception as error:
            self._refuse(named, error)
            return
        self.refused = None
        self._kept[named] = champion
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        self.current = champion
        self._changed(champion)
        log.info("version %s (decision %s) answers", named.version, named.key)

    def _note_away(self, error: Exception) -> None:
        told = _told(error)
        if told != self.away:
            log.warning("%s", told)
        self.away = told

    def _refuse(self, named: Named, error: Exception) -> None:
        told = _told(error)
        if self.refused != (named, told):
            log.error("%s", told)
        self.refused, self._again_at = (named, told), time.monotonic() + AGAIN


def _told(error: Exception) -> str:
    text = str(error) if isinstance(error, SsclassError) else f"{type(error).__name__}: {error}"
    return without_secrets(text)
