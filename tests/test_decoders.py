"""Photos are inspected in processes of their own: what is too costly, or crashes a decoder, costs one photo only."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ssclass.data.decoders import Decoders
from ssclass.data.decoders import decoders as shared
from ssclass.data.images import Picture, Refused, inspect
from ssclass.params import IngestParams

LIMITS = IngestParams()
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's")


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


_others: set[int] = set()
"""Process ids of those that other tests of this process left running."""


@pytest.fixture(autouse=True)
def _none_of_other_tests() -> None:
    shared().close()
    _others.clear()
    _others.update(process.pid for process in working())


@pytest.fixture
def one() -> Iterator[Decoders]:
    decoders = Decoders(1)
    yield decoders
    decoders.close()
    assert not working(), "they end with their owner"


@pytest.fixture(scope="module")
def slow() -> bytes:
    """Accepted, and over half a second of any processor."""
    with Image.linear_gradient("L") as slope:
        return saved(slope.resize((7800, 7800)).convert("RGBA"), "PNG", compress_level=6)


def working() -> list[psutil.Process]:
    """The processes of this one that inspect photos."""
    mine = [each for each in psutil.Process().children() if each.pid not in _others]
    return [each for each in mine if "ssclass.data.decoder" in " ".join(command(each))]


def command(process: psutil.Process) -> list[str]:
    """Its command line; of one that has ended, nothing."""
    try:
        return process.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


def outcome(decoders: Decoders, data: bytes) -> Picture | tuple[str, str]:
    try:
        return decoders.inspect(data, LIMITS)
    except Refused as refused:
        return refused.reason, refused.detail


def in_this_process(data: bytes) -> Picture | tuple[str, str]:
    try:
        return inspect(data, LIMITS)
    except Refused as refused:
        return refused.reason, refused.detail


def test_they_say_what_this_process_would(photos: Path) -> None:
    files = [path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))[:40]]
    files += [b"", b"text", files[0][:-2], files[0][:900], saved(Image.new("RGB", (2500, 2000), "red"), "WEBP")]
    decoders = Decoders(2)
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda data: outcome(decoders, data), files))
    assert len(working()) == 2
    decoders.close()
    assert told == [in_this_process(data) for data in files]


def test_a_photo_that_takes_too_long_is_refused_and_the_next_is_not(slow: bytes, photos: Path) -> None:
    decoders = Decoders(1, seconds=0)  # to the next full second of the process
    reason, detail = outcome(decoders, slow)
    assert (reason, detail) == ("too costly", "decoding it takes more time of a processor than a photo may")
    good = sorted(photos.glob("*/*.jpg"))[0].read_bytes()
    assert isinstance(outcome(decoders, good), Picture)
    decoders.close()


def test_a_crash_is_tried_once_more_and_then_refused(one: Decoders, slow: bytes, photos: Path) -> None:
    told: list[Picture | tuple[str, str]] = []
    thread = threading.Thread(target=lambda: told.append(outcome(one, slow)))
    thread.start()
    killed = set()
    while thread.is_alive():
        for process in working():
            if process.pid not in killed and process.cpu_times().user > 0.1:
                killed.add(process.pid)
                os.kill(process.pid, signal.SIGSEGV)
        time.sleep(0.02)
    assert len(killed) == 2
    assert told == [("corrupt", "the decoder crashed on it, twice (SIGSEGV)")]
    good = sorted(photos.glob("*/*.jpg"))[0].read_bytes()
    assert isinstance(outcome(one, good), Picture)


def test_a_photo_on_which_the_decoder_hangs_is_refused(photos: Path) -> None:
    decoders, good = Decoders(1, wait=3), sorted(photos.glob("*/*.jpg"))[0].read_bytes()
    told: list[Picture | tuple[str, str]] = []
    thread = threading.Thread(target=lambda: told.append(outcome(decoders, good)))
    thread.start()
    stopped = set()
    while thread.is_alive():
        for process in working():
            if process.pid not in stopped:
                stopped.add(process.pid)
                os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.002)
    assert len(stopped) == 2, "it was tried once more"
    assert told == [("too costly", "decoding it does not end")]
    decoders.wait = 600
    assert isinstance(outcome(decoders, good), Picture)
    decoders.close()


def test_a_process_that_was_killed_for_nothing_costs_no_photo(one: Decoders, photos: Path) -> None:
    good = sorted(photos.glob("*/*.jpg"))[0].read_bytes()
    first = outcome(one, good)
    (process,) = working()
    process.kill()
    assert outcome(one, good) == first


def test_they_end_with_a_parent_that_was_killed(photos: Path) -> None:
    script = (
        "import sys; from ssclass.data.decoders import decoders; from ssclass.params import IngestParams\n"
        "decoders().inspect(open(sys.argv[1], 'rb').read(), IngestParams()); print('ready', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(sorted(photos.glob("*/*.jpg"))[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    assert child.wait(30) is None or not child.is_running()


def test_they_know_no_secret_of_their_parent_and_write_nothing(one: Decoders, photos: Path) -> None:
    outcome(one, sorted(photos.glob("*/*.jpg"))[0].read_bytes())
    (process,) = working()
    assert not [name for name in process.environ() if name.startswith(("AWS_", "SSCLASS_"))]
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)


def test_memory_is_limited_to_what_a_header_explains() -> None:
    script = (
        "from ssclass.data.decoder import _memory, _memory_taken\n"
        "with _memory(_memory_taken() + 50_000_000):\n"
        "    try:\n        bytes(200_000_000)\n    except MemoryError:\n        print('bounded')\n"
        "bytes(200_000_000)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "bounded\n"
