"""Pictures drawn by code, seeded: stand-ins for photos in the demo and in tests. Nobody should mistake them for food.

Each class has its own shapes, colours overlap, and a share of the pictures (`noise`) shows the shapes of another
class as well, so that a classifier can learn them but not all of them.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw

SIDES = (150, 170, 190, 210)  # pixels
APART = 12  # bits of dhash between any two pictures drawn together: no near-duplicates


def draw(folder: Path, classes: Sequence[str], per_class: int, seed: int = 0, noise: float = 0.1) -> int:
    """Write `folder/<class>/<class>_<seed>_<n>.jpg`; the number of files. Same arguments, same bytes."""
    import imagehash

    chance = random.Random(f"{seed}")
    hashes: list[imagehash.ImageHash] = []
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            other = (place + chance.randrange(1, len(classes))) % len(classes) if chance.random() < noise else None
            while True:
                picture = _picture(chance, place, other)
                found = imagehash.dhash(picture)
                if all(found - seen > APART for seen in hashes):
                    break
            hashes.append(found)
            picture.save(folder / name / f"{name}_{seed}_{n:04d}.jpg", quality=85)
    return per_class * len(classes)


def _picture(chance: random.Random, kind: int, other: int | None) -> PilImage:
    from PIL import Image, ImageDraw, ImageFilter

    width, height = chance.choice(SIDES), chance.choice(SIDES)
    ground = Image.new("RGB", (3, 3))
    for x in range(3):
        for y in range(3):
            ground.putpixel((x, y), tuple(chance.randrange(40, 230) for _ in range(3)))
    picture = ground.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(chance.randrange(4, 8)):
        shown = other if other is not None and chance.random() < 0.5 else kind
        centre = chance.randrange(20, width - 20), chance.randrange(20, height - 20)
        _shape(pen, chance, shown, centre, chance.randrange(16, 40))
    return picture.filter(ImageFilter.GaussianBlur(0.7))


def _shape(pen: ImageDraw, chance: random.Random, kind: int, at: tuple[int, int], r: int) -> None:
    """One dish's part: layered wedges, rolls with a heart, then polygons with ever more corners."""
    x, y = at
    colour = tuple(chance.randrange(60, 250) for _ in range(3))
    heart = tuple(chance.randrange(60, 250) for _ in range(3))
    if kind == 0:
        for layer in range(4):
            top = y - r + layer * r // 2
            pen.polygon(
                [(x - r, top + r // 2), (x + r, top), (x + r, top + r // 2 - 2)], fill=heart if layer % 2 else colour
            )
    elif kind == 1:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(25, 35, 30))
        pen.ellipse((x - r * 0.8, y - r * 0.8, x + r * 0.8, y + r * 0.8), fill=colour)
        pen.ellipse((x - r * 0.3, y - r * 0.3, x + r * 0.3, y + r * 0.3), fill=heart)
    else:
        pen.regular_polygon((x, y, r), n_sides=kind + 2, rotation=chance.randrange(360), fill=colour, outline=heart)


def junk(folder: Path, seed: int = 0) -> list[str]:
    """Write a few files that are no usable photos, named as if they were; their names."""
    chance = random.Random(f"junk {seed}")

    def jpeg(picture: PilImage) -> bytes:
        out = io.BytesIO()
        picture.save(out, "JPEG")
        return out.getvalue()

    whole = jpeg(_picture(chance, 0, None))
    files = {
        "truncated.jpg": whole[: len(whole) // 2],
        "notes.jpg": b"Remember to photograph the lunch.\n",
        "page.jpg": b"<html><body>403 Forbidden</body></html>",
        "empty.jpg": b"",
        "bomb.png": _png_header(60_000, 60_000),
        "thumbnail.jpg": jpeg(_picture(chance, 0, None).resize((16, 16))),
        "noise.jpg": b"\xff\xd8\xff\xe0" + chance.randbytes(4000),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"junk_{seed}_{name}").write_bytes(data)
    return sorted(f"junk_{seed}_{name}" for name in files)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be very large, in under 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
