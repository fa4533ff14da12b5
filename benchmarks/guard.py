"""How often a guard alarms in a run whose held-out metrics do not change, and what fall it finds.

    python benchmarks/guard.py [--runs 2000] [--output FILE.json]

Every run has a judge whose score rises at each measurement. Scores of an image are normal, skewed (minus an
exponential: a few images are much worse) or heavy-tailed (Student's t with 3 degrees of freedom) around their prompt's;
where prompts move, each drifts at random in every measurement, some up and some down, with a mean of 0 over prompts.
Differences are paired with the base model's scores of the same prompts. "best earlier mean" is the rule of the guard's
first version: the 95 % interval against the best measurement so far.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import optimize, stats  # type: ignore[import-untyped]

from stepalign.runs.guard_rule import CONFIRMING, confirmed, falls, screening_level
from stepalign.support.statistics import mean_interval

RISE = 1.0
"""Of the judge's score at every measurement, in standard deviations of an image's noise."""
SPREAD = 2**0.5
"""The standard deviation of paired differences of normal noise."""


@dataclass(frozen=True, slots=True)
class World:
    """A guard and what it measures."""

    prompts: int = 32
    measurements: int = 20
    metrics: int = 2
    noise: str = "normal"
    moving: float = 0.0
    """Standard deviation of a prompt's drift between measurements, in those of an image's noise."""
    other_prompts: bool = True
    """Whether a second measurement has prompts of its own."""
    fall: float = 0.0
    """Of the first metric from the first measurement on, in standard deviations of the paired differences."""


WORLDS = (
    World(),
    World(other_prompts=False),
    World(noise="skewed"),
    World(noise="heavy"),
    World(moving=0.5),
    World(moving=0.5, other_prompts=False),
    World(moving=0.5, noise="skewed"),
    World(measurements=5, metrics=1),
    World(measurements=50, metrics=3),
    World(measurements=50, metrics=3, moving=0.5),
    World(prompts=8),
    World(prompts=8, noise="skewed", other_prompts=False),
    World(prompts=128, moving=0.5),
)


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description="False alarms of a guard, and what it finds.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    rows, powers = [], []
    for world in WORLDS:
        rng = np.random.default_rng(0)
        alarms = sum(any(run(world, rng)) for _ in range(arguments.runs)) / arguments.runs
        rows.append({**asdict(world), "runs_that_alarm": alarms})
        print(rows[-1], flush=True)
    rng = np.random.default_rng(0)
    before = sum(best_earlier_mean(World(), rng) for _ in range(arguments.runs // 10)) / (arguments.runs // 10)
    print("best earlier mean:", before, flush=True)
    worlds = (World(), World(other_prompts=False), World(measurements=5, metrics=1), World(prompts=128))
    for healthy in worlds:
        world = replace(healthy, fall=found_fall(healthy))
        runs = [run(world, rng) for _ in range(max(1, arguments.runs // 4))]
        shares = {"first": np.mean([found[0] for found in runs]), "by_the_fifth": np.mean([any(r[:5]) for r in runs])}
        powers.append({**asdict(world), **{name: round(float(share), 3) for name, share in shares.items()}})
        print(powers[-1], flush=True)
    figures = {
        "runs": arguments.runs,
        "healthy": rows,
        "healthy_by_the_best_earlier_mean": before,
        "fall_found_with_80_percent": powers,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run(world: World, rng: np.random.Generator) -> list[bool]:
    """Whether each measurement of a run gives an alarm about a metric that has fallen or, healthy, has not."""
    names = ["judge", *(f"metric {number}" for number in range(world.metrics))]
    level = screening_level(world.measurements, world.metrics, independent=world.other_prompts)
    places = np.zeros((2, len(names), world.prompts))
    base = places[0] + noise_of(world, rng, places[0].shape)
    alarms = []
    for number in range(1, world.measurements + 1):
        places = places + world.moving * rng.normal(size=places.shape)
        trend = np.array([RISE * number, -world.fall * SPREAD, *[0.0] * (world.metrics - 1)])[:, None]
        model = places[0] + trend + noise_of(world, rng, base.shape)
        found = falls(columns(names, base), columns(names, model), level=level)
        if found:
            second = places[1] if world.other_prompts else places[0]
            again = second + trend + noise_of(world, rng, base.shape)
            found = confirmed(found, columns(names, noise_of(world, rng, base.shape)), columns(names, again))
        alarms.append(bool(found))
    return alarms


def best_earlier_mean(world: World, rng: np.random.Generator) -> bool:
    """Whether the first version's rule alarms in a healthy run with one metric."""
    rows = [noise_of(world, rng, (world.prompts,)) for _ in range(world.measurements + 1)]
    for number in range(1, len(rows)):
        best = max(rows[:number], key=np.mean)
        if mean_interval(rows[number] - best)[1] < 0:
            return True
    return False


def noise_of(world: World, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of images with a standard deviation of 1 (Student's t: of its own) around 0."""
    match world.noise:
        case "skewed":
            return 1 - rng.exponential(size=shape)
        case "heavy":
            return rng.standard_t(3, size=shape)
        case _:
            return rng.normal(size=shape)


def columns(names: list[str], scores: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(names, scores.tolist(), strict=True))


def found_fall(world: World, *, power: float = 0.8) -> float:
    """The fall, in standard deviations of paired normal differences, of which one measurement and its second find that
    share, by the noncentral t distribution."""
    freedom = world.prompts - 1
    first = screening_level(world.measurements, world.metrics, independent=world.other_prompts)

    def missing(fall: float) -> float:
        shift = fall * world.prompts**0.5
        chances = [stats.nct.sf(stats.t.isf(level, freedom), freedom, shift) for level in (first, CONFIRMING)]
        return float(np.prod(chances)) - power

    return round(float(optimize.brentq(missing, 0.01, 5.0)), 3)


if __name__ == "__main__":
    main()
