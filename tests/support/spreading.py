"""Functions that tests spread over processes: each is made there, so they are in a module that Ray can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ssclass.errors import ObjectError


def squares(first: Path) -> Callable[[int], tuple[int, int]]:
    """A function that kills its process over the first seventh item."""

    def square(number: int) -> tuple[int, int]:
        if number == 7 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05 * (number % 3))
        return number * number, os.getpid()

    return square


def forbidden() -> Callable[[int], int]:
    def ask(number: int) -> int:
        if number == 5:
            raise ObjectError("s3://bucket/5: an access rule forbids it", "AccessDenied")
        return number

    return ask


def deadly() -> Callable[[int], int]:
    return lambda number: os.kill(os.getpid(), signal.SIGKILL) or number  # type: ignore[func-returns-value]
