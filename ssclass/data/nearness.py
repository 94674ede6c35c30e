"""Which photos are near-copies: by a hash of the picture's structure, by its colours, and by what each of them says.

A dhash (64 bits) of a picture that is mostly background says little: of 17,205 pairs of different photos, put on white
at 0.3 of the side, 4,524 are within 6 bits. So a hash counts alone only where the palette speaks for the whole picture;
where it speaks for a foreground, the palette must agree. docs/formats.md has the figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ssclass.data.palette import PLAIN, effective_colours
from ssclass.spread import spread

ALIKE = 0.935  # cosine of palettes that is proof enough; the first two different dishes of 741 photos come at 0.930
SECOND = 0.9  # the same beside a dhash that says little
WHOLE = 0.9  # share of the picture that a palette speaks for, from which the hash says enough
CLOSE = 3  # bits between copies re-encoded or halved, at most
SURE = 0.97  # cosine that copies reach, however edited but for brightness, and different dishes never

ROWS = 2048  # photos asked about whose pairs are looked at together
PAIRS = 1 << 22  # pairs that are looked at together: 80 MB
WIDE = 1024  # photos that they are compared with at once, at most: what is made of their palettes stays in the cache
TOGETHER = 2048  # pairs whose palettes are multiplied at once
DENSE = 16  # where more than one pair of so many is looked at, all are multiplied
SLACK = 1e-5  # of a threshold: what rounding to float32 may hide
THREADS = 4
NO_PALETTE = bytes(512)

Pairs = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]
"""Positions of photos, of photos that they are near, and whether surely."""


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

    def _pairs(self) -> Iterator[Pairs]:
        """Pairs (photo asked about, one before it) that are near each other, and whether surely; block by block.

        Blocks are looked at side by side, with a thread each: theirs are small, and BLAS would wait for its own.
        A product of sketches, a quarter as long as palettes, says which palettes may be alike. Those pairs are looked
        at, and those whose hashes are close: of real photos 3 in 10,000.
        """
        if (len(self._photos) - self.start) * len(self._photos) <= PAIRS:
            for block in self._blocks():
                yield self._block(*block)
            return
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            yield from spread(
                None, lambda: lambda block: self._block(*block), self._blocks(), min(THREADS, os.cpu_count() or 1)
            )

    def _blocks(self) -> Iterator[tuple[NDArray[np.uint64], _Palettes, int, int, int]]:
        """The arguments of `_block`, one after the other."""
        hashes = _hashes(self._photos)
        for first in range(self.start, len(self._photos), ROWS):
            rows = _Palettes(self._photos[first : first + ROWS])
            last = first + len(rows.bytes)
            width = min(max(ROWS, PAIRS // len(rows.bytes)), WIDE)
            for at in range(0, last, width):
                yield hashes, rows, first, at, min(at + width, last)

    def _block(self, hashes: NDArray[np.uint64], rows: _Palettes, first: int, at: int, end: int) -> Pairs:
        """The pairs of photos `rows`, of which the first is photo `first`, and the photos from `at` to `end`."""
        columns = _Palettes(self._photos[at:end])
        apart = np.bitwise_count(hashes[first : first + len(rows.bytes), None] ^ hashes[None, at:end])
        some = rows.sketch @ columns.sketch.T >= np.float32(ALIKE * (1 - SLACK))
        some |= apart <= self.bits
        i, j = np.divmod(np.flatnonzero(some), len(columns.bytes))
        before = j + at < i + first
        i, j = i[before], j[before]
        near, sure = self._judge(rows, i, columns, j, rows.dots(i, columns, j), apart[i, j])
        return (i[near] + first).astype(np.int32), (j[near] + at).astype(np.int32), sure[near]

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
    """The palettes of some photos: `bytes` uint8 [n, 512], zeros for none; `length` float32 [n], infinite for none.

    `sketch`, float32 [n, 128]: the lengths of the parts of a palette, of four bins each, by its own length; zeros for
    none. The product of two sketches is at least the cosine of the palettes (Cauchy and Schwarz, part by part). Parts
    are of the same green and blue, and of every other red, so that few colours of one photo share one.

    The numbers are small and whole, so that sums of products of real palettes are exact, in whatever order.
    """

    def __init__(self, photos: Sequence[Fingerprinted]) -> None:
        self.bytes = np.frombuffer(b"".join([photo.palette or NO_PALETTE for photo in photos]), np.uint8)
        self.bytes = self.bytes.reshape(-1, 512)
        squares = self.bytes.astype(np.float32)
        squares *= squares
        halves = squares[:, :256] + squares[:, 256:]
        parts = halves[:, :128] + halves[:, 128:]
        square = np.einsum("ij->i", parts).astype(np.float64)
        self.share: NDArray[np.float64] = square / 255**2
        self.length: NDArray[np.float32] = np.where(square > 0, np.sqrt(square), np.inf).astype(np.float32)
        self.sketch: NDArray[np.float32] = np.sqrt(parts, out=parts)
        self.sketch /= self.length[:, None]

    def dots(self, i: NDArray[np.intp], others: _Palettes, j: NDArray[np.intp]) -> NDArray[np.float32]:
        """The products of palettes i and those of others at j, float32 [pairs]."""
        if DENSE * len(i) > len(self.bytes) * len(others.bytes):  # one product of all costs less
            all_pairs = self.bytes.astype(np.float32) @ others.bytes.astype(np.float32).T
            return np.asarray(all_pairs[i, j])
        found = np.empty(len(i), np.float32)
        for at in range(0, len(i), TOGETHER):
            one, other = (
                palettes.bytes[rows[at : at + TOGETHER]].astype(np.float32)
                for palettes, rows in ((self, i), (others, j))
            )
            np.einsum("ij,ij->i", one, other, out=found[at : at + TOGETHER])
        return found

    def rich(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the palettes at these rows have so many colours that they alone can tell a photo."""
        some, back = np.unique(rows, return_inverse=True)
        rich = [
            effective_colours(self.bytes[row].astype(np.float64) ** 2) > PLAIN - 1 for row in some
        ]  # bytes are rounded
        return np.array(rich, dtype=np.bool_)[back]


def _hashes(photos: Sequence[Fingerprinted]) -> NDArray[np.uint64]:
    digits = "".join([photo.dhash for photo in photos])
    if len(digits) != 16 * len(photos):
        digits = "".join(photo.dhash.zfill(16) for photo in photos)
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
