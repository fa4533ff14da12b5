"""Bradley-Terry: by hand, against another algorithm, recovering truths, and what has no answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepalign.ranking import bradley_terry, drawn_matches, rank

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


def test_expected_wins_are_those_found() -> None:
    """What makes strengths the most likely ones: every system's expected wins are its own."""
    found = bradley_terry(WINS)
    chance = 1 / (1 + np.exp(found[None] - found[:, None]))
    np.testing.assert_allclose(((WINS + WINS.T) * chance).sum(axis=1), WINS.sum(axis=1), atol=1e-8)
    assert found.mean() == pytest.approx(0, abs=1e-12)


def test_a_system_that_nearly_always_wins_is_ranked_at_once() -> None:
    """Where MM takes 20 000 rounds: every match but half of one of 5000 goes to the stronger."""
    wins = np.tril(np.full((6, 6), 5000.0), -1) + drawn_matches(6)
    found = bradley_terry(wins)
    chance = 1 / (1 + np.exp(found[None] - found[:, None]))
    np.testing.assert_allclose(((wins + wins.T) * chance).sum(axis=1), wins.sum(axis=1), rtol=1e-9)


def test_strengths_are_recovered() -> None:
    truth = np.array([-0.8, 0.0, 0.3, 0.5])
    found = rank(matches(truth, 4000), np.arange(4000), num_resamples=50)
    assert [row.strength for row in found] == pytest.approx((truth - truth.mean()).tolist(), abs=0.04)
    assert all(row.interval[0] < row.strength < row.interval[1] for row in found)
    assert all(row.interval[1] - row.interval[0] < 0.15 for row in found)


def test_the_interval_covers_a_strength() -> None:
    """200 studies of 80 prompts, three systems: 95 % nominally, with a standard error of 1.5 %."""
    truth = np.array([-0.5, 0.0, 0.5])
    covered = 0
    for study in range(200):
        low, high = rank(matches(truth, 80, seed=study), np.arange(80), num_resamples=100)[2].interval
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_pictures_of_a_prompt_share_one_match() -> None:
    scores = matches(np.array([-0.5, 0.0, 0.5]), 60)
    once, copied = rank(scores, np.arange(60)), rank(scores.repeat(4, axis=1), np.arange(60).repeat(4))
    assert once == copied


def test_ties_are_half_wins() -> None:
    level = rank(np.zeros((3, 10)), np.arange(10))
    assert [row.strength for row in level] == pytest.approx([0, 0, 0], abs=1e-9)
    half = rank(np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]]), np.arange(4))
    assert half[0].strength - half[1].strength == pytest.approx(math.log(3.5 / 1.5), abs=1e-9), "and one drawn match"


def test_a_system_that_never_wins_has_a_finite_strength() -> None:
    """10 lost matches with each of the others, and one drawn: the odds of .5 to 10.5 against equals."""
    scores = np.stack([np.zeros(10), 1.0 + np.arange(10) % 2, 2.0 - np.arange(10) % 2])
    found = rank(scores, np.arange(10))
    assert found[1].strength - found[0].strength == pytest.approx(math.log(21), abs=1e-6)
    assert all(math.isfinite(end) for row in found for end in row.interval)


def test_the_seed_decides_the_interval() -> None:
    scores = matches(np.array([0.0, 0.2, 0.4]), 40)
    first, again, other = (rank(scores, np.arange(40), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("wins", "from_to"),
    [
        ([[0.0, 0, 0], [3, 0, 2], [1, 1, 0]], "from a to b, c"),
        ([[0.0, 2, 3], [0, 0, 2], [0, 1, 0]], "from b to a"),
        ([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]], "from a to c"),
    ],
)
def test_systems_that_do_not_hang_together_are_named(wins: list[list[float]], from_to: str) -> None:
    with pytest.raises(ValueError, match=f"no chain of wins leads {from_to}, .*drawn_matches"):
        bradley_terry(np.array(wins), names=["a", "b", "c"])
    assert np.isfinite(bradley_terry(np.array(wins) + drawn_matches(3))).all()


@pytest.mark.parametrize(
    "wins", [[[0.0, 1]], [[0.0]], [[0.0, -1], [1, 0]], [[0.0, float("nan")], [1, 0]], [[1.0, 1], [1, 0]]]
)
def test_a_table_that_is_none_is_refused(wins: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="wins must be"):
        bradley_terry(np.array(wins))
