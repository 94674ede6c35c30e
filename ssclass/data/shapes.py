"""The shape that a photo is decoded to: a square of so many pixels, or the photo's own shape.

A square squeezes what is wide or tall. In its own shape a photo has sides that are multiples of `CELL` pixels, so that
the maps of a network have whole places, and about as many pixels as the square would have. Photos of one shape go
through a network together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELL = 32
"""Pixels along a side that become one place of the last map of every network."""
LONGEST = 4.0
"""Sides differ by this factor at most; what is longer still is squeezed to it."""


@dataclass(frozen=True)
class OwnShape:
    """Photos keep their shape: multiples of `CELL` pixels, about as many as a square of `side` pixels has."""

    side: int

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a photo of `width` x `height` pixels is decoded to."""
        return self._of(sqrt(min(max(width / height, 1 / LONGEST), LONGEST)))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All widths and heights that photos may be decoded to, from tall to wide."""
        cells, least, most = self.side / CELL, sqrt(1 / LONGEST), sqrt(LONGEST)
        halves = [count + 0.5 for count in range(floor(cells * most) + 1)]
        turns = {least, most, *(half / cells for half in halves), *(cells / half for half in halves)}
        ordered = sorted(turn for turn in turns if least <= turn <= most)
        between = [(one + other) / 2 for one, other in pairwise(ordered)]
        return tuple(dict.fromkeys(self._of(root) for root in sorted([*ordered, *between])))

    @property
    def places(self) -> int:
        """The most places that a map of such a photo has."""
        return max(width * height for width, height in self.shapes) // CELL**2

    def _of(self, root: float) -> tuple[int, int]:
        """Width and height for the root of their quotient."""
        cells = self.side / CELL
        width, height = (max(1, floor(count + 0.5)) for count in (cells * root, cells / root))
        return CELL * width, CELL * height


Size = int | OwnShape
"""What a photo is decoded to: a square of so many pixels a side, or its own shape."""
Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""Decoded photos, RGB: uint8 [n, h, w, 3], or one array [h, w, 3] each where their shapes differ."""


def fitted(size: Size, width: int, height: int) -> tuple[int, int]:
    """Width and height that a photo of `width` x `height` pixels is decoded to."""
    return size.fitted(width, height) if isinstance(size, OwnShape) else (size, size)


def side_of(size: Size) -> int:
    """The side of the square, or of the square with about as many pixels."""
    return size.side if isinstance(size, OwnShape) else size


def about_size(size: Size) -> dict[str, Any]:
    """A size as values for JSON; of a square only its side, as it was before there was anything else."""
    return {"size": side_of(size)} | ({"shape": "own"} if isinstance(size, OwnShape) else {})


def read_size(about: Mapping[str, Any]) -> Size:
    """The size that :func:`about_size` told; KeyError, TypeError or ValueError where that is none."""
    if (shape := about.get("shape", "square")) not in ("square", "own"):
        raise ValueError(f"{shape!r} is no shape of photos")
    return OwnShape(int(about["size"])) if shape == "own" else int(about["size"])


def by_shape(images: Images) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """Yield the row numbers of photos of one shape, and those photos as uint8 [n, h, w, 3], shape by shape."""
    if isinstance(images, np.ndarray):
        yield np.arange(len(images)), images
        return
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image.shape, []).append(row)
    for together in rows.values():
        yield np.array(together), np.stack([images[row] for row in together])
