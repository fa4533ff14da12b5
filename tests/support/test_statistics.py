"""Intervals: known values, an exact bootstrap, coverage by simulation."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial, prod
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats

from stepalign.support.statistics import BCA_FROM, CHUNK, bca_interval, mean_interval, paired_difference

SKEWED = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.9, 1.1, 1.6, 2.4, 5.0])


def test_the_interval_of_a_skewed_sample_is_scipys() -> None:
    """scipy.stats.bootstrap(method="BCa") with 400 000 resamples: .66 to 2.64; its plain percentiles: .54 to 2.25."""
    low, high = bca_interval(SKEWED)
    assert low == pytest.approx(0.66, abs=0.02)
    assert high == pytest.approx(2.64, abs=0.08)


def test_a_lower_level_is_a_narrower_interval() -> None:
    """scipy at a level of .8: .82 to 2.09."""
    assert bca_interval(SKEWED, level=0.8) == pytest.approx((0.82, 2.09), abs=0.03)


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


def test_the_interval_covers_the_mean_of_skewed_studies() -> None:
    """400 studies of 80 exponential values: 95 % nominally, with a standard error of 1.1 %."""
    rng = np.random.default_rng(0)
    intervals = [bca_interval(rng.exponential(size=80), seed=study, num_resamples=400) for study in range(400)]
    assert 0.92 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize("num", [2, 7, 128, 1000, CHUNK + 5])
def test_resampling_in_chunks_draws_what_resampling_one_by_one_does(num: int) -> None:
    """The ends are quantiles of the same 40 means, up to rounding."""
    values = np.random.default_rng(num).exponential(size=num)
    rng = np.random.default_rng(3)
    means = np.sort([values[rng.integers(num, size=num)].mean() for _ in range(40)])
    low, high = bca_interval(values, seed=3, num_resamples=40)
    normal, mean = NormalDist(), values.mean()
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / 40, 1 - 1 / 40)))
    influence = mean - (values.sum() - values) / (num - 1)
    acceleration = (influence**3).sum() / (6 * ((influence**2).sum()) ** 1.5)
    shifted = [bias + normal.inv_cdf(tail) for tail in ((1 - 0.95) / 2, (1 + 0.95) / 2)]
    ends = [np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))) for z in shifted]
    assert (low, high) == pytest.approx(tuple(ends), rel=1e-12)


def test_values_without_spread_give_an_interval_of_no_width() -> None:
    assert bca_interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3), abs=1e-15)


def test_the_seed_decides_the_interval() -> None:
    assert bca_interval(SKEWED, seed=3) == bca_interval(SKEWED, seed=3)
    assert bca_interval(SKEWED, seed=3) != bca_interval(SKEWED, seed=4)


@pytest.mark.parametrize("num", [2, 5, BCA_FROM - 1])
def test_few_values_have_students_interval(num: int) -> None:
    values = np.random.default_rng(num).exponential(size=num)
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, level=0.9) == pytest.approx((oracle.low, oracle.high))
    assert mean_interval(np.full(num, 0.3)) == pytest.approx((0.3, 0.3), abs=1e-15)


def test_many_values_have_the_bootstraps_interval() -> None:
    values = np.random.default_rng(0).exponential(size=BCA_FROM)
    assert mean_interval(values, seed=3) == bca_interval(values, seed=3)


@pytest.mark.parametrize(("num", "least"), [(5, 0.92), (20, 0.93)])
def test_the_interval_of_few_gains_covers_their_mean(num: int, least: float) -> None:
    """1000 studies of gains that differ by prompt, skewed, and by image, normal; BCa's covers 81 % and 91 %."""
    rng = np.random.default_rng(0)
    gains = rng.exponential(size=(1000, num)) + rng.normal(size=(1000, num))
    covered = [low <= 1 <= high for low, high in map(mean_interval, gains)]
    assert least <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_items_are_refused(num: int) -> None:
    for interval in (bca_interval, mean_interval):
        with pytest.raises(ValueError, match=f"got {num}"):
            interval(np.ones(num))


def test_a_paired_difference_is_aligned_less_base() -> None:
    """Base 1, 2, 3, 4 and aligned 2, 4, 4, 6: means 2.5 and 4, differences 1, 2, 1, 2: 1.5 ± 3.182 · .5774 / 2."""
    result = paired_difference(torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 4, 4, 6]))
    assert (result.base, result.aligned, result.difference) == (2.5, 4.0, 1.5)
    assert result.interval == pytest.approx((0.5813, 2.4187), abs=5e-5)


def test_pairing_removes_what_items_have_in_common() -> None:
    """Items differ by hundreds, the two systems by 1 on every one of them."""
    base = torch.tensor([100.0, 500.0, 900.0])
    assert paired_difference(base, base + 1).interval == (1.0, 1.0)
