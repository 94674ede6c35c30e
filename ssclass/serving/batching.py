"""Photos of concurrent requests go through the network together: what waits when it is free is the next batch.

Nobody is kept waiting for a batch to fill. All photos of a request are answered by the champion that it began with.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.serving.champion import Champion

TOGETHER = 8
"""Photos in a batch, at most; on two cores more are no faster, and make the first of them wait for the last."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    champion: Champion
    image: NDArray[np.uint8]
    answer: Future[NDArray[np.float64]] = field(default_factory=Future)


class Batcher:
    """One thread that asks the engine; `observe` is told the size of each batch."""

    def __init__(self, observe: Callable[[int], None] = lambda size: None) -> None:
        self._observe = observe
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._held: _Waiting | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, champion: Champion, image: NDArray[np.uint8]) -> Future[NDArray[np.float64]]:
        """The probabilities, float64 [classes], of a decoded image uint8 [h, w, 3], once they are there."""
        waiting = _Waiting(champion, image)
        self._queue.put(waiting)
        return waiting.answer

    def end(self) -> None:
        """Answer what waits, and stop."""
        self._queue.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            wanted = [each for each in batch if each.answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _next(self) -> list[_Waiting] | None:
        """What waits for one champion; None at the end."""
        first = self._held or self._queue.get()
        self._held = None
        if first is None:
            return None
        batch = [first]
        while len(batch) < TOGETHER:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)
                break
            if following.champion is not first.champion:
                self._held = following
                break
            batch.append(following)
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        self._observe(len(batch))
        found: Any
        try:
            found = batch[0].champion.engine.predict([each.image for each in batch])
        except Exception as error:
            for each in batch:
                each.answer.set_exception(error)
            return
        for each, answer in zip(batch, found, strict=True):
            each.answer.set_result(answer)
