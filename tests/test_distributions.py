"""What replaces imports of seconds gives what SciPy's statistics and scikit-learn give."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ssclass import distributions
from ssclass.model.folds import grouped_folds
from ssclass.pages import ranks

COUNTS = [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (148, 160), (160, 160), (0, 160), (9_000, 10_000), (40, 100_000)]


@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_the_binomial_is_that_of_scipy(k: int, n: int) -> None:
    from scipy.stats import binom, binomtest

    for rate in (0.001, 0.3, 0.5, 0.97):
        assert distributions.binomial_at_least(k, n, rate) == pytest.approx(
            binom.sf(k - 1, n, rate), rel=1e-9, abs=1e-300
        )
    for level in (0.8, 0.95):
        expected = binomtest(k, n).proportion_ci(level, method="exact")
        assert distributions.binomial_interval(k, n, level) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-12)
    assert distributions.fair_coin(k, n - k) == pytest.approx(binomtest(k, n).pvalue, rel=1e-9, abs=1e-300)
    assert distributions.fair_coin(0, 0) == 1.0


@pytest.mark.parametrize(("k", "n"), [*COUNTS, (-1, 5), (6, 5)])
def test_the_beta_binomial_is_that_of_scipy(k: int, n: int) -> None:
    from scipy.stats import betabinom

    for a, b in ((0.5, 0.5), (148.5, 12.5), (0.5, 900.5), (3e5, 4e4)):
        expected = betabinom.cdf(k, n, a, b)
        assert distributions.beta_binomial(k, n, a, b) == pytest.approx(expected, rel=1e-6, abs=1e-300)
        moments = betabinom.stats(n, a, b)
        assert distributions.beta_binomial_moments(n, a, b) == pytest.approx([float(each) for each in moments])


def test_the_test_of_shares_and_the_quantile_are_those_of_scipy() -> None:
    from scipy.stats import chi2_contingency, t

    draw = np.random.default_rng(0)
    for shape in ((2, 2), (2, 3), (2, 6), (3, 4)):
        for top in (4, 60, 5000):
            table = draw.integers(1, top, shape)
            expected = chi2_contingency(table)[1]
            assert distributions.homogeneous(table.tolist()) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert distributions.homogeneous([[5, 5], [50, 50]]) == pytest.approx(chi2_contingency([[5, 5], [50, 50]])[1])
    for freedom in (1, 2, 4, 9):
        assert distributions.student_quantile(0.975, freedom) == pytest.approx(t.ppf(0.975, freedom))
    assert np.isnan(distributions.student_quantile(0.975, 0))


@pytest.mark.parametrize("seed", range(12))
def test_folds_are_those_of_scikit_learn(seed: int) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    draw = np.random.default_rng(seed)
    classes = 2 + seed % 3
    n = int(draw.integers(30, 300))
    labels = draw.choice(classes, n, p=draw.dirichlet([4] * classes))
    labels[: 4 * classes] = np.arange(4 * classes) % classes
    groups = [f"{number:03}" for number in draw.integers(0, (n, n // 3)[seed % 2], n)]
    names = [str(number) for number in range(classes)]
    found = grouped_folds(labels, groups, names, 5, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        splitter = StratifiedGroupKFold(len(found), shuffle=True, random_state=seed)
        expected = list(splitter.split(groups, labels, groups))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("n", [1, 2, 3, 40, 400])
def test_curves_are_those_of_scikit_learn(n: int, digits: int) -> None:
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    draw = np.random.default_rng(n)
    for _ in range(5):
        scores = draw.random(n).round(digits)
        own = draw.random(n) < scores
        own[0] = True
        precision, recall, _ = precision_recall_curve(own, scores)
        np.testing.assert_allclose(ranks.precision_recall(own, scores), (precision, recall))
        average = average_precision_score(own, scores)
        assert ranks.average_precision(*ranks.precision_recall(own, scores)) == pytest.approx(average)
        if not own.all():
            false, true, _ = roc_curve(own, scores)
            np.testing.assert_allclose(ranks.roc(own, scores), (false, true))
            assert np.trapezoid(*ranks.roc(own, scores)[::-1]) == pytest.approx(auc(false, true))
