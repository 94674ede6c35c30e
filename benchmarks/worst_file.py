"""What the most costly file that is accepted costs: seconds of a processor and MB of memory, format by format.

    python -m benchmarks.worst_file

Each file has as many pixels as `ingest.max_pixels` lets in (WebP: as its format does) and is inspected in a process of
its own, as at ingest. `refused` tells what crafted files, each at the edge of a limit, cost until they are refused.
"""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from ssclass.data.decoders import Decoders
from ssclass.data.images import Refused
from ssclass.params import IngestParams

WIDTH, HEIGHT = 9000, 7200  # 64.8 of 65 million pixels


def main() -> None:
    """Make each file, have it inspected, print a line; the worst in the end."""
    Image.MAX_IMAGE_PIXELS = None
    pillow_heif.register_heif_opener()
    print(f"{'file':28} {'MB':>6} {'seconds':>8} {'memory MB':>10}  said")
    worst = (0.0, 0.0)
    for name, make in files():
        data = make()
        seconds, memory, said = cost(data)
        print(f"{name:28} {len(data) / 1e6:6.1f} {seconds:8.1f} {memory:10.0f}  {said}", flush=True)
        if said == "accepted":
            worst = max(worst[0], seconds), max(worst[1], memory)
    print(f"worst accepted file: {worst[0]:.1f} s, {worst[1]:.0f} MB")


def cost(data: bytes) -> tuple[float, float, str]:
    """(processor seconds, peak MB of the process, accepted or why not) of one file; needs Linux's /proc."""
    children = os.times()
    decoders = Decoders(1)
    try:
        picture = decoders.inspect(data, IngestParams())
        said = "accepted" if picture.ended else "accepted, without its end"
    except Refused as refused:
        said = str(refused)[:90]
    process = decoders._free.get()
    memory = 0.0
    if process is not None and not process.ended:
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        memory = int(status.split("VmHWM:")[1].split()[0]) / 1024
        process.end()
    after = os.times()
    return after.children_user + after.children_system - children.children_user - children.children_system, memory, said


def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(what it is, how to make it)."""
    for kind, mode, options in (
        ("JPEG", "RGB", {"quality": 85, "subsampling": 0}),
        ("JPEG", "RGB", {"quality": 85, "progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {"compress_level": 6}),
        ("PNG", "RGBA", {"compress_level": 6}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("BMP", "1", {}),
        ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "PA", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("AVIF", "RGB", {"speed": 10, "subsampling": "4:4:4"}),
        ("HEIF", "RGBA", {"quality": 50}),
        ("JPEG2000", "RGB", {"quality_mode": "rates", "quality_layers": [20]}),
        ("JPEG2000", "RGBA", {"tile_size": (1024, 1024), "quality_mode": "rates", "quality_layers": [20]}),
    ):
        yield " ".join([kind, mode, *map(str, list(options)[-1:])]), lambda k=kind, m=mode, o=options: saved(k, m, o)
    yield "JPEG, 90 empty scans", lambda: empty_scans(90)
    yield "JPEG, 1,000 empty scans", lambda: empty_scans(1000)
    yield "JPEG without its end", lambda: saved("JPEG", "RGB", {"quality": 85})[:-2]
    yield "AVIF that says 64 x 64", lying_avif
    yield "PPM as text, comments", lambda: b"P3\n2000 2000 255\n" + b"1 2 3#\n" * 2_500_000
    yield "noise", lambda: os.urandom(19_000_000)


def saved(kind: str, mode: str, options: dict[str, Any]) -> bytes:
    """The largest picture of a mode, in little enough detail that the file stays under `ingest.max_bytes`."""
    width, height = (11_000, 5_900) if kind == "WEBP" else (WIDTH, HEIGHT)
    slope = (np.arange(width, dtype=np.uint32)[None] // 37 + np.arange(height, dtype=np.uint32)[:, None] // 23) % 256
    grey = Image.fromarray(slope.astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray((slope * 257).astype(np.uint16))
    elif mode == "PA":
        picture = grey.convert("P").convert("PA")
    else:
        picture = grey.convert("RGB").convert(mode) if mode != "F" else grey.convert("F")
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def empty_scans(count: int) -> bytes:
    """A progressive JPEG of full size whose last scan comes again and again, with nothing in it."""
    out = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0x10)
    return data[:-2] + (scan + b"\0") * count + data[-2:]


def lying_avif() -> bytes:
    """A picture of 12,000 x 12,000 whose container says 64 x 64."""
    out = io.BytesIO()
    Image.new("L", (12_000, 12_000), 90).save(out, "AVIF", speed=10)
    size = b"ispe\0\0\0\0" + struct.pack(">II", 12_000, 12_000)
    return out.getvalue().replace(size, b"ispe\0\0\0\0" + struct.pack(">II", 64, 64))


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all")
