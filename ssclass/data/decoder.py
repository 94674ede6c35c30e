"""One process that inspects photos of strangers: a loop that takes a photo from its parent and says what it is.

Started by `ssclass.data.decoders`, with nothing of its parent's environment. A message is its length (8 bytes,
big-endian) and so many bytes. For each photo the parent sends its limits (JSON; `seconds`: of a processor) and its
bytes. The answer is JSON: `{"picture": …}` or `{"refused": [reason, detail]}`; before a large picture is unpacked
`{"room": pixels}`, to which the parent sends an empty message when there is room. Where the limits name a `side`, the
answer is `{"pixels": [height, width]}` and the next message has them; `own`: in the photo's own shape.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from ssclass.data.images import LARGE, Picture, Refused, decode, inspect
from ssclass.data.shapes import OwnShape, Size

CPU_SECONDS = 60
"""Of a processor, for one photo. The slowest that was accepted took a tenth of it (benchmarks/worst_file.py)."""
MEMORY = 256_000_000, 32
"""Bytes beyond those of the process with its libraries, and bytes a pixel of the header's size."""

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def receive(link: socket.socket) -> bytes:
    """One message; EOFError when the other side is gone."""
    (size,) = struct.unpack(">Q", _exactly(link, 8))
    return _exactly(link, size)


def send(link: socket.socket, message: bytes) -> None:
    """Send one message."""
    link.sendall(struct.pack(">Q", len(message)))
    link.sendall(message)


def _exactly(link: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = link.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def main(descriptor: int) -> None:
    """Inspect what comes over the socket of this number, until its other side is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's, at whose end it ends
    link = socket.socket(fileno=descriptor)
    _settle()
    taken = _memory_taken()

    @contextmanager
    def room(pixels: int) -> Iterator[None]:
        if pixels > LARGE:
            send(link, json.dumps({"room": pixels}).encode())
            receive(link)
        with _memory(taken + MEMORY[0] + MEMORY[1] * pixels):
            yield

    with suppress(EOFError, ConnectionError):
        while True:
            limits, data = json.loads(receive(link)), receive(link)
            side, own = limits.pop("side", None), limits.pop("own", False)
            size: Size | None = OwnShape(side) if own else side
            with _processor(limits.pop("seconds")), _memory(taken + MEMORY[0] + 2 * len(data)):
                answer, pixels = _answer(data, SimpleNamespace(**limits), size, room)
            send(link, json.dumps(answer).encode())
            if pixels is not None:
                send(link, pixels)


def _answer(data: bytes, limits: Any, size: Size | None, room: Any) -> tuple[dict[str, Any], bytes | None]:
    try:
        if size is not None:
            found = decode(data, size, limits, room)
            return {"pixels": found.shape[:2]}, found.tobytes()
        return _described(inspect(data, limits, room)), None
    except Refused as error:
        return {"refused": [error.reason, error.detail]}, None
    except MemoryError:
        return {"refused": ["too costly", "takes more memory than a photo of its size may"]}, None
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # of inspecting, not of opening: a fault of ours, which must not stop a batch
        return {"refused": ["corrupt", f"cannot be described ({type(error).__name__}: {error})"]}, None


def _described(picture: Picture) -> dict[str, Any]:
    return {"picture": asdict(picture) | {"palette": picture.palette.hex()}}


def _settle() -> None:
    """Load what is needed, one thread each, and forbid what is not needed: core files, and writing to files."""
    import imagehash
    import pillow_heif
    from PIL import AvifImagePlugin, Image, ImageCms

    from ssclass.data.pixels import pillow

    pillow().init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pillow_heif.options.DECODE_THREADS = 1
    imagehash.dhash(Image.new("RGB", (9, 9)))
    ImageCms.createProfile("sRGB")
    if resource is not None:
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (0, 0))


def _memory_taken() -> int:
    """Bytes of address space that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - before anything else is imported
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextmanager
def _memory(limit: int) -> Iterator[None]:
    """No more than so many bytes of address space inside the block, where the system can limit that (macOS cannot)."""
    if resource is None or not sys.platform.startswith("linux"):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


@contextmanager
def _processor(seconds: int) -> Iterator[None]:
    """The process ends by SIGXCPU when the block takes more processor time than that."""
    if resource is None:
        yield
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
