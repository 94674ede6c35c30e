"""Scores and statistics against values worked out by hand or by another library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from ssclass.retrain.scores import align, compare, predicted, score, slices
from ssclass.retrain.statistics import calibration_error, clopper_pearson, mcnemar_exact, paired_bootstrap


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_scores_agree_with_scikit_learn(seed, k):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, 30)])
    probabilities = rng.dirichlet(np.ones(k), len(labels))
    called = probabilities.argmax(axis=1)
    found = score(probabilities, labels, [f"class {i}" for i in range(k)])
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, called))
    assert found.loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(k)), rel=1e-5)
    for name, theirs in (
        ("recall", metrics.recall_score),
        ("precision", metrics.precision_score),
        ("f_measure", metrics.f1_score),
    ):
        assert getattr(found, name) == pytest.approx(theirs(labels, called, average="macro", zero_division=0))
    assert np.array_equal(found.confusion, metrics.confusion_matrix(labels, called))


def test_scores_refuse_what_is_not_finite_or_does_not_fit():
    with pytest.raises(ValueError, match="finite"):
        score(np.array([[np.nan, 1.0]]), np.array([0]), ["a", "b"])
    with pytest.raises(ValueError, match="do not fit"):
        score(np.ones((2, 2)) / 2, np.array([0]), ["a", "b"])


def test_a_class_unknown_to_a_model_is_never_right():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    aligned = align(probabilities, ("b", "a"), ("a", "b", "c"))
    assert aligned.tolist() == [[0.1, 0.9, 0.0], [0.8, 0.2, 0.0]]
    assert predicted(probabilities, ("b", "gone"), ("a", "b")).tolist() == [1, -1]


def test_comparison_counts_discordant_photos():
    found = compare(np.array([True, True, False, True]), np.array([False, True, True, False]))
    assert (found.wins, found.losses, found.difference) == (2, 1, 0.25)


def test_exact_mcnemar_and_clopper_pearson_have_textbook_values():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar_exact(9, 2) == pytest.approx(0.06543, abs=1e-5)
    span = clopper_pearson(148, 160)
    assert (span.low, span.high) == (pytest.approx(0.8725, abs=1e-3), pytest.approx(0.9607, abs=1e-3))
    assert clopper_pearson(0, 0).high == 1.0


def test_bootstrap_interval_covers_the_mean_and_is_repeatable():
    difference = np.array([1.0] * 30 + [-1.0] * 10 + [0.0] * 60)
    span = paired_bootstrap(difference)
    assert span.low < 0.2 < span.high
    assert span == paired_bootstrap(difference)
    assert span.low > 0.05


def test_calibration_error_of_a_confident_liar():
    assert calibration_error(np.array([0.9] * 10), np.array([True] * 9 + [False])) == pytest.approx(0.0)
    assert calibration_error(np.array([1.0] * 4), np.array([True, True, False, False])) == pytest.approx(0.5)


def test_slices_count_by_name():
    assert slices(np.array([True, False, True]), ["x", "x", "y"]) == {"x": (1, 2), "y": (1, 1)}
