"""Paired comparisons with intervals, win rates and p-values.

Pictures of one prompt resemble each other, so the prompt is what counts as one item: pictures are averaged within their
prompt (`cluster_means`) before an interval or a p-value is taken over prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 10_000
CHUNK = 1 << 14
"""Random numbers drawn at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two systems' mean scores on the same items, and the mean difference with its 95 % interval."""

    base: float
    aligned: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often one system's picture scores higher than another's for the same prompt."""

    wins: int
    """Pictures; so are ties and losses."""
    ties: int
    losses: int
    rate: float
    """The mean over prompts of a prompt's share of wins, a tie being half a win."""
    interval: tuple[float, float]
    """95 %."""


def paired_difference(base: Float[Tensor, " n"], aligned: Float[Tensor, " n"], *, seed: int = 0) -> PairedDifference:
    """The mean of aligned - base over paired items, with a BCa bootstrap interval (Efron 1987) over items."""
    first, second = base.double().cpu().numpy(), aligned.double().cpu().numpy()
    difference = second - first
    low, high = bca_interval(difference, seed=seed)
    return PairedDifference(float(first.mean()), float(second.mean()), float(difference.mean()), (low, high))


def cluster_means(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The means "c" of the values "n" of every cluster; `clusters` "n" holds numbers from 0 to c - 1, each at least
    once."""
    sizes = np.bincount(clusters)
    assert sizes.all(), "a cluster without values"
    return np.asarray(np.bincount(clusters, values) / sizes)


def bca_interval(
    values: np.ndarray, *, level: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """A bias-corrected and accelerated bootstrap interval for the mean of values "n", n >= 2.

    Values without spread give an interval of no width.
    """
    num = len(values)
    if num < 2:
        raise ValueError(f"an interval needs at least two items, got {num}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {num} values are not finite numbers")
    mean = values.mean()
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # none but rounding's
        return float(mean), float(mean)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(num, size=(rows, num)) for rows in _chunks(num_resamples, num))
    means = np.sort(np.concatenate([values[rows].mean(axis=1) for rows in draws]))
    normal = NormalDist()
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / num_resamples, 1 - 1 / num_resamples)))
    influence = mean - (values.sum() - values) / (num - 1)
    acceleration = (influence**3).sum() / (6 * ((influence**2).sum()) ** 1.5)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + normal.inv_cdf(tail)
        share = normal.cdf(bias + shifted / (1 - acceleration * shifted))
        bounds.append(float(np.quantile(means, share)))
    return bounds[0], bounds[1]


def win_rate(differences: np.ndarray, clusters: np.ndarray, *, num_resamples: int = NUM_RESAMPLES) -> WinRate:
    """How often differences "n" between two systems' pictures are above 0, ties as half wins, with a 95 % interval.

    With one picture per cluster the interval is Wilson's (1927), a little cautious where there are ties. Otherwise it
    is the BCa bootstrap over clusters, as pictures of one prompt tend to win together; where all clusters agree, which
    leaves nothing to resample, it is Wilson's with clusters as the trials.
    """
    shares = cluster_means((np.sign(differences) + 1) / 2, clusters)
    rate, num = float(shares.mean()), len(shares)
    if len(differences) == num or np.ptp(shares) == 0:
        interval = wilson_interval(rate * num, num)
    else:
        interval = bca_interval(shares, num_resamples=num_resamples)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return WinRate(wins, len(differences) - wins - losses, losses, rate, interval)


def sign_flip_p_value(differences: np.ndarray, *, seed: int = 0, num_flips: int = NUM_RESAMPLES) -> float:
    """The two-sided p-value of paired differences "n" by Fisher's (1935) randomization test of their mean.

    If two systems are alike, any item's difference could as well have had the other sign: p is the share of sign
    patterns whose mean lies as far from 0 as the one found. All patterns are gone through where there are at most
    `num_flips`; otherwise that many are drawn and the one found is counted among them, so that p is never 0 (Phipson
    and Smyth 2010).
    """
    num, found = len(differences), abs(differences.sum())
    least = found - 1e-12 * np.abs(differences).sum()  # rounding must not part equal sums
    if 2**num <= num_flips:
        patterns = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
        return float((np.abs((1 - 2 * patterns) @ differences) >= least).mean())
    rng = np.random.default_rng(seed)
    draws = (rng.integers(2, size=(rows, num), dtype=np.int8) for rows in _chunks(num_flips, num))
    extreme = sum(int((np.abs((1.0 - 2.0 * rows) @ differences) >= least).sum()) for rows in draws)
    return (extreme + 1) / (num_flips + 1)


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for their number by Holm's (1979) step-down method, in the order given.

    Rejecting those at most .05 keeps the chance of any false rejection at .05, however the tests depend on each other.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson_interval(successes: float | int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion; (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return float(centre - half), float(centre + half)


def paired_share_interval(gains: float | int, losses: float | int, total: int) -> tuple[float, float]:
    """Agresti and Min's (2005) 95 % interval for the difference of two shares measured on the same items.

    `gains` items are right only in the second measurement, `losses` only in the first; (-1, 1) for no items.
    """
    if total == 0:
        return -1.0, 1.0
    gained, lost, num = gains + 0.5, losses + 0.5, total + 2
    centre = (gained - lost) / num
    half = NormalDist().inv_cdf(0.975) * math.sqrt(gained + lost - (gained - lost) ** 2 / num) / num
    return max(-1.0, centre - half), min(1.0, centre + half)


def reliability(gaps: Float[Tensor, " n"], *, num_bins: int = 10) -> dict[str, object]:
    """Whether probabilities mean what they say, from the score of each pair's preferred item less the other's.

    The probability a judge gives the item it prefers is sigma(|gap|), at least .5; the frequency is how often people
    agree (equal scores count half). Bins of equal width; empty ones are left out. "error" is the mean distance of the
    two over items (expected calibration error, Guo et al. 2017).
    """
    probability, right = gaps.abs().sigmoid().double(), ((gaps.sign() + 1) / 2).double()
    index = ((probability - 0.5) * 2 * num_bins).long().clamp(0, num_bins - 1)
    bins: list[dict[str, object]] = []
    error = 0.0
    for number in range(num_bins):
        inside = index == number
        pairs = int(inside.sum())
        if pairs == 0:
            continue
        mean, frequency = probability[inside].mean().item(), right[inside].mean().item()
        error += abs(mean - frequency) * pairs / len(gaps)
        low, high = 0.5 + number / (2 * num_bins), 0.5 + (number + 1) / (2 * num_bins)
        interval = list(wilson_interval(right[inside].sum().item(), pairs))
        bins.append({"low": low, "high": high, "probability": mean, "frequency": frequency})
        bins[-1] |= {"interval": interval, "pairs": pairs}
    return {"error": error if bins else None, "bins": bins}


def _chunks(num_rows: int, row_length: int) -> list[int]:
    """So many rows as numbers of rows whose entries fit a chunk; drawn in turn they are what one draw would give."""
    most = max(1, CHUNK // row_length)
    return [min(most, num_rows - start) for start in range(0, num_rows, most)]
