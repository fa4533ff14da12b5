"""Intervals: known values, an exact bootstrap, coverage by simulation."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from math import factorial, prod
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats

from stepalign.statistics import (
    CHUNK,
    bca_interval,
    paired_difference,
    paired_share_interval,
    reliability,
    wilson_interval,
)

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


def test_the_interval_covers_the_mean_of_skewed_studies() -> None:
    """400 studies of 80 exponential values: 95 % nominally, with a standard error of 1.1 %."""
    rng = np.random.default_rng(0)
    intervals = [bca_interval(rng.exponential(size=80), seed=study, num_resamples=400) for study in range(400)]
    assert 0.92 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize("num", [2, 7, 128, 1000, CHUNK + 5])
def test_resampling_in_chunks_draws_what_resampling_one_by_one_does(num: int) -> None:
    """The ends are quantiles of the same 40 means, to the last bit."""
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
    assert (low, high) == tuple(ends)


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


# Paired shares


@pytest.mark.parametrize(
    ("gains", "losses", "total", "low", "high"),
    [(12, 4, 40, 0.0069, 0.3741), (0, 0, 10, -0.1633, 0.1633), (2.5, 0.5, 18, -0.0910, 0.2910), (0, 0, 0, -1, 1)],
)
def test_a_paired_difference_of_shares_by_hand(
    gains: float, losses: float, total: int, low: float, high: float
) -> None:
    """Half an item more in each of four cells: 12.5 gains and 4.5 losses of 42 are 8/42 = .1905, with a half-width of
    1.96 sqrt(17 - 8²/42) / 42 = .1836; none of ten: 1.96 sqrt(1) / 12; 3 and 1 of 20: .1 ± 1.96 sqrt(4 - 4/20) / 20."""
    assert paired_share_interval(gains, losses, total) == pytest.approx((low, high), abs=5e-5)


def test_a_paired_difference_the_other_way_round_is_mirrored() -> None:
    low, high = paired_share_interval(7, 3, 25)
    assert paired_share_interval(3, 7, 25) == pytest.approx((-high, -low), abs=1e-15)


@pytest.mark.parametrize(("gain", "loss", "num"), [(0.25, 0.15, 60), (0.3, 0.3, 40), (0.1, 0.04, 200)])
def test_the_paired_interval_covers_the_difference(gain: float, loss: float, num: int) -> None:
    """2000 studies: 95 % nominally, with a standard error of .5 %; at moderate sizes it is a little cautious."""
    counts = np.random.default_rng(0).multinomial(num, [gain, loss, 1 - gain - loss], size=2000)
    intervals = [paired_share_interval(int(gains), int(losses), num) for gains, losses, _ in counts]
    covered = np.mean([low <= gain - loss <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize("total", [1, 2, 5, 30])
def test_the_paired_interval_stays_within_minus_one_and_one(total: int) -> None:
    ends = [*paired_share_interval(total, 0, total), *paired_share_interval(0, total, total)]
    assert all(-1 <= end <= 1 for end in ends)


# Reliability


def gaps_of(probability: float, *, right: int, wrong: int) -> torch.Tensor:
    """Pairs a judge gives that probability, in so many of which people agree and disagree."""
    gap = math.log(probability / (1 - probability))
    return torch.tensor([gap] * right + [-gap] * wrong)


def test_an_overconfident_judges_error_by_hand() -> None:
    """Right in 7 of 10 where it says .92, in 15 of 30 where it says .62: (10 · .22 + 30 · .12) / 40 = .145."""
    gaps = torch.cat([gaps_of(0.92, right=7, wrong=3), gaps_of(0.62, right=15, wrong=15)])
    found = reliability(gaps)
    assert found["error"] == pytest.approx(0.145, abs=1e-6)
    unsure, sure = found["bins"]
    assert [(row["low"], row["high"], row["pairs"]) for row in (unsure, sure)] == [
        (pytest.approx(0.6), pytest.approx(0.65), 30),
        (pytest.approx(0.9), pytest.approx(0.95), 10),
    ]
    assert (unsure["probability"], unsure["frequency"]) == pytest.approx((0.62, 0.5), abs=1e-6)
    assert (sure["probability"], sure["frequency"]) == pytest.approx((0.92, 0.7), abs=1e-6)
    assert unsure["interval"] == pytest.approx(wilson_interval(15, 30))
    assert sure["interval"] == pytest.approx(wilson_interval(7, 10))


def test_an_error_does_not_cancel_between_bins() -> None:
    """Right in 10 of 10 where it says .62, in 0 of 10 where it says .92: (.38 + .92) / 2."""
    gaps = torch.cat([gaps_of(0.62, right=10, wrong=0), gaps_of(0.92, right=0, wrong=10)])
    assert reliability(gaps)["error"] == pytest.approx(0.65, abs=1e-6)


def test_bins_have_equal_widths_from_a_half_to_one_and_empty_ones_are_left_out() -> None:
    gaps = torch.cat([gaps_of(share, right=1, wrong=0) for share in (0.51, 0.624, 0.626, 0.74, 0.76, 0.99)])
    bins = reliability(gaps, num_bins=4)["bins"]
    assert [(row["low"], row["high"], row["pairs"]) for row in bins] == [
        (0.5, 0.625, 2),
        (0.625, 0.75, 2),
        (0.75, 0.875, 1),
        (0.875, 1.0, 1),
    ]
    assert [row["low"] for row in reliability(gaps[[0, 5]], num_bins=4)["bins"]] == [0.5, 0.875]


def test_equal_scores_are_a_half_half_right_and_certainty_belongs_to_the_last_bin() -> None:
    undecided, certain = reliability(torch.tensor([0.0, 0.0, 0.0, 200.0]))["bins"]
    assert (undecided["low"], undecided["probability"], undecided["frequency"]) == (0.5, 0.5, 0.5)
    assert (certain["low"], certain["high"], certain["probability"]) == (0.95, 1.0, 1.0)


def test_a_judge_that_means_what_it_says_is_reliable() -> None:
    """20 studies of 2000 pairs, right with the probability that the judge gives: of 200 intervals about 190 contain
    the mean probability of their bin."""
    contained = []
    for study in range(20):
        rng = np.random.default_rng(study)
        size = np.abs(2 * rng.standard_normal(2000))
        right = rng.random(2000) < 1 / (1 + np.exp(-size))
        found = reliability(torch.from_numpy(np.where(right, size, -size)))
        assert found["error"] < 0.04
        assert sum(row["pairs"] for row in found["bins"]) == 2000
        contained += [row["interval"][0] <= row["probability"] <= row["interval"][1] for row in found["bins"]]
    assert len(contained) == 200
    assert 0.9 <= np.mean(contained) <= 0.99


def test_no_pairs_have_no_reliability() -> None:
    assert reliability(torch.zeros(0)) == {"error": None, "bins": []}
