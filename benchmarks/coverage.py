"""How often 95 % intervals contain the truth, over many simulated studies of the kind that compare two models.

    python benchmarks/coverage.py [--studies 2000] [--resamples 500] [--output FILE.json]

A study has 100 prompts, with one picture each or four. Prompts differ in how much the second model gains on them, so
the pictures of a prompt resemble each other; gains are skewed, as rewards' are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stepalign.ranking import rank
from stepalign.shares import win_rate
from stepalign.statistics import cluster_means, mean_interval, sign_flip_p_value

PROMPTS = 100
STRENGTHS = np.array([-0.5, 0.0, 0.5])
Study = Callable[[np.random.Generator, int], bool]
"""Whether the interval of a simulated study, taken with so many resamples, holds the truth."""


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals of a comparison.")
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=500, help="of every bootstrap (a comparison takes 10 000)")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, object] = {"studies": arguments.studies, "prompts": PROMPTS, "resamples": arguments.resamples}
    print("| interval | covers |\n|---|---|")
    for name, study in studies().items():
        rng = np.random.default_rng(0)
        figures[name] = sum(study(rng, arguments.resamples) for _ in range(arguments.studies)) / arguments.studies
        print(f"| {name} | {100 * float(str(figures[name])):.2f} % |", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def studies() -> dict[str, Study]:
    """What is simulated, by name."""
    found: dict[str, Study] = {}
    for pictures in (1, 4):
        found[f"mean difference, pictures per prompt: {pictures}"] = mean_difference(pictures)
        for truth in (0.5, 0.75, 0.9):
            found[f"win rate {truth}, pictures per prompt: {pictures}"] = rate_of_wins(truth, pictures)
    found["Bradley-Terry strength of the best of three"] = strength
    found["no difference: sign-flip p above .05"] = null_kept
    return found


def mean_difference(pictures: int) -> Study:
    """Gains are exponential by prompt, with a mean of 1, and normal by picture."""

    def study(rng: np.random.Generator, resamples: int) -> bool:
        gains = rng.exponential(size=(PROMPTS, 1)) + rng.normal(size=(PROMPTS, pictures))
        clusters = np.repeat(np.arange(PROMPTS), pictures)
        low, high = mean_interval(cluster_means(gains.ravel(), clusters))
        return low <= 1 <= high

    return study


def rate_of_wins(truth: float, pictures: int) -> Study:
    """Prompts' own win rates follow a beta distribution around the truth."""

    def study(rng: np.random.Generator, resamples: int) -> bool:
        own = rng.beta(2 * truth, 2 * (1 - truth), size=(PROMPTS, 1))
        gains = np.where(rng.random((PROMPTS, pictures)) < own, 1.0, -1.0)
        clusters = np.repeat(np.arange(PROMPTS), pictures)
        low, high = win_rate(gains.ravel(), clusters).interval
        return low <= truth <= high

    return study


def strength(rng: np.random.Generator, resamples: int) -> bool:
    """Scores are strengths with Gumbel noise, by which they win as Bradley and Terry have it."""
    scores = STRENGTHS[:, None] + rng.gumbel(size=(len(STRENGTHS), PROMPTS))
    low, high = rank(scores, np.arange(PROMPTS), num_resamples=resamples)[-1].interval
    return low <= STRENGTHS[-1] <= high


def null_kept(rng: np.random.Generator, resamples: int) -> bool:
    """Gains are Laplace around 0."""
    return sign_flip_p_value(rng.laplace(size=PROMPTS), seed=int(rng.integers(2**31)), num_flips=resamples) > 0.05


if __name__ == "__main__":
    main()
