"""GenEval's table: the share of right images per task, and the mean of the six tasks, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stepalign.scorers.geneval.rules import TASKS, Verdict
from stepalign.support.config import require
from stepalign.support.shares import share_interval

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """The share of right images among those of one task."""

    accuracy: float
    interval: Interval | None
    """95 %, over prompts; None for a single prompt."""
    num_correct: int
    num_images: int
    num_prompts: int


@dataclass(frozen=True, slots=True)
class GenEvalSummary:
    """A model's result; numbers of other detectors are not comparable with it."""

    detector: str
    """The detector's name."""
    tasks: dict[str, TaskAccuracy]
    overall: float | None
    """The mean of the six tasks' accuracies, not the mean over images; None where a task has no images."""
    interval: Interval | None
    """95 %, over the prompts of every task."""
    num_images: int
    num_prompts: int

    @property
    def name(self) -> str:
        """The name of the score, with its detector."""
        return f"GenEval ({self.detector})"


def summarise(verdicts: Sequence[Verdict], *, detector: str) -> GenEvalSummary:
    """Accuracies of verdicts by task, with 95 % intervals over prompts.

    Verdicts on the images of a prompt are correlated, so a prompt is a cluster of Wilson's interval
    (`shares.share_interval`). The interval of the mean of the tasks is made of theirs (Zou and Donner 2008): each end's
    distances from the accuracies, squared, add up. Where all images of a task are right, it has a width.
    Raises ValueError without verdicts, without a detector's name, and for a prompt of two tasks.
    """
    require(bool(verdicts), "verdicts", "none", "at least one")
    require(bool(detector.strip()), "detector", repr(detector), "a text that names it")
    counts = _counts(verdicts)
    tasks = {}
    for tag, rows in counts.items():
        right, images = (int(total) for total in rows.sum(0))
        interval = _interval(rows) if len(rows) > 1 else None
        tasks[tag] = TaskAccuracy(right / images, interval, right, images, len(rows))
    complete = len(tasks) == len(TASKS)
    known = complete and all(task.interval is not None for task in tasks.values())
    return GenEvalSummary(
        detector,
        tasks,
        sum(task.accuracy for task in tasks.values()) / len(TASKS) if complete else None,
        _of_the_mean(list(tasks.values())) if known else None,
        sum(task.num_images for task in tasks.values()),
        sum(task.num_prompts for task in tasks.values()),
    )


def _counts(verdicts: Sequence[Verdict]) -> dict[str, Float[np.ndarray, "prompts 2"]]:
    """By task, the number of right images and of images of each prompt."""
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


def _interval(rows: Float[np.ndarray, "prompts 2"]) -> Interval:
    """The interval of a task's accuracy."""
    right, wrong = rows[:, 0].astype(int), (rows[:, 1] - rows[:, 0]).astype(int)
    values = np.concatenate([np.ones(right.sum()), np.zeros(wrong.sum())])
    clusters = np.concatenate([np.repeat(np.arange(len(rows)), right), np.repeat(np.arange(len(rows)), wrong)])
    return share_interval(values, clusters)


def _of_the_mean(tasks: list[TaskAccuracy]) -> Interval:
    """The interval of the mean of independent tasks' accuracies."""
    middle = sum(task.accuracy for task in tasks) / len(tasks)
    known = [(task.accuracy, *task.interval) for task in tasks if task.interval is not None]
    below = math.sqrt(sum((accuracy - low) ** 2 for accuracy, low, _ in known)) / len(tasks)
    above = math.sqrt(sum((high - accuracy) ** 2 for accuracy, _, high in known)) / len(tasks)
    return max(0.0, middle - below), min(1.0, middle + above)
