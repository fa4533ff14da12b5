"""Paired comparisons with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two systems' mean scores on the same items, and the mean difference with its 95 % interval."""

    base: float
    aligned: float
    difference: float
    interval: tuple[float, float]


def paired_difference(base: Float[Tensor, " n"], aligned: Float[Tensor, " n"], *, seed: int = 0) -> PairedDifference:
    """The mean of aligned - base over paired items, with a BCa bootstrap interval (Efron 1987) over items."""
    first, second = base.double().cpu().numpy(), aligned.double().cpu().numpy()
    difference = second - first
    low, high = bca_interval(difference, seed=seed)
    return PairedDifference(float(first.mean()), float(second.mean()), float(difference.mean()), (low, high))


def bca_interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
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
    means = np.sort([values[rng.integers(num, size=num)].mean() for _ in range(NUM_RESAMPLES)])
    normal = NormalDist()
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / NUM_RESAMPLES, 1 - 1 / NUM_RESAMPLES)))
    influence = mean - (values.sum() - values) / (num - 1)
    acceleration = (influence**3).sum() / (6 * ((influence**2).sum()) ** 1.5)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + normal.inv_cdf(tail)
        share = normal.cdf(bias + shifted / (1 - acceleration * shifted))
        bounds.append(float(np.quantile(means, share)))
    return bounds[0], bounds[1]


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
