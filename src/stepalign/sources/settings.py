"""Settings of experience sources: how trajectories branch, and what training comparisons are made from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stepalign.core.choices import Pairing
from stepalign.support.config import require

Continuation = Literal["random", "best", "worst"]
InnerSteps = Literal["path", "look-ahead"]


@dataclass(frozen=True, slots=True)
class Branching:
    """How a rollout branches into candidates."""

    num_candidates: int = 4
    """k, the candidates sampled at each branching step."""
    timestep_range: tuple[int, int] = (0, 750)
    """Steps that branch, ends included, counted from 0 as the papers do: Stable Diffusion's t = 751 is their 750."""
    continue_from: Continuation = "random"
    """The candidate that the trajectory continues from; "best" and "worst" are the ablations of SPO Table 4."""
    num_inner_steps: tuple[int, ...] = (1,)
    """j, the steps from a branching to its judgement; a window is cut where sampling ends, and on a path where
    branching does. Several values hold from high noise to low, with a bound between each two."""
    inner_step_bounds: tuple[int, ...] = ()
    """Timesteps of the grid (751, not 750), falling, from which down the next value of num_inner_steps holds: 4 1 with
    the bound 400 looks 4 steps ahead above t = 400 and 1 from there on."""
    inner_steps: InnerSteps = "path"
    """"path": each branch samples noise of its own at every step of the window, and every step trains (MSPO, SPO
    section 4.5); "look-ahead": noise at the first step alone, deterministic steps from there, and the first step
    trains."""
    resume_at: Literal["window-end", "next-step"] = "window-end"
    """Where the trajectory resumes after a window: at its end, or, for "look-ahead", at the next step."""

    def __post_init__(self) -> None:
        require(self.num_candidates >= 2, "branching.num_candidates", self.num_candidates, "at least 2 to compare")
        inner, bounds = self.num_inner_steps, self.inner_step_bounds
        require(len(inner) >= 1 and min(inner) >= 1, "branching.num_inner_steps", inner, "numbers of at least 1")
        falling = all(high > low for high, low in pairwise(bounds))
        require(
            falling and len(bounds) == len(inner) - 1,
            "branching.inner_step_bounds",
            bounds,
            f"falling timesteps, {len(inner) - 1} for {len(inner)} values of num_inner_steps",
        )
        anywhere = self.resume_at == "window-end" or self.inner_steps == "look-ahead" or max(inner) == 1
        require(anywhere, "branching.resume_at", self.resume_at, 'window-end where inner_steps is "path"')


@dataclass(frozen=True, slots=True)
class Candidates:
    """Comparisons of candidates that the judge scored (SPO, GradSPO)."""

    kind: Literal["candidates"] = "candidates"
    """Where comparisons come from: "candidates" that the judge scores at each step, or a differentiable judge's
    "clean-gradient" (GradSPO appendix G)."""
    pairing: Pairing = "best-worst"
    """The comparison made of a step's candidates: "best-worst", "all-k" (weighted by all scores) or "two-random"."""
    min_gap: float = 0.3
    """Comparisons with a smaller preference gap, P(best) - P(worst), are not trained on."""

    def __post_init__(self) -> None:
        require(0 <= self.min_gap <= 1, "source.min_gap", self.min_gap, "between 0 and 1")

    def check(self, branching: Branching) -> None:
        """Raise ValueError for a branching that these comparisons cannot be made from."""
        several = branching.inner_steps == "path" and max(branching.num_inner_steps) > 1
        require(
            not several or self.pairing != "all-k",
            "source.pairing",
            self.pairing,
            "best-worst or two-random where several steps of a path train: their candidates have parents of their own",
        )


@dataclass(frozen=True, slots=True)
class CleanGradient:
    """Comparisons along the exact gradient of a differentiable judge's score (GradSPO appendix G)."""

    kind: Literal["clean-gradient"] = "clean-gradient"
    """Where comparisons come from: "candidates" that the judge scores at each step, or a differentiable judge's
    "clean-gradient" (GradSPO appendix G)."""

    def check(self, branching: Branching) -> None:
        """Raise ValueError for a branching that has no meaning without candidates."""
        inner = branching.num_inner_steps
        require(max(inner) == 1, "branching.num_inner_steps", inner, "1 with a clean gradient")


Sources = Candidates | CleanGradient
"""The settings that `sources.load` knows a source for; `kind` picks the member."""
