"""Progress of anything over two seconds: a bar on a terminal, a log line every few seconds otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_sink = None


def report(what: str, done: int, total: int) -> None:
    """Say how far a step is: `done` of `total` photos (or other units)."""
    if _sink is not None:
        _sink(what, done, total)


@contextmanager
def shown() -> Iterator[None]:
    """Show what is reported, on stderr, while the block runs."""
    global _sink
    before = _sink
    with _Bars() if sys.stderr.isatty() else _Lines() as sink:
        _sink = sink
        try:
            yield
        finally:
            _sink = before


@contextmanager
def lines(say: Callable[[str], None], meter: Callable[[str, int, int], None] | None = None) -> Iterator[None]:
    """Hand what is reported to `say` while the block runs, a line every few seconds; and to `meter`, as it came."""
    global _sink
    before = _sink
    _sink = _Lines(say, meter)
    try:
        yield
    finally:
        _sink = before


class _Bars:
    def __enter__(self) -> _Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._progress.start()
        self._bars: dict[str, object] = {}
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._bars[what], completed=done, total=total)  # type: ignore[arg-type]
        if done >= total:
            self._progress.remove_task(self._bars.pop(what))  # type: ignore[arg-type]

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


class _Lines:
    every = 5.0  # seconds

    def __init__(
        self, say: Callable[[str], None] | None = None, meter: Callable[[str, int, int], None] | None = None
    ) -> None:
        self._say = say or (lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        self._meter = meter
        self._last: dict[str, float] = {}
        self._said: set[str] = set()

    def __enter__(self) -> _Lines:
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last.setdefault(what, now) >= self.every or (done >= total and what in self._said):
            self._last[what] = now
            self._said.add(what)
            self._say(f"{what}: {done} of {total}")
            if self._meter is not None:
                self._meter(what, done, total)
        if done >= total:
            self._last.pop(what)
            self._said.discard(what)

    def __exit__(self, *error: object) -> None:
        pass
