"""Win rates, accuracies and calibration: known values, clusters, coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stepalign.support.shares import (
    effective_trials,
    paired_share_interval,
    reliability,
    share_change_interval,
    share_interval,
    wilson_interval,
    win_rate,
)

TRIALS = 4.142857142857143 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 2)) ** 2


# Win rates


def test_one_image_per_prompt_has_wilsons_interval_and_ties_are_half_wins() -> None:
    """6 wins, 1 tie, 3 losses of 10: .65."""
    won = win_rate(np.array([1.0, 2, 3, 0.1, 5, 6, 0, -1, -2, -3]), np.arange(10))
    assert (won.wins, won.ties, won.losses, won.rate) == (6, 1, 3, 0.65)
    assert won.interval == wilson_interval(6.5, 10)


def test_several_images_are_shares_of_their_prompt() -> None:
    """Prompt 0 wins 2 of 2, prompt 1 one of 2, prompt 2 ties and loses: (1 + .5 + .25) / 3.

    Residuals' squares are .1736 (three times), .3403 (twice) and .0069: a mean of .2014. Prompts' sums over 6 are
    .1389, -.0278, -.1111; the sum of their squares times 3/2 is .0486. .2014 / .0486 = 4.143 trials, times
    (1.96 / 4.303)² for two degrees of freedom."""
    won = win_rate(np.array([1.0, 2, 3, -1, 0, -5]), np.array([0, 0, 1, 1, 2, 2]))
    assert (won.wins, won.ties, won.losses) == (3, 1, 2)
    assert won.rate == pytest.approx(1.75 / 3)
    assert won.interval == pytest.approx(wilson_interval(won.rate * TRIALS, TRIALS), rel=1e-12)


def test_a_prompt_weighs_the_same_however_many_images_it_has() -> None:
    """One prompt loses its 8 images, three win their one: 3 of 4 prompts, and 3 of 11 images."""
    won = win_rate(np.array([-1.0] * 8 + [1.0] * 3), np.array([0] * 8 + [1, 2, 3]))
    assert (won.wins, won.losses, won.rate) == (3, 8, 0.75)


def test_where_all_prompts_agree_the_interval_still_has_a_width() -> None:
    won = win_rate(np.ones(20), np.repeat(np.arange(10), 2))
    assert (won.rate, won.interval) == (1.0, wilson_interval(10, 10))
    assert won.interval[0] == pytest.approx(0.7225, abs=5e-5)


@pytest.mark.parametrize(("rate", "images"), [(0.75, 1), (0.75, 4)])
def test_the_interval_covers_the_win_rate(rate: float, images: int) -> None:
    """400 studies of 80 prompts, whose own win rates follow a beta distribution: 95 % nominally, with a standard error
    of 1.1 %."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(80), images)
    covered = 0
    for _ in range(400):
        own = rng.beta(2 * rate, 2 * (1 - rate), size=80)
        differences = np.where(rng.random(len(clusters)) < own[clusters], 1.0, -1.0)
        low, high = win_rate(differences, clusters).interval
        covered += low <= rate <= high
    assert 0.92 <= covered / 400 <= 0.98


# Clusters


def test_values_of_their_own_are_trials_and_clusters_that_agree_are_one_each() -> None:
    values = np.array([1.0, 0, 1, 1])
    assert effective_trials(values, np.arange(4)) == 4
    assert effective_trials(np.ones(20), np.repeat(np.arange(5), 4)) == 5


def test_copies_are_worth_what_the_originals_are_and_their_degrees_of_freedom_cost() -> None:
    """The clusters' variance is s²/c with c - 1: (c - 1) trials, times (z / t)²."""
    values = (np.arange(40) % 3 > 0).astype(float)
    found = effective_trials(np.repeat(values, 16), np.repeat(np.arange(40), 16))
    assert found == pytest.approx(39 * (1.959964 / stats.t.ppf(0.975, 39)) ** 2, rel=1e-6)


def test_values_are_never_worth_more_than_they_are() -> None:
    """Each prompt has one of two: no variance between prompts, by chance or design."""
    found = effective_trials(np.tile([0.0, 1.0], 30), np.repeat(np.arange(30), 2))
    assert found == pytest.approx(60 * (1.959964 / stats.t.ppf(0.975, 29)) ** 2, rel=1e-6)


@pytest.mark.parametrize(("prompts", "pairs", "truth"), [(20, 16, 0.75), (100, 16, 0.9), (100, 4, 0.6), (10, 16, 0.5)])
def test_the_interval_covers_an_accuracy_that_varies_between_prompts(prompts: int, pairs: int, truth: float) -> None:
    """500 studies, prompts' own accuracies with a beta distribution (intraclass correlation .3): 95 % nominally, with a
    standard error of 1 %; Wilson's over pairs covers 57 to 88 %."""
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(prompts), pairs)
    own = rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, size=(500, prompts))
    right = (rng.random((500, prompts * pairs)) < own[:, clusters]).astype(float)
    ends = [share_interval(row, clusters) for row in right]
    assert 0.925 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.98
    naive = [wilson_interval(float(row.sum()), len(row)) for row in right]
    assert np.mean([low <= truth <= high for low, high in naive]) <= 0.89


def test_the_interval_covers_a_paired_difference_that_varies_between_prompts() -> None:
    """500 studies of 30 prompts of 16 pairs; prompts' own chances of a gain and of a loss are Dirichlet."""
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(30), 16)
    covered, naive = 0, 0
    for _ in range(500):
        own = rng.dirichlet([0.5, 0.3, 1.7], size=30)[clusters].cumsum(1)
        draw = rng.random(len(clusters))
        changes = np.where(draw < own[:, 0], 1.0, np.where(draw < own[:, 1], -1.0, 0.0))
        low, high = share_change_interval(changes, clusters)
        covered += low <= 0.08 <= high
        low, high = paired_share_interval(float((changes > 0).sum()), float((changes < 0).sum()), len(changes))
        naive += low <= 0.08 <= high
    assert 0.93 <= covered / 500 <= 0.98
    assert naive / 500 < 0.75


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


def test_no_values_have_the_widest_interval() -> None:
    nothing = np.zeros(0)
    assert (share_interval(nothing, nothing), share_change_interval(nothing, nothing)) == ((0, 1), (-1, 1))


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


def test_no_pairs_have_no_reliability() -> None:
    assert reliability(torch.zeros(0)) == {"error": None, "bins": []}
