"""Near-duplicate groups, and which side of the split each is on: decided once per photo, for ever. Pure.

Two photos are *near* when their dhashes differ in at most `bits` of 64, or their palettes are at least
`PALETTE_ALIKE` alike. Measured on the 741 real photos (274,170 pairs) and on edited copies of them:

- dhash: the closest two different dishes are 9 apart; copies re-encoded or resized are within 3, and within 6
  are 94 % of those brightened by 30 % and 98 % of those cropped by 1 %; mirrored or cropped by more, it is blind.
- palette (cosine): exactly four pairs reach 0.939, and all four show one dish (the three photos of the
  same sandwiches among them, 20 to 35 bits apart by dhash); the first pair of different dishes comes at
  0.930. Of copies mirrored, turned, or cropped by 5 %, 98 % reach the limit.

docs/formats.md has the whole table.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PALETTE_ALIKE = 0.935
TRAIN, HOLDOUT = "train", "holdout"


class Seen(Protocol):
    """What is needed of a photo to find its copies."""

    @property
    def sha256(self) -> str:
        """Of its bytes, 64 hex digits."""
        ...

    @property
    def dhash(self) -> str:
        """16 hex digits."""
        ...

    @property
    def palette(self) -> bytes:
        """As `images.Picture.palette`."""
        ...


class Placed(Seen, Protocol):
    """A photo that is in the data set."""

    @property
    def group(self) -> str:
        """The sha256 of its group's first member."""
        ...

    @property
    def split(self) -> str:
        """train or holdout."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a photo belongs."""

    group: str
    split: str


@dataclass(frozen=True)
class Torn:
    """A photo that belongs on neither side: it is near photos of both, or near one and named for the other."""

    detail: str


def side_of(group: str, holdout_fraction: float) -> str:
    """The side of a new group: by a hash of its name, so that it never depends on order or time."""
    share = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    return HOLDOUT if share < holdout_fraction else TRAIN


def assign(
    photos: Sequence[Seen],
    named: Sequence[str | None],
    existing: Sequence[Placed],
    holdout_fraction: float,
    bits: int,
) -> list[Place | Torn]:
    """One place per photo, in order. `named`: the split that the manifest asks for, or None.

    Photos near each other, or near the same group, make one component. When all that is known of a component points
    to one side, it goes there as one group (an existing one, else named after its first photo). When it is torn,
    each photo is placed by its own neighbours, and those near both sides are refused.
    """
    index = _Index([*existing, *photos])
    start = len(existing)
    near = [index.near(start + i, bits) for i in range(len(photos))]
    result: dict[int, Place | Torn] = {}
    for members in _components(near, start):
        anchors = [existing[j] for i in members for j in near[i] if j < start]
        sides = {anchor.split for anchor in anchors} | {side for i in members if (side := named[i])}
        if len(sides) <= 1:
            group = anchors[0].group if anchors else photos[members[0]].sha256
            split = sides.pop() if sides else side_of(group, holdout_fraction)
            result.update(dict.fromkeys(members, Place(group, split)))
        else:
            # Photos about which something is known go first, so that what they say binds the rest.
            bound = [i for i in members if named[i] or any(j < start for j in near[i])]
            for i in bound + [i for i in members if i not in bound]:
                known = [(existing[j].sha256, existing[j].group, existing[j].split) for j in near[i] if j < start]
                for j in near[i]:
                    if isinstance(at := result.get(j - start), Place):
                        known.append((photos[j - start].sha256, at.group, at.split))
                result[i] = _alone(photos[i].sha256, named[i], known, holdout_fraction)
    return [result[i] for i in range(len(photos))]


def _alone(sha256: str, named: str | None, known: list[tuple[str, str, str]], holdout_fraction: float) -> Place | Torn:
    by_side = {split: (other, group) for other, group, split in reversed(known)}
    if len(by_side) == 2:
        copies = " and ".join(f"{other[:12]} ({side})" for side, (other, _) in sorted(by_side.items()))
        return Torn(f"near-copy of photos on both sides of the split: {copies}")
    if not by_side:
        return Place(sha256, named or side_of(sha256, holdout_fraction))
    split, (other, group) = by_side.popitem()
    if named and named != split:
        return Torn(f"named for {named}, but a near-copy of {other[:12]} in {split}")
    return Place(group, split)


class _Index:
    def __init__(self, photos: Sequence[Seen]) -> None:
        self.hashes = np.array([int(photo.dhash, 16) for photo in photos], dtype=np.uint64)
        self.palettes = np.zeros((len(photos), 512), dtype=np.float32)
        for row, photo in zip(self.palettes, photos, strict=True):
            if photo.palette:
                row[:] = np.frombuffer(photo.palette, dtype=np.uint8)
                row /= np.linalg.norm(row)

    def near(self, i: int, bits: int) -> list[int]:
        """Positions of the photos near photo i, without itself."""
        close = np.bitwise_count(self.hashes ^ self.hashes[i]) <= bits
        close |= self.palettes @ self.palettes[i] >= PALETTE_ALIKE
        return [int(j) for j in np.flatnonzero(close) if j != i]


def _components(near: list[list[int]], start: int) -> list[list[int]]:
    """Photos (positions from 0) linked by nearness to each other; each component and their list in order."""
    root = list(range(len(near)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, others in enumerate(near):
        for j in others:
            if j >= start:
                a, b = sorted((find(i), find(j - start)))
                root[b] = a
    components: dict[int, list[int]] = defaultdict(list)
    for i in range(len(near)):
        components[find(i)].append(i)
    return list(components.values())
