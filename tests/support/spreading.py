"""Functions that tests spread over processes: each is made there, so they are in a module that Ray can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ssclass.data.decoders import decoders
from ssclass.data.images import Refused
from ssclass.errors import ObjectError
from ssclass.params import IngestParams
from ssclass.spread import crowded


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


def impatient() -> Callable[[bytes], tuple[str, int, int]]:
    """A function of a photo, which may take no time of a processor beyond the next full second.

    It answers why that is refused, or its sha256; in which process; and how many of its decoders that has.
    """
    assert crowded()
    decoders().seconds = 0

    def inspect(data: bytes) -> tuple[str, int, int]:
        import psutil

        try:
            said = decoders().inspect(data, IngestParams()).sha256
        except Refused as refused:
            said = f"{refused.reason}: {refused.detail}"
        at_work = [each for each in psutil.Process().children() if "ssclass.data.decoder" in " ".join(each.cmdline())]
        return said, os.getpid(), len(at_work)

    return inspect
