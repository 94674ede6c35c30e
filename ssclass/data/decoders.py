"""Photos of strangers are inspected in processes of their own, whose time and memory are limited.

A photo that is too costly, or that a decoder crashes on, is refused; the process is replaced and the others go on.
`concurrent.futures` gives up all its processes when one dies, and cannot end one that takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ssclass.data.decoder import CPU_SECONDS, receive, send
from ssclass.data.images import Limits, Picture, Refused
from ssclass.data.shapes import OwnShape, Size, side_of
from ssclass.errors import FailedError
from ssclass.spread import crowded

MOST = 4  # processes; each may take the memory of a large photo's frame, but only one at a time does
WAIT = 2 * CPU_SECONDS  # by the clock: then it hangs, or the machine has no time for it
_LIMITS = ("max_bytes", "max_pixels", "min_side", "animated")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "TMPDIR")
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from ssclass.data.decoder import main; main(int(sys.argv[1]))"
)


class _Gone(Exception):
    """The process ended, or did not answer; `why`: what to tell of its photo. `sure`: it would do so again."""

    def __init__(self, why: Refused, *, sure: bool) -> None:
        super().__init__(str(why))
        self.why = why
        self.sure = sure


class Decoders:
    """At most so many processes, started when they are needed. Safe to use from several threads, which wait in turn.

    A photo may take `seconds` of a processor, and `wait` by the clock. `one_large` is held while a large one is
    unpacked.
    """

    def __init__(
        self,
        count: int | None = None,
        seconds: int = CPU_SECONDS,
        wait: float = WAIT,
        one_large: threading.Lock | FileLock | None = None,
    ) -> None:
        self.seconds, self.wait = seconds, wait
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count or max(1, min(MOST, os.cpu_count() or 1))):
            self._free.put(None)
        self._one_large = one_large or threading.Lock()

    def inspect(self, data: bytes, params: Limits) -> Picture:
        """What `ssclass.data.images.inspect` says of a photo; raises Refused, for a decoder that crashes on it too.

        FailedError when no process can be started.
        """
        if not 0 < len(data) <= params.max_bytes:
            from ssclass.data.images import inspect

            return inspect(data, params)  # says so, and unpacks nothing
        answer, _ = self._ask(data, params, {})
        return _picture(answer["picture"])

    def decode(self, data: bytes, size: Size, params: Limits) -> NDArray[np.uint8]:
        """What `ssclass.data.images.decode` makes of a photo, uint8 [h, w, 3]; raises as :meth:`inspect` does."""
        if not 0 < len(data) <= params.max_bytes:
            from ssclass.data.images import inspect

            inspect(data, params)
        asked = {"side": side_of(size)} | ({"own": True} if isinstance(size, OwnShape) else {})
        answer, pixels = self._ask(data, params, asked)
        return np.frombuffer(pixels, np.uint8).reshape(*answer["pixels"], 3)

    def _ask(self, data: bytes, params: Limits, more: dict[str, int]) -> tuple[dict[str, Any], bytes]:
        told = {name: getattr(params, name) for name in _LIMITS} | {"seconds": self.seconds} | more
        limits = json.dumps(told).encode()
        try:
            return self._once(limits, data)
        except _Gone as gone:
            if gone.sure:
                raise gone.why from None
        try:  # the machine may have slept, or killed it for what another did
            return self._once(limits, data)
        except _Gone as gone:
            raise gone.why from None

    def _once(self, limits: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._free.get()
        try:
            if process is None or process.ended:
                process = _Process()
            return process.ask(limits, data, self._one_large, self.wait)
        except _Gone:
            process = None
            raise
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End the processes that are not at work; the next photo starts new ones."""
        for _ in range(self._free.qsize()):
            with suppress(queue.Empty):
                process = self._free.get_nowait()
                if process is not None:
                    process.end()
                self._free.put(None)


@cache
def decoders() -> Decoders:
    """The processes that this one shares among its threads; they end with it.

    Where this is one of many of a cluster's machine, it has one, and all of them together unpack one large photo.
    """
    shared = Decoders(1, one_large=_of_this_machine()) if crowded() else Decoders()
    atexit.register(shared.close)
    return shared


def _of_this_machine() -> FileLock:
    """A lock that all processes of this user on this machine share; each thread takes it for itself."""
    folder = Path(tempfile.gettempdir()) / f"ssclass-{getattr(os, 'getuid', int)()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return FileLock(folder / "large.lock")


class _Process:
    """One process, and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.link = ours
        here = str(Path(__file__).parents[2])
        path = [here, *(str(Path(each).resolve()) for each in sys.path if each)]
        with theirs:
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            # One arena and one thread: each more would reserve address space, which is what is limited.
            environment |= {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-B", "-c", _START, str(theirs.fileno()), json.dumps(path)],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise FailedError(
                    f"no process to decode photos in: {error.strerror}; close other programs, or allow more processes"
                ) from error

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask(
        self, limits: bytes, data: bytes, one_large: threading.Lock | FileLock, wait: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send a photo and wait for what is said of it, and for its pixels; raises Refused and _Gone."""
        holds = False
        self.link.settimeout(wait)
        try:
            send(self.link, limits)
            send(self.link, data)
            while "room" in (answer := json.loads(receive(self.link))):
                if not holds:
                    one_large.acquire()
                    holds = True
                send(self.link, b"")
            pixels = receive(self.link) if "pixels" in answer else b""
        except (OSError, EOFError, ValueError) as error:
            raise self._gone(error) from error
        finally:
            if holds:
                one_large.release()
        if "refused" in answer:
            raise Refused(*answer["refused"])
        return answer, pixels

    def _gone(self, error: Exception) -> _Gone:
        late = isinstance(error, TimeoutError)
        if late:
            self.process.kill()
        self.link.close()
        code = self.process.wait()
        if late:
            return _Gone(Refused("too costly", "decoding it does not end"), sure=False)
        if -code == getattr(signal, "SIGXCPU", None):
            return _Gone(
                Refused("too costly", "decoding it takes more time of a processor than a photo may"), sure=True
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Gone(Refused("corrupt", f"the decoder crashed on it, twice ({how})"), sure=False)

    def end(self) -> None:
        """Close the socket, at which the process ends by itself."""
        self.link.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _picture(told: dict[str, Any]) -> Picture:
    return Picture(**told | {"palette": bytes.fromhex(told["palette"])})
