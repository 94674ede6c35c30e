"""The same photo, the same side, for ever; copies never on both."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ssclass.data.images import Picture, inspect
from ssclass.data.nearness import ALIKE, CLOSE, SECOND, SLACK, SURE, WHOLE, Nearness, _Palettes
from ssclass.data.palette import PLAIN, effective_colours
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


def pair(one: Photo | Picture, other: Photo | Picture) -> tuple[bool, bool]:
    """Whether two photos are near each other, and surely, by the rule as it is written: one pair at a time."""
    roots = [np.frombuffer(each.palette or bytes(512), np.uint8).astype(np.float64) for each in (one, other)]
    a, b = (float(np.linalg.norm(root)) for root in roots)
    apart = (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count()
    alike = float(roots[0] @ roots[1]) / (a * b) if a and b else 0.0
    rich = all(effective_colours(root**2) > PLAIN - 1 for root in roots)
    shares = [(length / 255) ** 2 for length in (a, b)]
    weak = [0 < share < WHOLE for share in shares]
    if all(weak):
        enough = alike >= SECOND
    elif any(weak):
        enough = apart <= (CLOSE if shares[weak.index(False)] else 0)
    else:
        enough = True
    near = (apart <= BITS and enough) or (rich and alike >= ALIKE)
    whole = min(shares) >= WHOLE
    return near, (whole and apart <= min(CLOSE, BITS)) or (rich and alike >= SURE)


def crowd(count: int, seed: int) -> list[Photo]:
    """Photos with palettes of few and of many colours, of parts or none; a third are like an earlier one."""
    chance = np.random.default_rng(seed)
    made: list[tuple[int, np.ndarray]] = []
    for _ in range(count):
        if made and chance.random() < 0.35:
            bits, root = made[int(chance.integers(len(made)))]
            for bit in chance.integers(0, 64, int(chance.integers(0, 9))):
                bits ^= 1 << int(bit)
            noise = chance.normal(0, float(chance.choice([0, 1, 4, 8, 12])), 512) * (root > 0)
            root = np.clip(np.rint(root + noise), 0, 255)
        else:
            bits = int(chance.integers(0, 2**63))
            share = chance.dirichlet(np.full(512, float(chance.choice([0.01, 0.03, 0.1]))))
            root = np.rint(np.sqrt(share * float(chance.choice([1, 1, 0.95, 0.85, 0.5]))) * 255)
        made.append((bits, root))
    names = (hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(count))
    return [
        Photo(name, f"{bits:016x}", b"" if chance.random() < 0.05 else root.astype(np.uint8).tobytes())
        for name, (bits, root) in zip(names, made, strict=True)
    ]


@pytest.mark.parametrize(
    ("rows", "wide", "pairs", "dense"), [(2048, 4096, 1 << 22, 16), (7, 64, 11, 0), (1, 3, 1, 16), (50, 40, 1, 1 << 40)]
)
def test_the_search_by_blocks_finds_what_one_pair_at_a_time_does(monkeypatch, rows, wide, pairs, dense) -> None:
    monkeypatch.setattr("ssclass.data.nearness.DENSE", dense)
    monkeypatch.setattr("ssclass.data.nearness.ROWS", rows)
    monkeypatch.setattr("ssclass.data.nearness.WIDE", wide)
    monkeypatch.setattr("ssclass.data.nearness.PAIRS", pairs)
    photos = crowd(120, rows)
    wanted = {i: [(j, *pair(photos[i], photos[j])) for j in range(len(photos)) if j != i] for i in range(len(photos))}
    assert sum(near for found in wanted.values() for _, near, _ in found) > 60
    for start in (0, 97, len(photos) - 1):
        index = Nearness(photos, BITS, start)
        for i in range(start, len(photos)):
            assert index.near(i) == [j for j, near, _ in wanted[i] if near]
            assert index.surely(i) == [j for j, _, sure in wanted[i] if sure]
    with pytest.raises(IndexError):
        Nearness(photos, BITS, 5).near(4)
    assert Nearness(photos[:1], BITS).near(0) == []


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (2, 512), fill=st.just(0)), hnp.arrays(np.int8, 512, fill=st.just(2)))
def test_a_sketch_overlooks_no_palette_that_is_alike(palettes: np.ndarray, noise: np.ndarray) -> None:
    """For any bytes at all, and for a palette beside one that is nearly the same, up to what float32 rounds."""
    one, other = palettes
    third = np.clip(one.astype(int) + noise * (one > 0), 0, 255).astype(np.uint8)
    found = _Palettes([Photo("", "0" * 16, each.tobytes()) for each in (one, other, third)])
    roots = found.bytes.astype(np.float64)
    lengths = np.linalg.norm(roots, axis=1)
    cosines = roots @ roots.T / np.maximum(np.outer(lengths, lengths), 1)
    assert (found.sketch @ found.sketch.T >= cosines * (1 - SLACK)).all()
    i, j = np.divmod(np.arange(9), 3)
    np.testing.assert_allclose(found.dots(i, found, j), (roots @ roots.T).ravel(), rtol=1e-6)


@pytest.mark.skipif(not real_photos(), reason="needs real photos")
def test_on_real_photos_the_search_by_blocks_finds_the_same() -> None:
    files = sorted(path for path in Path(REAL).glob("*/*") if path.is_file())[::8]
    photos = [inspect(path.read_bytes(), IngestParams()) for path in files]
    photos += [replace(seen, sha256=seen.sha256[::-1]) for seen in photos[::9]]
    index = Nearness(photos, BITS)
    for i, one in enumerate(photos):
        assert index.near(i) == [j for j, other in enumerate(photos) if j != i and pair(one, other)[0]]


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


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Made-up dishes: blots of a few colours of their own, each picture of other ones."""
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        colours = chance.integers(0, 256, (24, 3))
        blots = colours[chance.integers(0, 24, (12, 12))].astype(np.uint8)
        grain = chance.normal(0, 9, (240, 240, 3))
        smooth = np.asarray(Image.fromarray(blots).resize((240, 240), Image.Resampling.BICUBIC)) + grain
        made.append(Image.fromarray(smooth.clip(0, 255).astype(np.uint8)))
    return made


def on_plain(dish: Image.Image, share: float, colour: str) -> Picture:
    """What ingest knows of a dish in the middle of a plain picture of 400 x 400."""
    canvas = Image.new("RGB", (400, 400), colour)
    side = int(400 * share)
    canvas.paste(dish.resize((side, side)), ((400 - side) // 2, (400 - side) // 2))
    return described(canvas)


def described(picture: Image.Image, quality: int = 90) -> Picture:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return inspect(out.getvalue(), IngestParams())


def groups_of(photos: Sequence[Picture], existing: Sequence[Photo] = ()) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for at, found in enumerate(assign(photos, [None] * len(photos), existing, 0.2, BITS)):
        if isinstance(found, Place):
            groups.setdefault(found.group, []).append(at)
    return groups


@pytest.mark.parametrize("colour", ["white", "black", "#8fa3b0"])
@pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
def test_different_dishes_on_a_plain_background_are_not_one(share: float, colour: str) -> None:
    photos = [on_plain(dish, share, colour) for dish in pictures(40)]
    index = np.array([int(photo.dhash, 16) for photo in photos], dtype=np.uint64)
    close = np.bitwise_count(index[:, None] ^ index[None]) <= BITS
    assert share == 0.5 or close.sum() > 40 + 60, "by their dhashes alone many of them would be"
    groups = groups_of(photos)
    assert len(groups) >= 38
    assert max(len(members) for members in groups.values()) <= 2


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_copies_of_a_dish_on_a_plain_background_are_found(share: float) -> None:
    dishes = pictures(12)
    originals = [on_plain(dish, share, "white") for dish in dishes]
    for copy in range(0, 12, 3):
        canvas = Image.new("RGB", (400, 400), "white")
        side = int(400 * share)
        canvas.paste(dishes[copy].resize((side, side)), ((400 - side) // 2, (400 - side) // 2))
        for edited in (canvas.resize((200, 200)), canvas.rotate(2, fillcolor="white"), canvas.crop((8, 8, 392, 392))):
            (alone,) = [found for found in groups_of([*originals, described(edited, 60)]).values() if 12 in found]
            assert alone == [copy, 12]


def test_old_photos_without_a_palette_do_not_draw_new_ones_into_their_group() -> None:
    """A data set of before has a group of hundreds of plain photos, none with a palette; new dishes found their own."""
    olds = [on_plain(dish, 0.4, "white") for dish in pictures(40, seed=1)]
    existing = [Photo(each.sha256, each.dhash, b"", olds[0].sha256, TRAIN) for each in olds]
    groups = groups_of([on_plain(dish, 0.4, "white") for dish in pictures(20, seed=2)], existing)
    joined = len(groups.get(olds[0].sha256, ()))
    assert joined <= 2, f"{joined} of 20"


def test_a_crowd_holds_together_by_more_than_a_chain() -> None:
    """Each of 60 hashes is 5 bits on from the last one, and far from all others: no one dish, whatever it links."""
    chance = np.random.default_rng(0)
    value, chain = 0x5A3C96F00FA5C369, []
    for n in range(60):
        value ^= sum(1 << int(bit) for bit in chance.choice(64, 5, replace=False))
        chain.append(replace(photo(f"link {n}", 0), dhash=f"{value:016x}"))
    assert len({at.group for at in place(chain, []) if isinstance(at, Place)}) > 30
    assert len({at.group for at in place(chain[:15], []) if isinstance(at, Place)}) == 1, "few may be frames"
    first = chain[0]
    there = [replace(one, group=first.sha256, split=TRAIN) for one in chain[:40]]
    joined = [at.group == first.sha256 for at in place(chain[40:], there) if isinstance(at, Place)]
    assert not any(joined), "nor does a crowd that is there draw in what is near one of its members"
    dense = [photo(f"frame {n}", n % 6) for n in range(40)]
    assert len({at.group for at in place(dense, []) if isinstance(at, Place)}) == 1, "a burst stays one group"


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
