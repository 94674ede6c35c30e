"""Which photos are near-copies: by a hash of the picture's structure, by its colours, and by what each of them says.

A dhash (64 bits) of a picture that is mostly background says little: of 17,205 pairs of different photos, put on white
at 0.3 of the side, 4,524 are within 6 bits. So a hash counts alone only where the palette speaks for the whole picture;
where it speaks for a foreground, the palette must agree. docs/formats.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ssclass.data.palette import PLAIN, effective_colours

ALIKE = 0.935  # cosine of palettes that is proof enough; the first two different dishes of 741 photos come at 0.930
SECOND = 0.9  # the same beside a dhash that says little
WHOLE = 0.9  # share of the picture that a palette speaks for, from which the hash says enough
CLOSE = 3  # bits between copies re-encoded or halved, at most
SURE = 0.97  # cosine that copies reach, however edited but for brightness, and different dishes never


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
    hash of another must be the same.
    """

    def __init__(self, photos: Sequence[Fingerprinted], bits: int) -> None:
        self.bits = bits
        self._hashes = np.array([int(photo.dhash, 16) for photo in photos], dtype=np.uint64)
        self._palettes = np.zeros((len(photos), 512), dtype=np.float32)
        self._share = np.zeros(len(photos))
        self._rich = np.zeros(len(photos), dtype=bool)
        for at, photo in enumerate(photos):
            if photo.palette:
                root = np.frombuffer(photo.palette, dtype=np.uint8).astype(np.float64)
                length = float(np.linalg.norm(root))
                self._palettes[at] = root / length
                self._share[at] = (length / 255) ** 2
                self._rich[at] = effective_colours(root**2) > PLAIN - 1  # bytes are rounded

    def near(self, i: int) -> list[int]:
        """Positions of the photos near photo i, without itself."""
        apart, alike = self._apart(i), self._palettes @ self._palettes[i]
        both = self._rich & self._rich[i]
        by_hash = apart <= self.bits
        weak = (self._share > 0) & (self._share < WHOLE)  # the palette is a foreground's
        if weak[i]:
            by_hash &= np.where(weak, alike >= SECOND, apart <= np.where(self._share > 0, CLOSE, 0))
        else:
            by_hash &= ~weak | (apart <= (CLOSE if self._share[i] > 0 else 0))
        return self._without(i, by_hash | both & (alike >= ALIKE))

    def surely(self, i: int) -> list[int]:
        """Positions of those photos near photo i that need no third one to vouch for it."""
        apart, alike = self._apart(i), self._palettes @ self._palettes[i]
        whole = (self._share >= WHOLE) & (self._share[i] >= WHOLE)
        both = self._rich & self._rich[i]
        return self._without(i, whole & (apart <= min(CLOSE, self.bits)) | both & (alike >= SURE))

    def _apart(self, i: int) -> NDArray[np.integer]:
        apart: NDArray[np.integer] = np.bitwise_count(self._hashes ^ self._hashes[i])
        return apart

    @staticmethod
    def _without(i: int, found: NDArray[np.bool_]) -> list[int]:
        return [int(j) for j in np.flatnonzero(found) if j != i]
