"""GenEval's table: the share of right pictures per task, and the mean of the six tasks, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stepalign.config import require
from stepalign.metrics.geneval import TASKS, Verdict
from stepalign.statistics import NUM_RESAMPLES

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """The share of right pictures among those of one task."""

    accuracy: float
    interval: Interval | None
    """95 %, over prompts; none where there is one prompt only."""
    num_correct: int
    num_images: int
    num_prompts: int


@dataclass(frozen=True, slots=True)
class GenEvalSummary:
    """A model's result; numbers of other detectors are not comparable with it."""

    detector: str
    """What found the objects."""
    tasks: dict[str, TaskAccuracy]
    overall: float | None
    """The mean of the six tasks' accuracies, not that over pictures; none where a task has no pictures."""
    interval: Interval | None
    """95 %, over the prompts of every task."""
    num_images: int
    num_prompts: int

    @property
    def name(self) -> str:
        """What the number is to be called wherever it is printed."""
        return f"GenEval ({self.detector})"


def summarise(verdicts: Sequence[Verdict], *, detector: str, seed: int = 0) -> GenEvalSummary:
    """The accuracies that verdicts amount to, with percentile bootstrap intervals whose unit is the prompt.

    The pictures of a prompt are right or wrong together more often than not, so prompts are drawn again, not pictures,
    and within each task. Where all pictures of a task are right, or all wrong, its interval has no width.
    Raises ValueError without verdicts, without a detector's name, and for a prompt of two tasks.
    """
    require(bool(verdicts), "verdicts", "none", "at least one")
    require(bool(detector.strip()), "detector", repr(detector), "the name of what found the objects")
    counts = _counts(verdicts)
    resampled = {tag: _resampled(counts[tag], seed=seed + TASKS.index(tag)) for tag in counts}
    tasks = {}
    for tag, rows in counts.items():
        right, pictures = (int(total) for total in rows.sum(0))
        interval = _percentiles(resampled[tag]) if len(rows) > 1 else None
        tasks[tag] = TaskAccuracy(right / pictures, interval, right, pictures, len(rows))
    complete = len(tasks) == len(TASKS)
    known = complete and all(task.interval is not None for task in tasks.values())
    return GenEvalSummary(
        detector,
        tasks,
        sum(task.accuracy for task in tasks.values()) / len(TASKS) if complete else None,
        _percentiles(np.mean(list(resampled.values()), axis=0)) if known else None,
        sum(task.num_images for task in tasks.values()),
        sum(task.num_prompts for task in tasks.values()),
    )


def _counts(verdicts: Sequence[Verdict]) -> dict[str, Float[np.ndarray, "prompts 2"]]:
    """By task, the number of right pictures and of pictures of each prompt."""
    tag_of: dict[str, str] = {}
    rows: dict[str, dict[str, list[int]]] = {}
    for verdict in verdicts:
        tag = tag_of.setdefault(verdict.prompt, verdict.tag)
        if tag != verdict.tag:
            raise ValueError(f"the prompt {verdict.prompt!r} is of the tasks {tag} and {verdict.tag}; one is wanted")
        row = rows.setdefault(tag, {}).setdefault(verdict.prompt, [0, 0])
        row[0] += verdict.correct
        row[1] += 1
    return {tag: np.array(list(rows[tag].values()), dtype=float) for tag in TASKS if tag in rows}


def _resampled(rows: Float[np.ndarray, "prompts 2"], *, seed: int) -> Float[np.ndarray, " resamples"]:
    """The accuracies of a task with as many prompts drawn with replacement."""
    num = len(rows)
    drawn = np.random.default_rng(seed).integers(num, size=(NUM_RESAMPLES, num))
    right, pictures = (column[drawn].sum(1) for column in rows.T)
    accuracies: Float[np.ndarray, " resamples"] = right / pictures
    return accuracies


def _percentiles(values: Float[np.ndarray, " resamples"]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
