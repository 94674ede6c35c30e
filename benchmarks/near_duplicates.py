"""Near-copies found, and different dishes taken for one: `python -m benchmarks.near_duplicates DIR [EVERY]`.

DIR holds class folders of photos. Of every EVERY-th photo (4) it makes

- a dish on a plain background: shrunk to .3, .4, .5 or .7 of the side, or cut out as an ellipse, on white, black, a
  gradient, grain, or on another photo as a table: as many groups as photos is right;
- edited copies of some of those: the share that is found is printed, before and after;
- a burst of 20 frames, each a little farther on: one group is right.

*Before* is the rule of the first versions (dhash within 6 bits, or palettes of the whole picture), *after* is the
product's. Of the photos as they are it prints every group of more than one. Seeded: the same photos, the same lines.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from ssclass.data.images import Picture, inspect
from ssclass.data.nearness import ALIKE, Nearness
from ssclass.data.palette import effective_colours
from ssclass.data.split import Place, assign
from ssclass.params import IngestParams

SIDE, BITS, FRAMES = 400, 6, 20


@dataclass(frozen=True)
class Found:
    """Groups of a set of photos, and how many photos the largest has."""

    groups: int
    largest: int


def main(folder: Path, every: int = 4) -> None:
    """Print one line a measurement."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    seen = [inspect(path.read_bytes(), IngestParams()) for path in files]
    names = {picture.sha256: path.stem for picture, path in zip(seen, files, strict=True)}
    places = assign(seen, [None] * len(seen), [], 0.2, BITS)
    groups: dict[str, list[str]] = {}
    for picture, place in zip(seen, places, strict=True):
        if isinstance(place, Place):
            groups.setdefault(place.group, []).append(names[picture.sha256])
    print(f"{len(files)} photos: {len(groups)} groups; of several:", *(g for g in groups.values() if len(g) > 1))

    some = [Image.open(path).convert("RGB") for path in files[::every]]
    for kind in ("white", "black", "gradient", "grain", "table"):
        for share, shape in ((0.3, "square"), (0.4, "square"), (0.5, "square"), (0.7, "square"), (0.4, "ellipse")):
            made = [described(plain(photo, share, kind, shape)) for photo in some]
            before, after = found_before(made), found(made)
            print(
                f"{len(made)} dishes as {shape} at {share} on {kind}: before {before.groups} groups, the largest of "
                f"{before.largest}; after {after.groups}, {after.largest}",
                flush=True,
            )
    for name, edit in EDITS.items():
        shares = []
        for kind, share in (("white", 0.4), ("black", 0.5)):
            originals = [plain(photo, share, kind, "square") for photo in some[::3]]
            pairs = [(described(one), described(edit(one))) for one in originals]
            shares += [float(np.mean([near_before(pair)[0, 1] for pair in pairs])), recognised(pairs)]
        print(f"copies {name}: .4 on white {shares[0]:.0%}, now {shares[1]:.0%}; .5 on black {shares[2]:.0%}, now "
              f"{shares[3]:.0%}", flush=True)  # fmt: skip
    chance = np.random.default_rng(0)
    for kind in ("as they are", "white"):
        bursts = []
        for photo in some[::9]:
            first = photo.resize((SIDE, SIDE)) if kind == "as they are" else plain(photo, 0.5, kind, "ellipse")
            bursts += [described(frame) for frame in burst(first, chance)]
        before, after = found_before(bursts), found(bursts)
        print(f"{len(bursts) // FRAMES} bursts of {FRAMES} frames, {kind}: before {before.groups} groups, the largest "
              f"of {before.largest}; after {after.groups}, {after.largest}", flush=True)  # fmt: skip


def encoded(picture: Image.Image, quality: int = 90) -> bytes:
    """A JPEG."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def described(picture: Image.Image) -> tuple[Picture, Image.Image]:
    """What ingest knows of a picture, and its pixels."""
    data = encoded(picture)
    return inspect(data, IngestParams()), Image.open(io.BytesIO(data)).convert("RGB")


def near_before(made: Sequence[tuple[Picture, Image.Image]]) -> NDArray[np.bool_]:
    """Which photos were near each other by the rule of the first versions: bool [n, n]."""
    hashes = np.array([int(picture.dhash, 16) for picture, _ in made], dtype=np.uint64)
    palettes = np.zeros((len(made), 512))
    for at, (_, pixels) in enumerate(made):
        canvas = np.asarray(pixels.resize((256, 256), Image.Resampling.BILINEAR))
        r, g, b = (canvas >> 5).astype(np.int64).reshape(-1, 3).T
        share = np.bincount(r << 6 | g << 3 | b, minlength=512) / r.size
        if effective_colours(share) >= 12:
            palettes[at] = np.sqrt(share)
    close: NDArray[np.bool_] = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= BITS
    return close | (palettes @ palettes.T >= ALIKE)


def found_before(made: Sequence[tuple[Picture, Image.Image]]) -> Found:
    """Groups of photos that come together by the rule of the first versions: any chain of near ones."""
    from scipy.sparse.csgraph import connected_components

    count, group = connected_components(near_before(made), directed=False)
    return Found(int(count), int(np.bincount(group).max()))


def found(made: Sequence[tuple[Picture, Image.Image]]) -> Found:
    """Groups of photos that come together, as the product makes them."""
    pictures = [picture for picture, _ in made]
    size = Counter(at.group for at in assign(pictures, [None] * len(made), [], 0.2, BITS) if isinstance(at, Place))
    return Found(len(size), max(size.values()))


def recognised(pairs: Sequence[tuple[tuple[Picture, Image.Image], tuple[Picture, Image.Image]]]) -> float:
    """The share of copies that are near their original."""
    return float(np.mean([Nearness([a[0], b[0]], BITS).near(0) == [1] for a, b in pairs]))


def background(kind: str) -> Image.Image:
    """A square of one colour, a gradient, grain, or a table with a pattern."""
    if kind in ("white", "black"):
        return Image.new("RGB", (SIDE, SIDE), kind)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    if kind == "gradient":
        grey = 235 - 140 * np.hypot(x - 0.5, y - 0.5)
    elif kind == "grain":
        grey = np.random.default_rng(1).normal(225, 6, (SIDE, SIDE))
    else:  # a table of boards
        grey = 130 + 40 * np.sin(y * 40 + 3 * np.sin(x * 9)) + np.random.default_rng(2).normal(0, 12, (SIDE, SIDE))
    tint = np.array([1, 0.85, 0.7]) if kind == "table" else np.array([1, 0.98, 0.94])
    return Image.fromarray((grey[..., None] * tint).clip(0, 255).astype(np.uint8))


def plain(photo: Image.Image, share: float, kind: str, shape: str) -> Image.Image:
    """A photo shrunk onto the middle of a background."""
    side = int(SIDE * share)
    canvas, dish = background(kind), photo.copy()
    if shape == "ellipse":
        dish = dish.resize((side, side))
        mask = Image.new("L", dish.size, 0)
        ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    else:
        dish.thumbnail((side, side))
        mask = Image.new("L", dish.size, 255)
    canvas.paste(dish, ((SIDE - dish.width) // 2, (SIDE - dish.height) // 2), mask)
    return canvas


def burst(first: Image.Image, chance: np.random.Generator) -> list[Image.Image]:
    """Frames of a hand that moves: each a little turned, shifted, nearer and brighter than the one before it."""
    frames, turn, x, y, zoom, light = [first], 0.0, 0.0, 0.0, 1.0, 1.0
    corner = first.getpixel((2, 2))
    for _ in range(FRAMES - 1):
        turn, x, y = turn + chance.normal(0, 1), x + chance.normal(0, 3), y + chance.normal(0, 3)
        zoom, light = zoom * (1 + chance.normal(0, 0.01)), light * (1 + chance.normal(0, 0.01))
        frame = first.rotate(turn, Image.Resampling.BICUBIC, fillcolor=corner)
        off = SIDE * (1 - 1 / zoom) / 2
        frame = frame.transform(frame.size, Image.Transform.AFFINE, (1 / zoom, 0, off + x, 0, 1 / zoom, off + y),
                                Image.Resampling.BICUBIC, fillcolor=corner)  # fmt: skip
        frames.append(ImageEnhance.Brightness(frame).enhance(light))
    return frames


def _again(picture: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(picture, quality))).convert("RGB")


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded (JPEG 40)": lambda one: _again(one, 40),
    "halved": lambda one: one.resize((SIDE // 2, SIDE // 2)),
    "cropped by 2 %": lambda one: one.crop((8, 8, SIDE - 8, SIDE - 8)),
    "cropped by 5 %": lambda one: one.crop((20, 20, SIDE - 20, SIDE - 20)),
    "turned by 2 degrees": lambda one: one.rotate(2, Image.Resampling.BICUBIC, fillcolor=one.getpixel((2, 2))),
    "mirrored": lambda one: one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "contrast + 30 %": lambda one: ImageEnhance.Contrast(one).enhance(1.3),
    "brightness + 30 %": lambda one: ImageEnhance.Brightness(one).enhance(1.3),
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
