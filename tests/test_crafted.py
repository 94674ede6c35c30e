"""Files made to do harm, some hundreds of them by a seed: each is accepted or refused with a reason, in bounded means.

`FUZZ_FILES=20000 pytest tests/test_crafted.py` tries more; `FUZZ_SEED` others.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ssclass.data.decoder import MEMORY
from ssclass.data.decoders import Decoders
from ssclass.data.images import Picture, Refused, decode
from ssclass.data.metadata import personal, strip
from ssclass.params import IngestParams
from ssclass.text import printable
from tests.support.telling import picture, saved, variants

FILES = int(os.environ.get("FUZZ_FILES", "400"))
SEED = int(os.environ.get("FUZZ_SEED", "12"))
LIMITS = IngestParams()
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 12_000)
REASONS = ("corrupt", "truncated", "not an image", "empty", "too many pixels", "too small", "too costly", "raw file")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def seeds(photos: Path) -> list[bytes]:
    """Whole files of every format, plain, tiled, animated, with alpha, and with all that can be beside a picture."""
    with Image.open(sorted(photos.glob("*/*.jpg"))[0]) as photo:
        small = photo.convert("RGB")
    small.thumbnail((160, 160))
    kinds = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "HEIF", "AVIF", "JPEG2000", "BMP", "PPM", "TGA")
    whole = [saved(kind, small) for kind in kinds]
    whole += [saved("JPEG", small, progressive=True), saved("JPEG2000", small, tile_size=(64, 64))]
    whole += [saved("TIFF", small, compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")]
    whole += [saved("TIFF", picture(mode).convert(mode)) for mode in ("P", "LA", "F", "I;16", "CMYK", "1")]
    whole += [
        saved(kind, small, save_all=True, append_images=[small.rotate(9)]) for kind in ("GIF", "PNG", "WEBP", "MPO")
    ]
    return whole + [data for _, _, data in list(variants())[::4]]


def crafted(whole: list[bytes], count: int) -> Iterator[bytes]:
    """Files changed where it hurts: numbers of the header, lengths, parts left out, doubled, or of another format."""
    chance = np.random.default_rng(SEED)

    def place(data: bytes) -> int:  # half of them in the first 200 bytes, where headers are
        return int(chance.integers(min(len(data), 200) if chance.random() < 0.5 else len(data)))

    for n in range(count):
        data = bytearray(whole[n % len(whole)])
        for _ in range(int(chance.integers(1, 4))):
            at, kind = place(data), int(chance.integers(6))
            if kind == 0:
                order = "><"[int(chance.integers(2))]
                data[at : at + 4] = struct.pack(f"{order}I", EXTREMES[int(chance.integers(len(EXTREMES)))])
            elif kind == 1:
                order = "><"[int(chance.integers(2))]
                data[at : at + 2] = struct.pack(f"{order}H", EXTREMES[int(chance.integers(len(EXTREMES)))] & 0xFFFF)
            elif kind == 2:
                data[at] ^= 1 << int(chance.integers(8))
            elif kind == 3:
                part = bytes(data[at : at + int(chance.integers(2, 400))])
                data[at:at] = part * int(chance.integers(1, 60))
            elif kind == 4:
                del data[at : at + int(chance.integers(1, 300))]
            else:
                other = whole[int(chance.integers(len(whole)))]
                data[at:] = other[place(other) :]
        yield bytes(data)


def outcome(decoders: Decoders, data: bytes) -> Picture | Refused:
    try:
        return decoders.inspect(data, LIMITS)
    except Refused as refused:
        return refused


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_crafted_files_end_in_a_picture_or_a_reason(photos: Path) -> None:
    decoders, others = Decoders(1), set(psutil.Process().children())
    told: Counter[str] = Counter()
    for data in crafted(seeds(photos), FILES):
        seen = outcome(decoders, data)
        told[seen.reason if isinstance(seen, Refused) else "accepted"] += 1
        if isinstance(seen, Refused):
            assert printable(seen.detail) == seen.detail
            assert 0 < len(seen.detail) <= 310
            continue
        assert seen.width * seen.height <= LIMITS.max_pixels
        assert decode(data, 32).shape == (32, 32, 3), "what comes in can be learnt from"
        personal(data)
        plain = strip(data)
        assert np.abs(decode(plain, 32).astype(int) - decode(data, 32)).max() <= 2
    print(dict(told))
    (worker,) = set(psutil.Process().children()) - others
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    decoders.close()
    assert peak < 2 * MEMORY[0] + MEMORY[1] * LIMITS.max_pixels
    assert told["accepted"] > FILES / 20
    assert 4 < len(told) <= len(REASONS) + 1
    assert set(told) <= {*REASONS, "accepted"}


def test_rubbish_of_every_length_is_refused() -> None:
    decoders, chance = Decoders(1), np.random.default_rng(SEED)
    starts = [saved(kind)[:12] for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "HEIF", "AVIF", "JPEG2000", "BMP")]
    for start in [b"", *starts]:
        for length in (0, 1, 7, 40, 5000):
            with pytest.raises(Refused) as caught:
                decoders.inspect(start + chance.bytes(length), LIMITS)
            assert caught.value.reason in (
                "corrupt",
                "truncated",
                "not an image",
                "empty",
                "too many pixels",
                "too small",
            )
    decoders.close()


def test_a_header_that_promises_much_takes_little(tmp_path: Path) -> None:
    """65 million pixels by the header, and a few bytes of data: refused before they are made."""
    decoders = Decoders(1)
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "BMP", "JPEG2000"):
        out = io.BytesIO()
        Image.new("L", (8000, 8000)).save(out, kind)
        told = outcome(decoders, out.getvalue()[:400])
        assert isinstance(told, Refused)
        assert told.reason in ("truncated", "corrupt")
    decoders.close()
