"""A ranking of several systems from who wins against whom (Bradley and Terry 1952).

P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)), with strengths s on the scale of log odds whose mean is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2_000
MOST_ROUNDS = 10_000
DRAWN = 1.0
"""Drawn matches that every pair of systems is given on top of its own, one prompt's worth: a system that always wins or
always loses then has a finite strength, in the data and in any resample of it."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How strong a system is among those it was compared with."""

    strength: float
    """Log odds of winning against the average system."""
    interval: tuple[float, float]
    """95 %, over prompts."""


def bradley_terry(wins: np.ndarray, *, names: Sequence[str] | None = None) -> np.ndarray:
    """The most likely strengths "m" given wins "m m" of the row's system against the column's, a tie half a win each.

    They are found by Newman's (2023) iteration; Hunter's (2004) MM algorithm ends in the same place but takes thousands
    of rounds where one system nearly always wins. Raises ValueError, naming systems, unless the systems hang together:
    if some never win against the others, their strengths have no finite best value; `drawn_matches` gives them one.
    """
    num = len(wins)
    _check(wins, names or [f"system {index}" for index in range(num)])
    return _strengths(wins[None])[0]


def drawn_matches(num: int, matches: float = DRAWN) -> np.ndarray:
    """Wins "m m" of so many drawn matches between every pair of num systems, to be added to others."""
    return matches / 2 * (1 - np.eye(num))


def rank(
    scores: np.ndarray, clusters: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[Strength]:
    """The strengths of m systems by their scores "m n" of the same n pictures, with percentile intervals over prompts.

    `clusters` "n" holds every picture's prompt, numbered from 0; the pictures of a prompt share the weight of one
    match. Every pair of systems has `DRAWN` matches more. A system that wins every match does so in every resample too,
    so its interval has no width.
    """
    num, matches = len(scores), _matches(scores, clusters)
    num_prompts = len(matches)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples).astype(float)
    resampled = (counts @ matches.reshape(num_prompts, -1)).reshape(-1, num, num)
    drawn = drawn_matches(num)
    found = _strengths((matches.sum(axis=0) + drawn)[None])[0]
    lows, highs = np.quantile(_strengths(resampled + drawn), (0.025, 0.975), axis=0)
    return [Strength(float(found[row]), (float(lows[row]), float(highs[row]))) for row in range(num)]


def _matches(scores: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Each prompt's share "c m m" of pictures on which the row's system beats the column's; none against itself."""
    wins = (np.sign(scores[:, None] - scores[None]) + 1) / 2 * (1 - np.eye(len(scores)))[..., None]
    sums = np.zeros((int(clusters.max()) + 1, *wins.shape[:2]))
    np.add.at(sums, clusters, np.moveaxis(wins, -1, 0))
    return sums / np.bincount(clusters)[:, None, None]


def _strengths(wins: np.ndarray) -> np.ndarray:
    """Strengths "r m" of every table of wins "r m m": in turn each p_i = exp(s_i) moves to
    sum_j w_ij p_j / (p_i + p_j) over sum_j w_ji / (p_i + p_j), w_ij being the wins of i against j."""
    num = wins.shape[-1]
    logs = np.zeros(wins.shape[:2])
    for _ in range(MOST_ROUNDS):
        before = logs.copy()
        for i in range(num):
            p = np.exp(logs)
            inverse = 1 / (p[:, i, None] + p)
            logs[:, i] = np.log((wins[:, i] * p * inverse).sum(axis=-1) / (wins[:, :, i] * inverse).sum(axis=-1))
        logs -= logs.mean(axis=-1, keepdims=True)
        moved = np.abs(logs - before).max()
        if moved < 1e-10:
            return logs
    raise ValueError(
        f"the strengths still move by {moved:.1e} after {MOST_ROUNDS} rounds: hardly any win connects them"
    )


def _check(wins: np.ndarray, names: Sequence[str]) -> None:
    if wins.ndim != 2 or wins.shape != (len(names), len(names)) or len(names) < 2:
        raise ValueError(f"wins must be a square table of at least two systems, got the shape {wins.shape}")
    if not np.isfinite(wins).all() or (wins < 0).any() or np.diag(wins).any():
        raise ValueError(f"wins must be finite, at least 0, and 0 of a system against itself, got {wins.tolist()}")
    reached = np.eye(len(wins), dtype=bool)
    for _ in names:
        reached = reached | (reached.astype(int) @ (wins > 0) > 0)
    for index, name in enumerate(names):
        if not reached[index].all():
            others = ", ".join(names[other] for other in range(len(names)) if not reached[index, other])
            raise ValueError(
                f"no chain of wins leads from {name} to {others}, so the strengths have no finite best value; leave "
                "systems out, or add drawn_matches to the wins"
            )
