"""Where trajectories branch: the sampler's steps that a `Branching` applies to, and the window of each."""

from __future__ import annotations

import torch

from stepalign.core.protocols import Sampler
from stepalign.sources.settings import Branching


def windows(branching: Branching, sampler: Sampler) -> dict[int, int]:
    """The sampler's steps that branch, each with the length of its window.

    A window is the steps that the branches take before they are judged, the first included.
    """
    low, high = branching.timestep_range
    has_noise = sampler.std(torch.arange(sampler.num_steps)) > 0
    applies = [low <= t - 1 <= high and noisy for t, noisy in zip(sampler.times[:-1], has_noise.tolist(), strict=True)]
    found = {}
    for step in (step for step, branches in enumerate(applies) if branches):
        bounds_passed = sum(sampler.times[step] <= bound for bound in branching.inner_step_bounds)
        length = min(branching.num_inner_steps[bounds_passed], sampler.num_steps - step)
        if branching.inner_steps == "path" and False in applies[step : step + length]:
            length = applies[step : step + length].index(False)
        found[step] = length
    return found
