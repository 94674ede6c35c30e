"""The gate: its truth table, and what must hold for any predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssclass.params import GateParams
from ssclass.retrain.gate import Precondition, judge

LABELS = np.array([0] * 6 + [1] * 4)


def with_right(right: int) -> np.ndarray:
    """Predictions of which the first `right` are right."""
    predictions = 1 - LABELS
    predictions[:right] = LABELS[:right]
    return predictions


@pytest.mark.parametrize(
    ("candidate", "champion", "params", "broken", "promote"),
    [
        (8, 7, {}, False, True),
        (7, 7, {}, False, False),
        (6, 7, {}, False, False),
        (8, 7, {"min_net_wins": 2}, False, False),
        (9, 7, {"min_net_wins": 2}, False, True),
        (10, 0, {}, True, False),
        (7, None, {"floor_margin": 0.05}, False, True),
        (6, None, {"floor_margin": 0.0}, False, False),
        (7, None, {"floor_margin": 0.2}, False, False),
        (10, None, {}, True, False),
    ],
)
def test_truth_table(candidate, champion, params, broken, promote):
    preconditions = [Precondition("photos on both sides", not broken, "revoke the batch")]
    verdict = judge(
        LABELS,
        with_right(candidate),
        None if champion is None else with_right(champion),
        GateParams(**params),
        preconditions,
    )
    assert verdict.promote is promote
    assert verdict.decision == ("PROMOTED" if promote else "REJECTED")
    if broken:
        assert "revoke the batch" in verdict.reason


def test_a_class_that_the_champion_does_not_know_counts_against_it():
    champion = np.where(LABELS == 1, -1, LABELS)
    assert judge(LABELS, with_right(7), champion, GateParams()).promote


def test_predictions_of_other_photos_never_promote():
    assert not judge(LABELS, with_right(10)[:9], with_right(0), GateParams()).promote
    assert not judge(LABELS, with_right(10), with_right(0)[:9], GateParams()).promote


def test_no_held_out_photos_never_promote():
    empty = np.zeros(0, int)
    assert not judge(empty, empty, None, GateParams()).promote
    assert not judge(empty, empty, empty, GateParams()).promote


predictions = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-1, 2), min_size=n, max_size=n).map(np.array) for _ in range(3)])
)


@given(predictions, st.integers(1, 5))
def test_promotes_exactly_on_enough_net_wins(drawn, needed):
    labels, candidate, champion = np.abs(drawn[0]), drawn[1], drawn[2]
    net = int((candidate == labels).sum()) - int((champion == labels).sum())
    assert judge(labels, candidate, champion, GateParams(min_net_wins=needed)).promote == (net >= needed)


@given(predictions)
def test_swapping_the_models_flips_the_verdict(drawn):
    labels, one, other = np.abs(drawn[0]), drawn[1], drawn[2]
    there = judge(labels, one, other, GateParams()).promote
    back = judge(labels, other, one, GateParams()).promote
    tie = (one == labels).sum() == (other == labels).sum()
    assert (there != back) != tie
    assert not (there and back)


@given(predictions, st.randoms())
def test_the_order_of_the_photos_does_not_matter(drawn, chance):
    labels, candidate, champion = np.abs(drawn[0]), drawn[1], drawn[2]
    order = np.array(chance.sample(range(len(labels)), len(labels)))
    assert judge(labels, candidate, champion, GateParams()) == judge(
        labels[order], candidate[order], champion[order], GateParams()
    )


def test_the_floor_of_the_first_champion_can_be_reached():
    """With 96 of 100 photos of one class the majority and a margin of .05 would be 101 %."""
    labels = np.array([0] * 96 + [1] * 4)
    for wrong, promote in ((0, True), (1, True), (2, False), (4, False)):
        candidate = labels.copy()
        candidate[len(labels) - wrong :] = 0
        verdict = judge(labels, candidate, None, GateParams())
        assert verdict.promote is promote
        assert "floor of 98.0%" in verdict.reason


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0, 0.99))
def test_a_perfect_first_candidate_is_over_any_floor(majority, others, margin):
    labels = np.array([0] * majority + [1] * others)
    assert judge(labels, labels, None, GateParams(floor_margin=margin)).promote is (others > 0)


def test_one_dish_in_many_photos_does_not_outvote_the_others_where_groups_are_guarded():
    labels = np.zeros(96, dtype=int)
    groups = ["one dish"] * 61 + [f"dish {number}" for number in range(35)]
    champion, candidate = labels.copy(), labels.copy()
    champion[:10] = 1  # 51 of 61 views of one dish, and all others
    candidate[61:70] = 1  # all views of one dish, and 26 of 35 others
    assert judge(labels, candidate, champion, GateParams()).promote, "the rule: strictly more photos right"
    verdict = judge(labels, candidate, champion, GateParams(guard_groups=True), groups=groups)
    assert not verdict.promote
    assert verdict.reason == (
        "candidate 87/96, champion 86/96, with one vote for each group of near-copies 27.0/36, champion 35.8/36 "
        "(gate.guard_groups)"
    )
    alone = [f"dish {number}" for number in range(96)]
    assert judge(labels, candidate, champion, GateParams(guard_groups=True), groups=alone).promote


def test_a_class_may_be_guarded_and_is_not_by_default():
    labels = np.array([0] * 90 + [1] * 10)
    champion, candidate = labels.copy(), labels.copy()
    champion[:7], champion[90:94] = 1, 0  # 89 right: 83 of 90, 6 of 10
    candidate[90:99] = 0  # 91 right: 90 of 90, 1 of 10
    assert judge(labels, candidate, champion, GateParams()).promote, "the rule: strictly more right"
    verdict = judge(labels, candidate, champion, GateParams(max_recall_loss=0.2), classes=("cake", "pie"))
    assert not verdict.promote
    assert verdict.reason == (
        "recall of pie: 1 of 10 right, the champion 6; falls by more than 0.2 (gate.max_recall_loss)"
    )
    assert "class 1" in judge(labels, candidate, champion, GateParams(max_recall_loss=0.2)).reason
    assert judge(labels, candidate, champion, GateParams(max_recall_loss=0.5)).promote, "exactly as much is allowed"
