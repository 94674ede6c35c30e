"""The same photo, the same side, for ever; copies never on both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssclass.data.images import inspect
from ssclass.data.split import HOLDOUT, TRAIN, Place, Torn, assign, side_of
from ssclass.params import DatasetParams, IngestParams
from tests.support.pipelines import REAL, real_photos

BITS = DatasetParams(classes=("a", "b")).near_duplicate_bits


@dataclass(frozen=True)
class Photo:
    sha256: str
    dhash: str
    palette: bytes = b""
    group: str = ""
    split: str = ""


def photo(name: str, bits: int, group: str = "", split: str = "") -> Photo:
    """A photo with the lowest `bits` bits of its dhash set: two are as far apart as their numbers."""
    return Photo(hashlib.sha256(name.encode()).hexdigest(), f"{(1 << bits) - 1:016x}", b"", group, split)


def place(photos: list[Photo], existing: list[Photo], named: list[str | None] | None = None) -> list[Place | Torn]:
    return assign(photos, named or [None] * len(photos), existing, 0.2, BITS)


def test_a_photo_alone_founds_its_group_and_its_side_is_its_hash() -> None:
    one = photo("one", 0)
    assert place([one], []) == [Place(one.sha256, side_of(one.sha256, 0.2))]
    assert place([one], [], ["holdout"]) == [Place(one.sha256, HOLDOUT)]
    assert place([one], [], ["train"]) == [Place(one.sha256, TRAIN)]


def test_the_share_held_out_is_as_asked() -> None:
    sides = [side_of(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), 0.2) for i in range(4000)]
    assert 0.18 < sides.count(HOLDOUT) / 4000 < 0.22


def test_copies_join_the_group_that_is_there() -> None:
    old = photo("old", 0, group="g", split=HOLDOUT)
    assert place([photo("copy", BITS)], [old]) == [Place("g", HOLDOUT)]
    far = photo("far", BITS + 1)
    assert place([far], [old]) == [Place(far.sha256, side_of(far.sha256, 0.2))]


def test_a_chain_of_copies_is_one_group_whatever_the_order() -> None:
    a, b, c = photo("a", 0), photo("b", BITS), photo("c", 2 * BITS)
    for photos in ([a, b, c], [a, c, b], [c, a, b]):
        assert {at.group for at in place(photos, []) if isinstance(at, Place)} == {photos[0].sha256}


def test_a_named_split_wins_for_the_whole_new_group() -> None:
    places = place([photo("a", 0), photo("b", 1), photo("c", 2)], [], [None, "holdout", None])
    assert [at.split for at in places if isinstance(at, Place)] == [HOLDOUT] * 3


def test_a_copy_named_for_the_other_side_is_refused() -> None:
    old = photo("old", 0, group="g", split=TRAIN)
    torn, other = place([photo("copy", 1), photo("another", 40)], [old], ["holdout", "holdout"])
    assert isinstance(torn, Torn)
    assert old.sha256[:12] in torn.detail
    assert isinstance(other, Place)
    first, second = place([photo("x", 0), photo("y", 1)], [], ["train", "holdout"])
    assert isinstance(first, Place)
    assert isinstance(second, Torn)


def test_a_photo_that_bridges_both_sides_is_refused_and_its_neighbours_are_not() -> None:
    left = photo("left", 0, group="l", split=TRAIN)
    right = photo("right", 2 * BITS, group="r", split=HOLDOUT)
    torn, near_left, near_right = place(
        [photo("bridge", BITS), photo("nl", 1), photo("nr", 2 * BITS - 1)], [left, right]
    )
    assert isinstance(torn, Torn)
    assert "both sides" in torn.detail
    assert near_left == Place("l", TRAIN)
    assert near_right == Place("r", HOLDOUT)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.sampled_from([None, "train", "holdout"])), max_size=12, unique=True),
    st.lists(st.integers(0, 64), max_size=6, unique=True),
)
def test_no_two_near_photos_are_ever_on_different_sides(asked: list[tuple[int, str | None]], there: list[int]) -> None:
    existing: list[Photo] = []
    for bits in there:
        (at,) = place([photo(f"old {bits}", bits)], existing)
        if isinstance(at, Place):
            existing.append(photo(f"old {bits}", bits, at.group, at.split))
    photos = [photo(f"new {bits} {side}", bits) for bits, side in asked]
    places = place(photos, existing, [side for _, side in asked])
    everything = list(existing)
    for new, at, (_, side) in zip(photos, places, asked, strict=True):
        if isinstance(at, Place):
            assert side in (None, at.split)
            everything.append(replace(new, group=at.group, split=at.split))
    for a in everything:
        for b in everything:
            if (int(a.dhash, 16) ^ int(b.dhash, 16)).bit_count() <= BITS:
                assert a.split == b.split
    assert {p.group: p.split for p in everything} == dict({(p.group, p.split) for p in everything})


@pytest.mark.skipif(not real_photos(), reason="the real photos are not here")
def test_on_real_photos_one_dish_is_one_group_and_different_dishes_are_not() -> None:
    same = [{"train_2708", "train_8640"}, {"train_7745", "train_8398", "train_9718"}, {"train_6832", "train_9042"}]
    files = sorted(Path(REAL).glob("*/*.jpg"))
    keep = [file for i, file in enumerate(files) if i % 4 == 0 or any(file.stem in names for names in same)]
    pictures = [inspect(file.read_bytes(), IngestParams()) for file in keep]
    groups: dict[str, set[str]] = {}
    for file, at in zip(keep, assign(pictures, [None] * len(keep), [], 0.2, BITS), strict=True):
        assert isinstance(at, Place)
        groups.setdefault(at.group, set()).add(file.stem)
    assert [names for names in groups.values() if len(names) > 1] == same
