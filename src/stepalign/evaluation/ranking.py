"""Bradley-Terry ranking of systems from pairwise wins (Bradley and Terry 1952).

P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)), with strengths s on the scale of log odds whose mean is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import optimize, stats  # type: ignore[import-untyped]

MOST_STEPS = 200


@dataclass(frozen=True, slots=True)
class Strength:
    """The Bradley-Terry strength of a system."""

    strength: float
    """Log odds of winning against the average system."""
    interval: tuple[float, float]
    """95 %, over prompts."""


def bradley_terry(wins: np.ndarray, *, names: Sequence[str] | None = None) -> np.ndarray:
    """The most likely strengths "m" given wins "m m" of the row's system against the column's, a tie half a win each.

    Raises ValueError, naming systems, unless the graph of wins is strongly connected: strengths of systems that never
    win against the others have no finite maximum; `prior_ties` gives them one.
    """
    _check(wins, names or [f"system {index}" for index in range(len(wins))])
    return _most_likely(wins, np.ones((1, len(wins))), np.zeros(len(wins)))


def prior_ties(num: int, matches: float | None = None) -> np.ndarray:
    """Wins "m m" of a number of prior ties between every pair of systems, to be added to observed ones; 2 / m by
    default.

    These are the penalty of Firth (1993), Jeffreys' prior, for two systems, and close to it for more that play equally
    often: a system that always wins then has a finite strength.
    """
    return (2 / num if matches is None else matches) / 2 * (1 - np.eye(num))


def rank(scores: np.ndarray, clusters: np.ndarray) -> list[Strength]:
    """The strengths of m systems by their scores "m n" of the same n images, with 95 % intervals over prompts.

    `clusters` "n" holds every image's prompt, numbered from 0, of which there are at least two; the images of a prompt
    share the weight of one match. `prior_ties` are added. An interval holds the values of a strength at which the
    profile likelihood is not too far below its maximum: twice the difference, over the design effect (the sandwich
    variance by prompts over that of independent matches, at least 1; Chandler and Bate 2007), is at most the square of
    Student's t with one degree of freedom less than there are prompts. Ends are finite and intervals have a width.
    """
    matches = _matches(scores, clusters)
    num_prompts, num = matches.shape[:2]
    wins = matches.sum(axis=0) + prior_ties(num)
    found = bradley_terry(wins)
    chance = _chance(found)
    information = np.linalg.pinv(_curvature(wins, chance))
    surplus = (matches - (matches + np.swapaxes(matches, 1, 2)) * chance).sum(axis=2)
    surplus -= surplus.mean(axis=0)
    between = surplus.T @ surplus * num_prompts / (num_prompts - 1)
    naive, robust = np.diag(information), np.diag(information @ between @ information)
    effects = np.maximum(1.0, robust / naive)
    limit = stats.t.ppf(0.975, num_prompts - 1) ** 2
    most = _log_likelihood(wins, found)
    strengths = []
    for row in range(num):
        beyond = partial(_beyond, wins=wins, found=found, row=row, most=most, limit=limit * effects[row])
        width = float(np.sqrt(naive[row] * effects[row] * limit))
        ends = (_end(beyond, float(found[row]), step) for step in (-width, width))
        strengths.append(Strength(float(found[row]), (next(ends), next(ends))))
    return strengths


def _end(beyond: Callable[[float], float], best: float, step: float) -> float:
    """The root of a function, negative at `best`, in the direction of `step`."""
    outside = best + step
    while beyond(outside) < 0:
        outside += step
    return float(optimize.brentq(beyond, *sorted((best, outside)), xtol=1e-6))


def _beyond(strength: float, *, wins: np.ndarray, found: np.ndarray, row: int, most: float, limit: float) -> float:
    """Twice the loss of log-likelihood minus the limit, with a row's strength fixed and the others at their profile
    maximum."""
    num = len(wins)
    others = np.delete(found, row)
    start = np.insert(others - others.mean() - strength / (num - 1), row, strength)
    fixed = np.stack([np.ones(num), np.eye(num)[row]])
    return 2 * (most - _log_likelihood(wins, _most_likely(wins, fixed, start))) - limit


def _most_likely(wins: np.ndarray, fixed: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The most likely strengths "m" among those with the products "f" of `fixed` "f m" that `start` "m" has, by
    Newton's method; the log-likelihood is concave."""
    strengths, (num_fixed, num) = start, fixed.shape
    games = wins + wins.T
    system, right = np.zeros((num + num_fixed, num + num_fixed)), np.zeros(num + num_fixed)
    system[num:, :num], system[:num, num:] = fixed, fixed.T
    for _ in range(MOST_STEPS):
        chance = _chance(strengths)
        system[:num, :num], right[:num] = _curvature(wins, chance), (wins - games * chance).sum(axis=1)
        step = np.linalg.solve(system, right)[:num]
        before, share = _log_likelihood(wins, strengths), 1.0
        while share > 1e-9 and _log_likelihood(wins, strengths + share * step) < before - 1e-9 * abs(before):
            share /= 2
        strengths = strengths + share * step
        if np.abs(step).max() < 1e-9:
            return strengths
    raise ValueError(
        f"the strengths still move by {np.abs(step).max():.1e} after {MOST_STEPS} steps: hardly any win connects them"
    )


def _chance(strengths: np.ndarray) -> np.ndarray:
    """The probability "m m" that the row's system beats the column's."""
    return np.asarray(np.exp(-np.logaddexp(0, strengths[None] - strengths[:, None])))


def _log_likelihood(wins: np.ndarray, strengths: np.ndarray) -> float:
    return -float((wins * np.logaddexp(0, strengths[None] - strengths[:, None])).sum())


def _curvature(wins: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The Fisher information "m m" of the strengths."""
    weights = (wins + wins.T) * chance * (1 - chance)
    return np.asarray(np.diag(weights.sum(axis=1)) - weights)


def _matches(scores: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Each prompt's share "c m m" of images on which the row's system beats the column's; none against itself."""
    wins = (np.sign(scores[:, None] - scores[None]) + 1) / 2 * (1 - np.eye(len(scores)))[..., None]
    sums = np.zeros((int(clusters.max()) + 1, *wins.shape[:2]))
    np.add.at(sums, clusters, np.moveaxis(wins, -1, 0))
    return sums / np.bincount(clusters)[:, None, None]


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
                "systems out, or add prior_ties to the wins"
            )
