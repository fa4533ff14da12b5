"""Intervals: known values, an exact bootstrap, coverage by simulation."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial, prod
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats

from stepalign import statistics
from stepalign.statistics import bca_interval, paired_difference, wilson_interval

SKEWED = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.9, 1.1, 1.6, 2.4, 5.0])


def test_the_interval_of_a_skewed_sample_is_scipys() -> None:
    """scipy.stats.bootstrap(method="BCa") with 400 000 resamples: .66 to 2.64; its plain percentiles: .54 to 2.25."""
    low, high = bca_interval(SKEWED)
    assert low == pytest.approx(0.66, abs=0.02)
    assert high == pytest.approx(2.64, abs=0.08)


def test_a_lower_level_is_a_narrower_interval() -> None:
    """scipy at a level of .8: .82 to 2.09."""
    assert bca_interval(SKEWED, level=0.8) == pytest.approx((0.82, 2.09), abs=0.03)


def test_the_interval_of_mirrored_values_is_mirrored() -> None:
    low, high = bca_interval(-SKEWED)
    assert low == pytest.approx(-2.64, abs=0.08)
    assert high == pytest.approx(-0.66, abs=0.02)


def test_the_interval_moves_and_stretches_with_the_values() -> None:
    low, high = bca_interval(SKEWED)
    assert bca_interval(3 * SKEWED + 7) == pytest.approx((3 * low + 7, 3 * high + 7), abs=0.05)


def test_the_interval_is_that_of_the_exact_bootstrap_distribution() -> None:
    """All 6^6 resamples of six values at once, their probabilities multinomial.

    bias = Phi^-1(P(mean* < mean) + P(mean* = mean)/2); acceleration = sum d³ / (6 (sum d²)^1.5), d = value - mean;
    the ends are the quantiles at Phi(bias + (bias + z)/(1 - acceleration (bias + z))), z = -1.96 and 1.96.
    """
    values = np.array([0.0, 0.31, 0.73, 1.9, 3.7, 9.1])
    counts = [np.bincount(rows, minlength=6) for rows in combinations_with_replacement(range(6), 6)]
    means = np.array([row @ values / 6 for row in counts])
    chance = np.array([factorial(6) / prod(map(factorial, row.tolist())) / 6**6 for row in counts])
    normal, mean, d = NormalDist(), values.mean(), values - values.mean()
    bias = normal.inv_cdf(chance[means < mean - 1e-9].sum() + chance[abs(means - mean) < 1e-9].sum() / 2)
    acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    order = means.argsort()
    ends = []
    for tail in (0.025, 0.975):
        z = bias + normal.inv_cdf(tail)
        share = normal.cdf(bias + z / (1 - acceleration * z))
        ends.append(means[order][np.searchsorted(chance[order].cumsum(), share)])
    low, high = bca_interval(values)
    assert low == pytest.approx(ends[0], abs=0.06)
    assert high == pytest.approx(ends[1], abs=0.25)


def test_scipy_agrees() -> None:
    oracle = stats.bootstrap((SKEWED,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert bca_interval(SKEWED) == pytest.approx((oracle.low, oracle.high), abs=0.1)


def test_the_interval_covers_the_mean_of_skewed_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 studies of 80 exponential values: 95 % nominally, with a standard error of 1.1 %."""
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 400)
    rng = np.random.default_rng(0)
    intervals = [bca_interval(rng.exponential(size=80), seed=study) for study in range(400)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98


def test_values_without_spread_give_an_interval_of_no_width() -> None:
    assert bca_interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3), abs=1e-15)


def test_the_seed_decides_the_interval() -> None:
    assert bca_interval(SKEWED, seed=3) == bca_interval(SKEWED, seed=3)
    assert bca_interval(SKEWED, seed=3) != bca_interval(SKEWED, seed=4)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_items_are_refused(num: int) -> None:
    with pytest.raises(ValueError, match=f"got {num}"):
        bca_interval(np.ones(num))


def test_a_paired_difference_is_aligned_less_base() -> None:
    """Base 1, 2, 3, 4 and aligned 2, 4, 4, 6: means 2.5 and 4, difference 1.5, every difference 1 or 2."""
    result = paired_difference(torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 4, 4, 6]))
    assert (result.base, result.aligned, result.difference) == (2.5, 4.0, 1.5)
    assert 1 <= result.interval[0] < 1.5 < result.interval[1] <= 2


def test_pairing_removes_what_items_have_in_common() -> None:
    """Items differ by hundreds, the two systems by 1 on every one of them."""
    base = torch.tensor([100.0, 500.0, 900.0])
    assert paired_difference(base, base + 1).interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (123, 200, 0.5460, 0.6797),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval_is_the_known_one(successes: int, total: int, low: float, high: float) -> None:
    """Values of scipy.stats.binomtest(...).proportion_ci(method="wilson")."""
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_wilsons_interval_stays_within_zero_and_one(total: int) -> None:
    assert wilson_interval(0, total)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(total, total)[1] == pytest.approx(1, abs=1e-12)
    assert all(0 <= end <= 1 for successes in (0, total) for end in wilson_interval(successes, total))
