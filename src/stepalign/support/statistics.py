"""Means and paired differences with confidence intervals, and p-values.

Images of one prompt resemble each other, so the prompt is the unit: images are averaged within their prompt
(`cluster_means`) before an interval or a p-value is taken over prompts. Prompts with the same text are one prompt
(`clusters_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

NUM_RESAMPLES = 10_000
BCA_FROM = 100
"""Number of items from which a mean's interval is BCa; below it is Student's t. At a nominal 95 % BCa covers 80 to 84 %
of means of 5 items, 85 to 88 % of 10, 87 to 91 % of 20 and 89 to 93 % of 50; t covers 88 to 96 %, 90 to 96 %, 90 to 96
% and 93 to 96 %, the least where gains are exponential (`benchmarks/results/interval-coverage.json`)."""
CHUNK = 1 << 14
"""Random numbers generated at once, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two systems' mean scores on the same items, and the mean difference with its 95 % interval."""

    base: float
    aligned: float
    difference: float
    interval: tuple[float, float]


def paired_difference(
    base: Float[Tensor, " n"], aligned: Float[Tensor, " n"], *, clusters: np.ndarray | None = None, seed: int = 0
) -> PairedDifference:
    """The mean of aligned - base over paired items with its interval; items of a cluster "n" are averaged first."""
    first, second = base.double().cpu().numpy(), aligned.double().cpu().numpy()
    if clusters is not None:
        first, second = cluster_means(first, clusters), cluster_means(second, clusters)
    difference = second - first
    interval = mean_interval(difference, seed=seed)
    return PairedDifference(float(first.mean()), float(second.mean()), float(difference.mean()), interval)


def clusters_of(prompts: Sequence[str]) -> np.ndarray:
    """A number per prompt "n", from 0 in the order of first appearance; the same text has the same number."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=int)


def cluster_means(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The means "c" of the values "n" of every cluster; `clusters` "n" holds numbers from 0 to c - 1, each at least
    once."""
    sizes = np.bincount(clusters)
    assert sizes.all(), "a cluster without values"
    return np.asarray(np.bincount(clusters, values) / sizes)


def mean_interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """A confidence interval for the mean of values "n", n >= 2: BCa from `BCA_FROM` values on, Student's t below.

    Values without spread give an interval of no width.
    """
    if len(values) >= BCA_FROM:
        return bca_interval(values, level=level, seed=seed)
    mean = _checked_mean(values)
    if _without_spread(values):
        return mean, mean
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean - half, mean + half


def one_sided_p_value(differences: np.ndarray) -> float:
    """The p-value of Student's t test that the mean of paired differences "n", n >= 2, is above 0."""
    mean = _checked_mean(differences)
    if _without_spread(differences):
        return 0.0 if mean > 0 else 1.0
    t = mean / (differences.std(ddof=1) / np.sqrt(len(differences)))
    return float(stats.t.sf(t, len(differences) - 1))


def bca_interval(
    values: np.ndarray, *, level: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """A bias-corrected and accelerated bootstrap interval (Efron 1987) for the mean of values "n", n >= 2.

    Values without spread give an interval of no width.
    """
    mean = _checked_mean(values)
    if _without_spread(values):
        return mean, mean
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, CHUNK // len(values)),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p_value(differences: np.ndarray, *, seed: int = 0, num_flips: int = NUM_RESAMPLES) -> float:
    """The two-sided p-value of paired differences "n" by Fisher's (1935) randomization test of their mean.

    Under the null hypothesis every item's difference has either sign with equal probability: p is the share of sign
    patterns with a mean at least as far from 0 as the observed one. All patterns are enumerated if there are at most
    `num_flips`; otherwise that many are sampled and the observed one is included, so that p is never 0 (Phipson
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


def _checked_mean(values: np.ndarray) -> float:
    """The mean; raises ValueError for fewer than two values, or values that are not finite."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two items, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite numbers")
    return float(values.mean())


def _without_spread(values: np.ndarray) -> bool:
    """Whether values differ by rounding at most."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _chunks(num_rows: int, row_length: int) -> list[int]:
    """Split a number of rows into chunks; sampling them in turn gives the same numbers as sampling all at once."""
    most = max(1, CHUNK // row_length)
    return [min(most, num_rows - start) for start in range(0, num_rows, most)]
