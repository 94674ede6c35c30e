"""A folder of files such as people really send: photos in every format and state, and what is no photo at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from ssclass.demo.drawings import draw

pillow_heif.register_heif_opener()

NAMES = (
    "寿司 🍣.jpg",
    "crêpe & co.jpg",
    "100%25 sure?.jpg",
    "a+b=c.jpg",
    "-rf.jpg",
    "naïve É.jpg",
    "'quoted\".jpg",
    "x" * 200,
)
NO_PHOTOS = {
    "letter.jpg": b"%PDF-1.7\n" + bytes(3000),
    "album.jpg": b"PK\3\4" + bytes(3000),
    "drawing.jpg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "error.jpg": b"<!doctype html><html><body>404 Not Found</body></html>",
    "notes.png": "Mittagessen im Büro\n".encode() * 9,
    "table.jpg": b"name,label\na,sushi\n",
    "film.jpg": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(3000),
    "program.jpg": b"\x7fELF" + bytes(3000),
    "zeros.jpg": bytes(5000),
    "empty.jpg": b"",
    "one byte.jpg": b"\xff",
    "start.jpg": b"\xff\xd8\xff\xe0" + bytes(3000),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n",
}


def odd_files(photos: list[bytes]) -> Iterator[tuple[str, bytes, bool | None]]:
    """(name, bytes, whether it is to come in; None: either will do) of about 270 files made of some 100 photos."""
    chance = np.random.default_rng(5)
    source = iter(photos)

    def photo(side: int = 400) -> Image.Image:
        picture = Image.open(io.BytesIO(next(source))).convert("RGB")
        picture.thumbnail((side, side))
        return picture

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        picture.save(out, kind, **options)
        return out.getvalue()

    for n in range(45):
        yield f"good {n}.jpg", next(source), True
    for name in NAMES:
        yield name, next(source), True
    for kind, name in (("PNG", "a.jpg"), ("JPEG", "a.png"), ("WEBP", "b.jpeg"), ("TIFF", "c.jpg"), ("BMP", "d.jpg")):
        yield f"wrong {name}", saved(photo(), kind), True
    yield "no extension", next(source), True
    yield "photo.txt", next(source), True
    for kind in ("PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "TGA"):
        data = saved(photo(), kind)
        yield f"whole.{kind.lower()}", data, kind not in ("PPM", "TGA")
        for share in (0.05, 0.4, 0.8):
            yield f"cut {share}.{kind.lower()}", data[: int(len(data) * share)], False
        for n in range(4):
            damaged = bytearray(data)
            for place in chance.integers(0, len(data), 12):
                damaged[place] ^= 1 << int(chance.integers(8))
            yield f"flipped {n}.{kind.lower()}", bytes(damaged), None
    for n in range(50):
        data = bytearray(next(source))
        for place in chance.integers(0, len(data), 20):
            data[place] ^= 1 << int(chance.integers(8))
        yield f"flipped {n}.jpg", bytes(data), None
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        data = next(source)
        yield f"cut {share}.jpg", data[: int(len(data) * share)], False
    for n in (1, 2):
        yield f"without its last {n}.jpg", saved(photo(), "JPEG", quality=90)[:-n], True
    yield "rubbish after the end.jpg", next(source) + chance.bytes(5000), True
    for mode in ("CMYK", "L", "YCbCr", "1"):
        kind = "TIFF" if mode == "YCbCr" else "PNG" if mode == "1" else "JPEG"
        yield f"mode {mode}.{kind.lower()}", saved(photo().convert(mode), kind), True
    for mode in ("P", "LA", "RGBA"):
        yield f"mode {mode}.png", saved(photo().convert("L" if mode == "LA" else "RGB").convert(mode), "PNG"), True
    for kind in ("PNG", "TIFF"):
        deep = np.asarray(photo().convert("L"), dtype=np.uint16) * 257
        yield f"16 bits.{kind.lower()}", saved(Image.fromarray(deep), kind), True
    yield "floats.tiff", saved(Image.fromarray(np.asarray(photo().convert("L"), dtype=np.float32) / 255), "TIFF"), True
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        frame = photo()
        more = [frame.rotate(90 * n) for n in (1, 2, 3)]
        yield f"moving.{kind.lower()}", saved(frame, kind, save_all=True, append_images=more), True
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        yield f"turned {tag}.jpg", saved(photo(), "JPEG", exif=exif), True
    yield "large.jpg", saved(photo().resize((8000, 7000)), "JPEG", quality=60), True
    yield "large.png", saved(photo().resize((6000, 6000)), "PNG", compress_level=1), True
    yield "bomb.png", saved(Image.new("1", (15_000, 15_000)), "PNG"), False
    yield "bomb by header.png", _png(100_000, 100_000, b""), False
    for kind in (b"zTXt", b"iCCP"):
        yield f"bomb in {kind.decode()}.png", _png(100, 100, _chunk(kind, b"a\0\0" + zlib.compress(bytes(9**8)))), False
    yield "bomb.gif", saved(Image.new("P", (12_000, 12_000)), "GIF"), False
    yield "bomb.tiff", saved(Image.new("1", (12_000, 12_000)), "TIFF", compression="group4"), False
    for name, data in NO_PHOTOS.items():
        yield name, data, False
    for side in ((1, 1), (5, 900), (31, 31)):
        yield f"small {side}.png", saved(Image.new("RGB", side), "PNG"), False
    for n in range(12):  # no food, but photos
        noise = chance.integers(0, 255, (90, 90, 3), dtype=np.uint8)
        yield f"noise {n}.png", saved(Image.fromarray(noise), "PNG"), True
    for n in range(12):
        ramp = np.linspace(0, 20 * n + 20, 200, dtype=np.uint8)
        grey = ramp[:, None] * np.ones((1, 200, 3), dtype=np.uint8) + np.uint8(n)
        yield f"plain {n}.png", saved(Image.fromarray(grey), "PNG"), None  # near-copies of each other, maybe


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, more: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", zlib.compress(bytes(30_100)))


def some_photos(folder: Path, photos: Path | None, classes: tuple[str, ...], count: int) -> dict[str, list[bytes]]:
    """`count` photos a class: real ones, else drawings, in the order of their names."""
    if photos is None:
        photos = folder
        draw(folder, classes, per_class=count, seed=77)
    return {name: [path.read_bytes() for path in sorted((photos / name).iterdir())[:count]] for name in classes}
