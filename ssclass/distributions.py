"""The distributions that checks and scores need, by SciPy's special functions: importing `scipy.stats` takes seconds.

tests/test_distributions.py holds each against `scipy.stats`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def binomial_at_least(k: int, n: int, rate: float) -> float:
    """The chance of k or more of n, each with the chance `rate`."""
    from scipy.special import betainc

    if k <= 0:
        return 1.0
    return float(betainc(k, n - k + 1, rate)) if k <= n else 0.0


def binomial_interval(k: int, n: int, level: float) -> tuple[float, float]:
    """The exact interval of the rate of which k of n were seen (Clopper and Pearson, Biometrika 1934)."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def fair_coin(heads: int, tails: int) -> float:
    """The exact two-sided p of so many heads and tails of a fair coin; 1 of none."""
    n = heads + tails
    return min(1.0, 2 * binomial_at_least(max(heads, tails), n, 0.5)) if n else 1.0


def beta_binomial(k: int, n: int, a: float, b: float) -> float:
    """The chance of at most k of n, whose common rate is drawn from Beta(a, b)."""
    from scipy.special import betaln, gammaln

    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    at = np.arange(k + 1)
    ways = gammaln(n + 1) - gammaln(at + 1) - gammaln(n - at + 1)
    return min(1.0, float(np.exp(ways + betaln(at + a, n - at + b) - betaln(a, b)).sum()))


def beta_binomial_moments(n: int, a: float, b: float) -> tuple[float, float]:
    """Mean and variance of the same."""
    total = a + b
    return n * a / total, n * a * b * (total + n) / (total**2 * (total + 1))


def homogeneous(table: Sequence[Sequence[int]]) -> float:
    """The p of the chi-squared test that the rows of a table of counts have the same shares (Yates's for 2 x 2)."""
    from scipy.special import chdtrc

    counts = np.asarray(table, float)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    away = np.abs(counts - expected)
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    if freedom == 1:
        away = away - np.minimum(0.5, away)
    return float(chdtrc(freedom, (away**2 / expected).sum()))


def student_quantile(share: float, freedom: int) -> float:
    """The quantile of Student's t with so many degrees of freedom; NaN with none."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share)) if freedom > 0 else float("nan")
