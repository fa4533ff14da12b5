"""How often 95 % intervals hold the truth, over many simulated studies of the kinds that the reports show.

    python benchmarks/coverage.py [--studies 1000] [--only means] [--output FILE.json]

means          of gains that are normal, skewed (exponential, alone or with normal noise) or heavy-tailed
accuracies     of pairs whose prompts share an accuracy of their own (beta, intraclass correlation .3) or do not
win rates      with one image of a prompt or four, some of them ties
strengths      of two to five systems up to ±3, scores with Gumbel noise, by which they win as Bradley and Terry say;
               with four images half of the prompts have the same noise in all of them; ties are rounded scores
p-values       of the sign-flip test, whose nulls are kept
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from stepalign.evaluation.ranking import rank
from stepalign.support.shares import share_change_interval, share_interval, win_rate
from stepalign.support.statistics import BCA_FROM, bca_interval, mean_interval, sign_flip_p_value

RESAMPLES = 500
"""Of every bootstrap; a comparison takes 10 000."""
CORRELATION = 0.3
Study = Callable[[np.random.Generator], float]
"""Whether the interval of one simulated study holds the truth; of several intervals, the share that do."""


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description="Coverage of confidence intervals.")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--only", default="", help="part of the kinds' names")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"studies": arguments.studies, "resamples": RESAMPLES}
    for kind, studies in KINDS.items():
        if arguments.only in kind:
            figures[kind] = []
            for settings, study in studies():
                rng = np.random.default_rng(0)
                covered = sum(study(rng) for _ in range(arguments.studies)) / arguments.studies
                figures[kind].append({**settings, "covered": round(covered, 4)})
                print(kind, figures[kind][-1], flush=True)
    if arguments.output is not None:
        lines = [f" {json.dumps(key)}: {_rows(value)}" for key, value in figures.items()]
        arguments.output.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def means() -> Iterator[tuple[dict[str, Any], Study]]:
    """Both methods at every size."""
    for gains, prompts in product(("normal", "skewed", "exponential", "heavy-tailed"), (3, 5, 10, 20, 50, 100, 500)):
        for method in ("shown", "BCa") if prompts < BCA_FROM else ("shown",):
            settings = {"gains": gains, "prompts": prompts, "method": method}
            yield settings, partial(mean_study, **settings)


def mean_study(rng: np.random.Generator, *, gains: str, prompts: int, method: str) -> bool:
    """Gains of a mean of 1, but the heavy-tailed ones, of 0."""
    match gains:
        case "normal":
            values, truth = 1 + rng.normal(size=prompts), 1
        case "skewed":
            values, truth = rng.exponential(size=prompts) + rng.normal(size=prompts), 1
        case "exponential":
            values, truth = rng.exponential(size=prompts), 1
        case _:
            values, truth = rng.standard_t(3, size=prompts), 0
    if method == "BCa" or prompts >= BCA_FROM:
        low, high = bca_interval(values, num_resamples=RESAMPLES)
    else:
        low, high = mean_interval(values)
    return low <= truth <= high


def accuracies() -> Iterator[tuple[dict[str, Any], Study]]:
    """Accuracies of one judge, and differences of two on the same pairs."""
    for prompts, pairs, truth, varying in product(
        (5, 20, 100, 500), (1, 4, 16), (0.05, 0.5, 0.75, 0.95), (False, True)
    ):
        settings = {"prompts": prompts, "pairs": pairs, "truth": truth, "varying": varying}
        yield {**settings, "of": "accuracy"}, partial(accuracy_study, **settings)
    for prompts, pairs, varying in product((5, 20, 100), (1, 16), (False, True)):
        settings = {"prompts": prompts, "pairs": pairs, "varying": varying}
        yield {**settings, "of": "difference"}, partial(difference_study, **settings)


def accuracy_study(rng: np.random.Generator, *, prompts: int, pairs: int, truth: float, varying: bool) -> bool:
    """Whether the interval of an accuracy holds it."""
    clusters, odds = np.repeat(np.arange(prompts), pairs), (1 - CORRELATION) / CORRELATION
    own = rng.beta(truth * odds, (1 - truth) * odds, size=prompts) if varying else np.full(prompts, truth)
    low, high = share_interval((rng.random(len(clusters)) < own[clusters]).astype(float), clusters)
    return low <= truth <= high


def difference_study(rng: np.random.Generator, *, prompts: int, pairs: int, varying: bool) -> bool:
    """Two judges: the second is right where the first is not in 20 % of pairs, the other way round in 12 %."""
    clusters, shares = np.repeat(np.arange(prompts), pairs), np.array([0.2, 0.12, 0.68])
    odds = (1 - CORRELATION) / CORRELATION
    own = (rng.dirichlet(shares * odds, size=prompts) if varying else np.tile(shares, (prompts, 1)))[clusters].cumsum(1)
    at = rng.random(len(clusters))
    changes = np.where(at < own[:, 0], 1.0, np.where(at < own[:, 1], -1.0, 0.0))
    low, high = share_change_interval(changes, clusters)
    return low <= 0.08 <= high


def win_rates() -> Iterator[tuple[dict[str, Any], Study]]:
    """Prompts' own win rates vary."""
    for prompts, images, truth, ties in product((5, 20, 100, 500), (1, 4), (0.05, 0.5, 0.75, 0.95), (0.0, 0.2)):
        settings = {"prompts": prompts, "images": images, "truth": truth, "ties": ties}
        yield settings, partial(win_study, **settings)


def win_study(rng: np.random.Generator, *, prompts: int, images: int, truth: float, ties: float) -> bool:
    """Whether the interval of a win rate holds it; ties are half wins and half losses."""
    clusters, odds = np.repeat(np.arange(prompts), images), (1 - CORRELATION) / CORRELATION
    own = rng.beta(truth * odds, (1 - truth) * odds, size=prompts)[clusters]
    gains = np.where(rng.random(len(own)) < own, 1.0, -1.0) * (rng.random(len(own)) >= ties)
    low, high = win_rate(gains, clusters).interval
    return low <= truth * (1 - ties) + ties / 2 <= high


def strengths() -> Iterator[tuple[dict[str, Any], Study]]:
    """Covered is the share over all systems."""
    truths = ([-1.5, 1.5], [-0.5, 0.0, 0.5], [-3.0, 0.0, 3.0], [2.2, -1.1, -1.1], [-3.0, -1.0, 0.0, 1.0, 3.0])
    for truth, prompts, (images, ties) in product(truths, (5, 20, 100, 500), ((1, 0.0), (4, 0.0), (1, 1.0))):
        settings = {"truth": truth, "prompts": prompts, "images": images, "ties": ties}
        yield settings, partial(strength_study, **settings)


def strength_study(rng: np.random.Generator, *, truth: list[float], prompts: int, images: int, ties: float) -> float:
    """The share of systems whose interval holds their strength. Scores are rounded to multiples of `ties`; half wins
    leave the strengths nearer to each other, and their truth is that of a large study."""
    scores, target = np.array(truth)[:, None] + gumbel(rng, len(truth), prompts, images), truth
    if ties:
        scores, target = np.round(scores / ties), tied_truth(tuple(truth), ties)
    found = rank(scores, np.repeat(np.arange(prompts), images))
    return float(np.mean([row.interval[0] <= one <= row.interval[1] for row, one in zip(found, target, strict=True)]))


def gumbel(rng: np.random.Generator, systems: int, prompts: int, images: int) -> np.ndarray:
    """Noise "m n"; where there are several images, half of the prompts have the same in all of them."""
    noise = rng.gumbel(size=(systems, prompts * images))
    if images > 1:
        same = np.repeat(rng.random(prompts) < 0.5, images)
        noise = np.where(same, np.repeat(rng.gumbel(size=(systems, prompts)), images, axis=1), noise)
    return noise


def tied_truth(truth: tuple[float, ...], ties: float) -> list[float]:
    """The strengths that half wins for ties amount to, from 200 000 prompts."""
    if truth not in _TIED:
        scores = np.array(truth)[:, None] + np.random.default_rng(1).gumbel(size=(len(truth), 200_000))
        _TIED[truth] = [row.strength for row in rank(np.round(scores / ties), np.arange(200_000))]
    return _TIED[truth]


_TIED: dict[tuple[float, ...], list[float]] = {}


def p_values() -> Iterator[tuple[dict[str, Any], Study]]:
    """Gains are Laplace around 0."""
    for prompts in (5, 20, 100):
        yield {"prompts": prompts}, partial(null_kept, prompts=prompts)


def null_kept(rng: np.random.Generator, *, prompts: int) -> bool:
    """Whether the p-value of no difference is above .05."""
    found = sign_flip_p_value(rng.laplace(size=prompts), seed=int(rng.integers(2**31)), num_flips=RESAMPLES)
    return found > 0.05


KINDS = {
    "means": means,
    "accuracies": accuracies,
    "win rates": win_rates,
    "strengths": strengths,
    "p-values": p_values,
}


def _rows(value: Any) -> str:
    """A list of figures, one to a line."""
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]"


if __name__ == "__main__":
    main()
