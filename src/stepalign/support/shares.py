"""Shares of successes with confidence intervals: win rates, accuracies, calibration.

Trials of one prompt tend to succeed together, so prompts are clusters: an interval uses the effective
number of trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from stepalign.support.statistics import cluster_means


@dataclass(frozen=True, slots=True)
class WinRate:
    """Win rate: how often one system's image scores higher than another's for the same prompt."""

    wins: int
    """Images; ties and losses likewise."""
    ties: int
    losses: int
    rate: float
    """The mean over prompts of a prompt's share of wins, a tie being half a win."""
    interval: tuple[float, float]
    """95 %."""


def win_rate(differences: np.ndarray, clusters: np.ndarray) -> WinRate:
    """The win rate of differences "n" between two systems' images, ties as half wins, with a 95 % interval.

    The interval is Wilson's (1927) with the effective number of trials (`effective_trials`); slightly conservative
    with ties.
    """
    values = (np.sign(differences) + 1) / 2
    sizes = np.bincount(clusters)
    weights = 1 / (len(sizes) * sizes[clusters])
    rate, num = float(cluster_means(values, clusters).mean()), effective_trials(values, clusters, weights=weights)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return WinRate(wins, len(differences) - wins - losses, losses, rate, wilson_interval(rate * num, num))


def effective_trials(values: np.ndarray, clusters: np.ndarray, *, weights: np.ndarray | None = None) -> float:
    """The effective number of independent trials of values "n" in clusters "n", by the variance of their mean.

    The weights "n" of the mean sum to 1; equal by default. The number is that of the values (for unequal weights
    Kish's) over the design effect, the mean's variance by clusters over that of independent values, which is taken
    to be at least 1. It is lowered by (z / t)², with t's c - 1 degrees of freedom, since c clusters only estimate that
    variance (Korn and Graubard 1998). For equal values it is c. With one value per
    cluster it is the number of values.
    """
    num, num_clusters = len(values), int(clusters.max()) + 1
    if num_clusters == num:
        return float(num)
    weights = np.full(num, 1 / num) if weights is None else weights
    residuals = values - weights @ values
    independent = float(weights @ residuals**2)
    if num_clusters < 2 or independent <= 1e-15:
        return float(num_clusters)
    sums = np.bincount(clusters, weights * residuals)
    clustered = num_clusters / (num_clusters - 1) * float(sums @ sums)
    most = 1 / float(weights @ weights)
    trials = min(most, independent / clustered) if clustered > 0 else most
    return trials * (NormalDist().inv_cdf(0.975) / float(stats.t.ppf(0.975, num_clusters - 1))) ** 2


def wilson_interval(successes: float | int, total: float | int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a proportion; (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = min(max(successes / total, 0.0), 1.0)  # rounding must not lead outside
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return float(centre - half), float(centre + half)


def share_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval for the mean of values "n" from 0 to 1 in clusters "n"; (0, 1) for none."""
    if len(values) == 0:
        return 0.0, 1.0
    num = effective_trials(values, _renumbered(clusters))
    return wilson_interval(float(values.mean()) * num, num)


def share_change_interval(changes: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Agresti and Min's 95 % interval for the mean of changes "n" from -1 to 1 in clusters "n"; (-1, 1) for none."""
    if len(changes) == 0:
        return -1.0, 1.0
    num = effective_trials(changes, _renumbered(clusters))
    worth = num / len(changes)
    gains, losses = float(changes.clip(min=0).sum()), float(-changes.clip(max=0).sum())
    return paired_share_interval(gains * worth, losses * worth, num)


def paired_share_interval(gains: float | int, losses: float | int, total: float | int) -> tuple[float, float]:
    """Agresti and Min's (2005) 95 % interval for the difference of two shares measured on the same items.

    `gains` items are right only in the second measurement, `losses` only in the first; (-1, 1) for no items.
    """
    if total == 0:
        return -1.0, 1.0
    gained, lost, num = gains + 0.5, losses + 0.5, total + 2
    centre = (gained - lost) / num
    half = NormalDist().inv_cdf(0.975) * math.sqrt(gained + lost - (gained - lost) ** 2 / num) / num
    return max(-1.0, centre - half), min(1.0, centre + half)


def reliability(
    gaps: Float[Tensor, " n"], *, clusters: np.ndarray | None = None, num_bins: int = 10
) -> dict[str, object]:
    """Calibration of a judge's probabilities, from the score of each pair's preferred item minus the other's.

    The probability a judge gives the item it prefers is sigma(|gap|), at least .5; the frequency is how often people
    agree (equal scores count half), with Wilson's interval over `clusters` "n", every pair its own by default. Bins of
    equal width; empty ones are left out. "error" is the mean distance of the
    two over items (expected calibration error, Guo et al. 2017).
    """
    probability, right = gaps.abs().sigmoid().double(), ((gaps.sign() + 1) / 2).double()
    index = ((probability - 0.5) * 2 * num_bins).long().clamp(0, num_bins - 1)
    units = np.arange(len(gaps)) if clusters is None else clusters
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
        interval = list(share_interval(right[inside].numpy(), units[inside.numpy()]))
        bins.append({"low": low, "high": high, "probability": mean, "frequency": frequency})
        bins[-1] |= {"interval": interval, "pairs": pairs}
    return {"error": error if bins else None, "bins": bins}


def _renumbered(clusters: np.ndarray) -> np.ndarray:
    """Cluster numbers renumbered from 0, for a subset of the items."""
    return np.unique(clusters, return_inverse=True)[1]
