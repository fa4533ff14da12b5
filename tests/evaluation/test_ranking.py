"""Bradley-Terry: by hand, against another algorithm, recovering truths, and what has no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stepalign.evaluation.ranking import bradley_terry, prior_ties, rank

WINS = np.array([[0.0, 3, 7, 2], [9, 0, 6.5, 4], [5, 3.5, 0, 8], [6, 8, 1, 0]])


def matches(truth: np.ndarray, num: int, *, seed: int = 0) -> np.ndarray:
    """Scores "m n" by which i beats j with the probability of Bradley and Terry: strengths plus Gumbel noise (Luce and
    Suppes 1965)."""
    return truth[:, None] + np.random.default_rng(seed).gumbel(size=(len(truth), num))


def minorized(wins: np.ndarray) -> np.ndarray:
    """Hunter's (2004) MM algorithm, step by step."""
    p, games = np.ones(len(wins)), wins + wins.T
    for _ in range(2_000):
        p = wins.sum(axis=1) / (games / (p[:, None] + p[None])).sum(axis=1)
        p /= np.exp(np.log(p).mean())
    return np.log(p)


def test_two_systems_differ_by_their_log_odds() -> None:
    """30 wins to 10: log 3, half up and half down."""
    found = bradley_terry(np.array([[0.0, 30], [10, 0]]))
    assert found == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-9)


def test_the_mm_algorithm_agrees() -> None:
    np.testing.assert_allclose(bradley_terry(WINS), minorized(WINS), atol=1e-8)


def test_a_system_that_nearly_always_wins_is_ranked_at_once() -> None:
    """Where MM takes 20 000 rounds: every match but half of one of 5000 goes to the stronger."""
    wins = np.tril(np.full((6, 6), 5000.0), -1) + prior_ties(6)
    found = bradley_terry(wins)
    chance = 1 / (1 + np.exp(found[None] - found[:, None]))
    np.testing.assert_allclose(((wins + wins.T) * chance).sum(axis=1), wins.sum(axis=1), rtol=1e-9)


def test_strengths_are_recovered() -> None:
    truth = np.array([-0.8, 0.0, 0.3, 0.5])
    found = rank(matches(truth, 4000), np.arange(4000))
    assert [row.strength for row in found] == pytest.approx((truth - truth.mean()).tolist(), abs=0.04)
    assert all(row.interval[0] < row.strength < row.interval[1] for row in found)
    assert all(row.interval[1] - row.interval[0] < 0.15 for row in found)


@pytest.mark.parametrize(
    ("truth", "prompts", "studies"),
    [([-1.5, 1.5], 20, 80), ([-3.0, 0.0, 3.0], 20, 40)],
)
def test_the_interval_covers_a_strength(truth: list[float], prompts: int, studies: int) -> None:
    """95 % nominally, with a standard error of 2.4 to 2.8 %, at P(win) up to .9975; percentiles of resamples covered
    60 % at .95 and 20 prompts, and often had no width. `benchmarks/coverage.py` has more."""
    covered = np.zeros(len(truth))
    for study in range(studies):
        found = rank(matches(np.array(truth), prompts, seed=study), np.arange(prompts))
        covered += [row.interval[0] <= value <= row.interval[1] for row, value in zip(found, truth, strict=True)]
    assert (covered / studies >= 0.88).all()


def test_two_systems_have_the_likelihoods_interval() -> None:
    """15 wins of 20 and a drawn match: 15.5 of 21. Both ends lose half the square of t with 19 degrees of freedom."""
    first, second = rank(np.stack([np.where(np.arange(20) < 15, 1.0, -1.0), np.zeros(20)]), np.arange(20))

    def likelihood(strength: float) -> float:
        chance = 1 / (1 + math.exp(-2 * strength))
        return 15.5 * math.log(chance) + 5.5 * math.log(1 - chance)

    assert first.strength == pytest.approx(math.log(15.5 / 5.5) / 2, abs=1e-9)
    lost = [likelihood(first.strength) - likelihood(end) for end in first.interval]
    assert lost == pytest.approx([stats.t.ppf(0.975, 19) ** 2 / 2] * 2, rel=0.06), "a design effect of 20/19 at most"
    assert second.interval == pytest.approx((-first.interval[1], -first.interval[0]), abs=1e-5)


def test_a_system_that_always_wins_has_a_wide_finite_interval() -> None:
    """20 of 20: the odds may be as low as 5 to 1, and are not known above."""
    first, _ = rank(np.stack([np.ones(20), np.zeros(20)]), np.arange(20))
    low, high = (2 * end for end in first.interval)
    assert 1.2 < low < 2.2 < 2 * first.strength < high < 20


def test_images_of_a_prompt_share_one_match() -> None:
    scores = matches(np.array([-0.5, 0.0, 0.5]), 60)
    once, copied = rank(scores, np.arange(60)), rank(scores.repeat(4, axis=1), np.arange(60).repeat(4))
    assert once == copied
    apart = rank(scores.repeat(4, axis=1), np.arange(240))
    assert np.ptp(apart[0].interval) == pytest.approx(np.ptp(once[0].interval) / 2, rel=0.1)


def test_ties_are_half_wins() -> None:
    level = rank(np.zeros((3, 10)), np.arange(10))
    assert [row.strength for row in level] == pytest.approx([0, 0, 0], abs=1e-9)
    half = rank(np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]]), np.arange(4))
    assert half[0].strength - half[1].strength == pytest.approx(math.log(3.5 / 1.5), abs=1e-9), "and one drawn match"


def test_a_system_that_never_wins_has_a_finite_strength() -> None:
    """10 lost matches with each of the others, and 2/3 of one drawn: the odds of 1/3 to 10 1/3 against equals."""
    scores = np.stack([np.zeros(10), 1.0 + np.arange(10) % 2, 2.0 - np.arange(10) % 2])
    found = rank(scores, np.arange(10))
    assert found[1].strength - found[0].strength == pytest.approx(math.log(31), abs=1e-6)
    assert all(math.isfinite(end) for row in found for end in row.interval)


@pytest.mark.parametrize(
    ("wins", "from_to"),
    [
        ([[0.0, 0, 0], [3, 0, 2], [1, 1, 0]], "from a to b, c"),
        ([[0.0, 2, 3], [0, 0, 2], [0, 1, 0]], "from b to a"),
        ([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]], "from a to c"),
    ],
)
def test_systems_that_do_not_hang_together_are_named(wins: list[list[float]], from_to: str) -> None:
    with pytest.raises(ValueError, match=f"no chain of wins leads {from_to}, .*prior_ties"):
        bradley_terry(np.array(wins), names=["a", "b", "c"])
    assert np.isfinite(bradley_terry(np.array(wins) + prior_ties(3))).all()


@pytest.mark.parametrize(
    "wins", [[[0.0, 1]], [[0.0]], [[0.0, -1], [1, 0]], [[0.0, float("nan")], [1, 0]], [[1.0, 1], [1, 0]]]
)
def test_a_table_that_is_none_is_refused(wins: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="wins must be"):
        bradley_terry(np.array(wins))
