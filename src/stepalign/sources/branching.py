"""Where trajectories branch: the sampler's steps that a `Branching` applies to, and the window of each."""

from __future__ import annotations

from itertools import takewhile

from stepalign.core.protocols import Sampler
from stepalign.sources.settings import Branching


def applies_at(branching: Branching, t: int, sampler: Sampler) -> bool:
    """Whether the step from t branches."""
    low, high = branching.timestep_range
    return low <= t - 1 <= high and sampler.is_stochastic(t)


def window(branching: Branching, t: int, sampler: Sampler) -> list[int]:
    """The timesteps of the window that branches at t, whose steps the branches take before they are judged."""
    length = branching.num_inner_steps[sum(t <= bound for bound in branching.inner_step_bounds)]
    ahead = [step for step in sampler.timesteps if step <= t][:length]
    if branching.inner_steps == "look-ahead":
        return ahead
    return list(takewhile(lambda step: applies_at(branching, step, sampler), ahead))
