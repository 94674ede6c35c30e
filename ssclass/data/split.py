"""Near-duplicate groups, and which side of the split each is on: decided once per photo, for ever. Pure.

Photos that are near each other (`nearness`) are one group, and so are those between which a chain of such photos
runs: frames of one dish. A chain that is long and thin, each photo near few of the others, is no one dish: it holds
only where two of its photos are surely copies.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ssclass.data.nearness import Fingerprinted, Nearness

TRAIN, HOLDOUT = "train", "holdout"
CROWD = 20  # photos, from which on a group is asked whether its members are near each other
THIN = 0.1  # share of a crowd's members that one is near, below which being near one of them proves nothing


class Placed(Fingerprinted, Protocol):
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
    photos: Sequence[Fingerprinted],
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
    start = len(existing)
    near = _links(Nearness([*existing, *photos], bits, start), len(photos), existing)
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


def _links(index: Nearness, photos: int, existing: Sequence[Placed]) -> list[list[int]]:
    """Positions (existing photos first) of those that each new photo is near, but for links that prove nothing."""
    start = len(existing)
    near = [index.near(start + i) for i in range(photos)]
    groups = {existing[j].group for others in near for j in others if j < start}
    size = Counter(photo.group for photo in existing if photo.group in groups) if groups else Counter()
    for i, others in enumerate(near):
        linked = Counter(existing[j].group for j in others if j < start)
        if thin := {group for group, n in linked.items() if size[group] >= CROWD and n < THIN * size[group]}:
            sure = set(index.surely(start + i))
            near[i] = [j for j in others if j >= start or j in sure or existing[j].group not in thin]
    for members in _components(near, start):
        inside = sum(j >= start for i in members for j in near[i])
        if len(members) >= CROWD and inside < THIN * len(members) * (len(members) - 1):
            for i in members:
                sure = set(index.surely(start + i))
                near[i] = [j for j in near[i] if j < start or j in sure]
    return near


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
