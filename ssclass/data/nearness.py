"""Which photos are near-copies: by a hash of the picture's structure, by its colours, and by what each of them says.

A dhash (64 bits) of a picture that is mostly background says little: of 17,205 pairs of different photos, put on white
at 0.3 of the side, 4,524 are within 6 bits. So a hash counts alone only where the palette speaks for the whole picture;
where it speaks for a foreground, the palette must agree. docs/formats.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ssclass.data.palette import PLAIN, effective_colours

ALIKE = 0.935  # cosine of palettes that is proof enough; the first two different dishes of 741 photos come at 0.930
SECOND = 0.9  # the same beside a dhash that says little
WHOLE = 0.9  # share of the picture that a palette speaks for, from which the hash says enough
CLOSE = 3  # bits between copies re-encoded or halved, at most
SURE = 0.97  # cosine that copies reach, however edited but for brightness, and different dishes never

ROWS = 2048  # photos asked about whose pairs are looked at together
PAIRS = 1 << 22  # pairs that are looked at together: 80 MB
WIDE = 4096  # photos that they are compared with at once, at most: their palettes are 8 MB
SLACK = 1e-5  # of a threshold: what rounding to float32 may hide
NO_PALETTE = bytes(512)


class Fingerprinted(Protocol):
    """What is needed of a photo to find its copies."""

    @property
    def sha256(self) -> str:
        """64 hex digits, of the photo's bytes."""
        ...

    @property
    def dhash(self) -> str:
        """16 hex digits."""
        ...

    @property
    def palette(self) -> bytes:
        """512 bytes or none, as `palette.palette` gives them."""
        ...


class Nearness:
    """Photos by position, and which of them are near which: dhashes at most `bits` apart, or palettes alike.

    A photo with a plain background that came before there were palettes of foregrounds has none: beside such a one, the
    hash of another must be the same. `start`: only photos from this position on are asked about, and so only their
    pairs are looked at, all of them at once, when the first is asked about.
    """

    def __init__(self, photos: Sequence[Fingerprinted], bits: int, start: int = 0) -> None:
        self.bits = bits
        self.start = start
        self._photos = photos

    def near(self, i: int) -> list[int]:
        """Positions of the photos near photo i, without itself, in order."""
        others, _ = self._of(i)
        return [int(j) for j in others]

    def surely(self, i: int) -> list[int]:
        """Positions of those photos near photo i that need no third one to vouch for it, in order."""
        others, sure = self._of(i)
        return [int(j) for j in others[sure]]

    def _of(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        if i < self.start:
            raise IndexError(f"photo {i}: pairs were looked at from photo {self.start} on")
        bounds, others, sure = self._links
        at = slice(bounds[i - self.start], bounds[i - self.start + 1])
        return others[at], sure[at]

    @cached_property
    def _links(self) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.bool_]]:
        """Where in the other two each photo asked about begins; the photos near it, in order; which of them surely."""
        found = list(self._pairs())
        one, other = (np.concatenate([pairs[side] for pairs in found] or [np.empty(0, np.int32)]) for side in (0, 1))
        sure = np.concatenate([pairs[2] for pairs in found] or [np.empty(0, np.bool_)])
        back = other >= self.start  # each pair was looked at once
        left, right = np.concatenate([one, other[back]]), np.concatenate([other, one[back]])
        order = np.lexsort((right, left))
        left, right, sure = left[order], right[order], np.concatenate([sure, sure[back]])[order]
        return np.searchsorted(left, np.arange(self.start, len(self._photos) + 1)), right, sure

    def _pairs(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]]:
        """Pairs (photo asked about, one before it) that are near each other, and whether surely; block by block."""
        hashes = _hashes(self._photos)
        for first in range(self.start, len(self._photos), ROWS):
            rows = _Palettes(self._photos[first : first + ROWS])
            last = first + len(rows.of)
            width = min(max(ROWS, PAIRS // len(rows.of)), WIDE)
            for at in range(0, last, width):
                columns = _Palettes(self._photos[at : min(at + width, last)])
                dots = rows.of @ columns.of.T
                apart = np.bitwise_count(hashes[first:last, None] ^ hashes[None, at : at + len(columns.of)])
                some = dots >= np.multiply.outer(rows.length * np.float32(ALIKE * (1 - SLACK)), columns.length)
                some |= apart <= self.bits
                i, j = np.divmod(np.flatnonzero(some), len(columns.of))
                before = j + at < i + first
                i, j = i[before], j[before]
                near, sure = self._judge(rows, i, columns, j, dots[i, j], apart[i, j])
                yield (i[near] + first).astype(np.int32), (j[near] + at).astype(np.int32), sure[near]

    def _judge(
        self,
        rows: _Palettes,
        i: NDArray[np.intp],
        columns: _Palettes,
        j: NDArray[np.intp],
        dots: NDArray[np.float32],
        apart: NDArray[np.uint8],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether pairs are near, and surely; `dots` of their palettes, bits by which their dhashes are `apart`."""
        ours, theirs = rows.share[i], columns.share[j]
        alike = dots / np.maximum(rows.length[i].astype(np.float64) * columns.length[j], 1)
        alike[(ours == 0) | (theirs == 0)] = 0
        both = alike >= ALIKE  # then both have palettes: what is asked for next takes time
        both[both] = rows.rich(i[both]) & columns.rich(j[both])
        weak_one, weak_other = ((share > 0) & (share < WHOLE) for share in (ours, theirs))  # a foreground's palette
        known = np.where(np.where(weak_one, theirs, ours) > 0, CLOSE, 0)
        by_hash = np.where(weak_one & weak_other, alike >= SECOND, ~weak_one & ~weak_other | (apart <= known)) & (
            apart <= self.bits
        )
        whole = (ours >= WHOLE) & (theirs >= WHOLE)
        surely = whole & (apart <= min(CLOSE, self.bits)) | both & (alike >= SURE)
        return by_hash | both, surely


class _Palettes:
    """The palettes of some photos: `of` float32 [n, 512], zeros for none; `length` float32 [n], infinite for none.

    The numbers are small and whole, so that sums of products of real palettes are exact, in whatever order.
    """

    def __init__(self, photos: Sequence[Fingerprinted]) -> None:
        self._bytes = np.frombuffer(b"".join(photo.palette or NO_PALETTE for photo in photos), np.uint8)
        self.of = self._bytes.reshape(-1, 512).astype(np.float32)
        square = np.einsum("ij,ij->i", self.of, self.of).astype(np.float64)
        self.share: NDArray[np.float64] = square / 255**2
        self.length: NDArray[np.float32] = np.where(square > 0, np.sqrt(square), np.inf).astype(np.float32)

    def rich(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the palettes at these rows have so many colours that they alone can tell a photo."""
        some, back = np.unique(rows, return_inverse=True)
        rich = [
            effective_colours(self.of[row].astype(np.float64) ** 2) > PLAIN - 1 for row in some
        ]  # bytes are rounded
        return np.array(rich, dtype=np.bool_)[back]


def _hashes(photos: Sequence[Fingerprinted]) -> NDArray[np.uint64]:
    return np.fromiter((int(photo.dhash, 16) for photo in photos), np.uint64, len(photos))
