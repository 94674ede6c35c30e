"""What a batch is warned of, or held for, by its rows and those before it: the ruler is not bent in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssclass.data.checks import drip, running_score, warnings
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, Row, Shard, Warned
from ssclass.params import HOLD, Params


def row(name: str, label: str = "sushi", split: str = "train", group: str = "", like: str | None = None) -> Row:
    """A photo whose dhash is drawn from its name, or is 2 bits from that of the photo `like`."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    dhash = sha256[:16] if like is None else f"{int(hashlib.sha256(like.encode()).hexdigest()[:16], 16) ^ 3:016x}"
    return Row(sha256, label, split, group or sha256, dhash, b"", name, 640, 480)


def rows(prefix: str, count: int, held_out: int = 0) -> list[Row]:
    return [
        row(f"{prefix}{n}", ("sushi", "sandwich")[n % 2], "holdout" if n < held_out else "train") for n in range(count)
    ]


def dataset(*batches: Sequence[Row]) -> Dataset:
    shards = []
    for number, batch in enumerate(batches, 1):
        shards.append(Shard(tuple(batch), Receipt(f"b{number}", "manifest.json", "etag", number, len(batch), 0)))
    return Dataset.of(shards)


def codes(found: Sequence[Warned]) -> set[str]:
    return {warned.code for warned in found}


def told(
    params: Params, new: Sequence[Row], *before: Sequence[Row], relabel: dict[str, str] | None = None
) -> list[Any]:
    found = list(warnings(new, relabel or {}, (), dataset(*before), params))
    photos = [photo for batch in (new, *before) for photo in batch]
    quoted = [
        each for each in found for photo in photos if photo.sha256[:12] in each.detail or photo.key in each.detail
    ]
    assert quoted == [], "the ledger keeps what is told for ever"
    return found


def test_a_usual_batch_is_told_nothing_of(params: Params) -> None:
    assert told(params, rows("new", 60, 12), rows("a", 80, 16), rows("b", 60, 12), rows("c", 70, 14)) == []
    assert told(params, rows("first", 60, 12)) == []


def test_copies_under_the_other_label_are_held(params: Params) -> None:
    there = rows("a", 100, 20)
    other = {"sushi": "sandwich", "sandwich": "sushi"}
    copies = [row(f"copy {old.key}", other[old.label], old.split, old.group, like=old.key) for old in there[:12]]
    found = told(params, [*rows("new", 40, 8), *copies], there)
    assert codes(found) == {"copies contradict"}
    assert "12 near-copies" in found[0].detail
    assert found[0].code in params.ingest.hold
    same = [replace(copy, label=other[copy.label]) for copy in copies]
    assert "copies contradict" not in codes(told(params, [*rows("new", 40, 8), *same], there))
    few = told(params, [*rows("new", 40, 8), *copies[:3]], there)
    assert codes(few) == {"copies differ in label"}, "a few are told, and hold nothing"
    relabel = {old.sha256: other[old.label] for old in there[:12]}
    corrected = told(params, copies, there, relabel=relabel)
    assert not codes(corrected) & {"copies contradict", "copies differ in label"}, "as corrected by the same batch"


def test_one_dish_that_would_be_most_of_the_ruler_is_held(params: Params) -> None:
    there = rows("a", 200, 35)
    dish = [row(f"dish {n}", "sushi", "holdout", "d" * 64) for n in range(61)]
    found = told(params, [*rows("new", 200, 0), *dish], there)
    assert "one group held out" in codes(found)
    assert "61 of 96 held-out photos" in next(each.detail for each in found if each.code == "one group held out")
    assert "one group held out" not in codes(told(params, [*rows("new", 200), *dish[:8]], there))
    trains = [replace(each, split="train") for each in dish]
    assert "one group held out" not in codes(told(params, [*rows("new", 200), *trains], there))
    later = told(params, [*rows("more", 50, 10), *dish[:1]], [*there, *dish[1:]])
    assert "one group held out" in codes(later), "as long as it grows"
    assert "one group held out" not in codes(told(params, rows("more", 50, 10), [*there, *dish]))


@pytest.mark.parametrize(("count", "held"), [(12, True), (3, True), (2, False), (1, False)])
def test_corrections_of_the_ruler_are_counted_as_such(params: Params, count: int, held: bool) -> None:
    there = rows("a", 200, 19)
    found = told(params, [], there, relabel={old.sha256: "sushi" for old in there[:count]})
    assert ("many corrections" in codes(found)) is held
    if held:
        assert f"{count} relabelled and 0 removed of 19 held-out photos" in found[0].detail
    train = told(params, [], there, relabel={old.sha256: "sushi" for old in there[19 : 19 + count]})
    assert train == [], "12 of 200 are not many"


def test_a_batch_that_groups_unlike_any_before_is_held(params: Params) -> None:
    usual = [[*rows(f"b{n}", 60), row(f"x{n}", group="a" * 64), row(f"y{n}", group="a" * 64)] for n in range(3)]
    collapsed = [row(f"plain {n}", ("sushi", "sandwich")[n % 2], group="e" * 64) for n in range(140)]
    assert "unlike groups" in codes(told(params, collapsed, *usual))
    assert "unlike groups" in codes(told(params, collapsed)), "the first batch of all"
    some = [*rows("new", 50), *(row(f"burst {n}", group="f" * 64) for n in range(6))]
    assert "unlike groups" not in codes(told(params, some, *usual)), "a burst of one dish is a flood at most"
    bursts = [[row(f"{b}/{n}", group=f"{b}{n // 6:063}") for n in range(60)] for b in range(4)]
    assert "unlike groups" not in codes(told(params, bursts[3], *bursts[:3])), "where bursts are usual"


def scored(chance: np.random.Generator, batches: int, n: int, rate: float, hits: int, of: int) -> list[dict[str, Any]]:
    return [
        {"key": f"k{b // 10}", "right": int(chance.binomial(n, rate)), "n": n, "champion_right": hits, "champion_n": of}
        for b in range(batches)
    ]


def test_a_drip_of_wrong_labels_shows_in_the_running_score(params: Params) -> None:
    """60 batches of 8 photos, 2 of each wrong: every one is plausible, and after a few they are not."""
    chance = np.random.default_rng(0)
    alarms, early = [], []
    for _ in range(20):
        tests = scored(chance, 60, 8, 0.93 * 6 / 8 + 0.07 * 2 / 8, 370, 400)
        first = next((n for n in range(1, 61) if drip(tests[:n], params)), None)
        alarms.append(first)
        early.append(first is not None and first <= 16)
    assert all(alarms)
    assert sum(early) >= 18, alarms


def test_good_batches_hardly_ever_alarm(params: Params) -> None:
    chance = np.random.default_rng(1)
    false = 0
    for _ in range(40):
        tests = scored(chance, 40, 60, 0.92, 372, 400)  # a champion whose record flatters it by a point
        false += any(drip(tests[:n], params) for n in range(1, 41))
    assert false <= 1


def test_the_running_score_of_few_or_no_batches() -> None:
    assert running_score([]) is None
    one = {"key": "k", "right": 0, "n": 40, "champion_right": 90, "champion_n": 100}
    assert running_score([one]) is None, "a single batch has its own test"
    assert running_score([one, one | {"n": 0}]) is None
    two = running_score([one, one])
    assert two is not None
    assert (two.batches, two.right, two.n) == (2, 0, 80)
    assert two.p < 1e-6
    perfect = running_score([one | {"right": 40, "champion_right": 100}] * 5)
    assert perfect is not None
    assert perfect.p > 0.1


def test_what_bends_the_ruler_holds_by_default(params: Params) -> None:
    assert set(params.ingest.hold) == set(HOLD)
    assert {"copies contradict", "one group held out", "unlike groups", "running score"} <= set(HOLD)
