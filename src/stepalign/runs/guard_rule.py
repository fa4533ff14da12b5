"""The guard's test: whether a held-out metric has fallen below the base model's, and whether the judge rose meanwhile.

A run is measured several times, on several metrics, and an alarm may end it. So the chance that a healthy run ever
alarms is bounded, whatever the number of measurements. Every metric at every measurement is tested against the base
model, one-sided; what is found must be found again, at `CONFIRMING`, on noise that no earlier measurement has seen.
Where the second measurement has prompts of its own the two are independent and their levels multiply: with a first
level of 1 / (measurements x metrics) the bound is `CONFIRMING`. Where it has the same prompts the first level alone
bears the bound, and is `ALPHA` over that number (Bonferroni). Simulated in `benchmarks/guard.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stepalign.support.statistics import mean_interval, one_sided_p_value

ALPHA = 0.05
"""The most that the chance of any false alarm in a whole run may be."""
CONFIRMING = 0.025
"""The level of a second measurement: its 95 % interval lies below 0."""
JUDGE = "judge"
STYLE = "style: "
"""Begins the columns that describe images without saying which is better."""

Scores = Mapping[str, Sequence[float]]
"""By the judge or a metric, a score per prompt."""


@dataclass(frozen=True, slots=True)
class Fall:
    """A held-out metric below the base model's."""

    metric: str
    kind: Literal["gamed", "collapsed"]
    """"gamed": the judge's score is significantly higher meanwhile; "collapsed": it is not."""
    judge: float
    """Mean difference of the judge's score, model less base model."""
    change: float
    """Mean difference of the metric's."""
    interval: tuple[float, float]
    """95 %, of the metric's."""
    p_value: float
    """One-sided, of the metric's."""


def watched_metrics(scores: Scores) -> list[str]:
    """The held-out metrics among columns of scores: neither the judge nor statistics of style."""
    return [name for name in scores if name != JUDGE and not name.startswith(STYLE)]


def screening_level(num_measurements: int, num_metrics: int, *, independent: bool) -> float:
    """The level of the first test of one metric, of so many measurements planned for a run.

    `independent` says whether a second measurement has other prompts than the first.
    """
    num_tests = max(1, num_measurements * num_metrics)
    return min(ALPHA, 1 / num_tests) if independent else ALPHA / num_tests


def falls(base: Scores, model: Scores, *, level: float) -> list[Fall]:
    """The metrics on which a model is significantly below the base model on the same prompts, by Student's one-sided
    test of the paired differences."""
    judge = _changes(base, model, JUDGE)
    kind: Literal["gamed", "collapsed"] = "gamed" if one_sided_p_value(judge) <= CONFIRMING else "collapsed"
    found = []
    for name in watched_metrics(base):
        changes = _changes(base, model, name)
        p_value = one_sided_p_value(-changes)
        if p_value <= level:
            found.append(Fall(name, kind, float(judge.mean()), float(changes.mean()), mean_interval(changes), p_value))
    return found


def confirmed(found: Sequence[Fall], base: Scores, model: Scores) -> list[Fall]:
    """The falls that a second measurement shows again, with its figures."""
    names = {fall.metric for fall in found}
    return [fall for fall in falls(base, model, level=CONFIRMING) if fall.metric in names]


def best_rounds(measured: Mapping[int, Scores]) -> dict[str, int]:
    """By held-out metric the round with its highest mean, the first of equals; `measured` holds scores by round."""
    names = watched_metrics(next(iter(measured.values()))) if measured else []
    return {name: max(measured, key=lambda num_rounds: mean(measured[num_rounds][name])) for name in names}


def describe(alarm: Mapping[str, Any]) -> str:
    """An alarm in words."""
    low, high = alarm["interval"]
    fell = f"{alarm['metric']} is {-alarm['change']:.3g} ({-high:.3g} to {-low:.3g}) below the base model's"
    match alarm["kind"]:
        case "gamed":
            told = f"the judge's score is {alarm['judge']:.3g} above the base model's while {fell}"
        case _:
            told = f"{fell} without a rise of the judge's score"
    return f"{told} on held-out prompts, twice; it was best at round {alarm['since']}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _changes(base: Scores, model: Scores, name: str) -> np.ndarray:
    return np.array(model[name], dtype=np.float64) - np.array(base[name], dtype=np.float64)
