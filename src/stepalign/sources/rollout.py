"""Branch, judge, go on: sampling in which every step is a pool of judged candidates (SPO section 4, GradSPO 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.core.batch import Conditioning, StepCandidates
from stepalign.core.protocols import Denoiser, Judge, Sampler
from stepalign.core.seeding import PromptNoise
from stepalign.support.config import require
from stepalign.support.finite import check_finite

Continuation = Literal["random", "best", "worst"]
InnerSteps = Literal["path", "look-ahead"]


@dataclass(frozen=True, slots=True)
class Branching:
    """How a rollout branches."""

    num_candidates: int = 4
    """k, the candidates drawn at each branching step."""
    timestep_range: tuple[int, int] = (0, 750)
    """Steps that branch, ends included, counted from 0 as the papers do: Stable Diffusion's t = 751 is their 750."""
    continue_from: Continuation = "random"
    """Which candidate the trajectory goes on from; "best" and "worst" are the ablations of SPO Table 4."""
    num_inner_steps: tuple[int, ...] = (1,)
    """j, the steps from a branching to its judgement; a window is cut where sampling ends, and on a path where
    branching does. Several values hold from high noise to low, with a bound between each two."""
    inner_step_bounds: tuple[int, ...] = ()
    """Timesteps of the grid (751, not 750), falling, from which down the next value of num_inner_steps holds: 4 1 with
    the bound 400 looks 4 steps ahead above t = 400 and 1 from there on."""
    inner_steps: InnerSteps = "path"
    """"path": each branch draws noise of its own at every step of the window, and every step trains (MSPO, SPO section
    4.5); "look-ahead": noise at the first step alone, deterministic steps from there, and the first step trains."""
    go_on_at: Literal["window-end", "next-step"] = "window-end"
    """Where the trajectory goes on after a window: at its end, or, for "look-ahead", at the next step."""

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
        anywhere = self.go_on_at == "window-end" or self.inner_steps == "look-ahead" or max(inner) == 1
        require(anywhere, "branching.go_on_at", self.go_on_at, 'window-end where inner_steps is "path"')

    def applies_at(self, t: int, sampler: Sampler) -> bool:
        """Whether the step from t draws a pool."""
        low, high = self.timestep_range
        return low <= t - 1 <= high and sampler.is_stochastic(t)

    def window(self, t: int, sampler: Sampler) -> list[int]:
        """The timesteps of the window that branches at t, whose steps the branches take before they are judged."""
        length = self.num_inner_steps[sum(t <= bound for bound in self.inner_step_bounds)]
        ahead = [step for step in sampler.timesteps if step <= t][:length]
        if self.inner_steps == "look-ahead":
            return ahead
        return list(takewhile(lambda step: self.applies_at(step, sampler), ahead))


@dataclass(frozen=True, slots=True)
class Pool:
    """One branching of a rollout, judged."""

    transitions: list[StepCandidates]
    """What can train: the first step, whose candidates share one parent, and on a path each branch's later steps."""
    t_prev: int
    """Where the branches are judged; the judge's timestep."""
    x_0: Float[Tensor, "b k c h w"]
    """The clean samples they promise there, as the judge saw them."""
    followed: Int[Tensor, " b"]
    """The candidate each trajectory went on from."""

    @property
    def candidates(self) -> StepCandidates:
        """The first step's."""
        return self.transitions[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Branches:
    """k branches of every prompt at one timestep, and what the network predicts there."""

    t: int
    x_t: Float[Tensor, "b k c h w"]
    prediction: Float[Tensor, "b k c h w"] | None
    """None for finished samples."""


@torch.no_grad()
def rollout(
    denoise: Denoiser,
    sampler: Sampler,
    judge: Judge,
    *,
    cond: Conditioning,
    prompts: list[str],
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
    branching: Branching,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[Pool], Float[Tensor, "b c h w"]]:
    """The pools of one trajectory per prompt, and the samples it ends in.

    Every point is predicted once: all k branches are predicted where they step on and where they are judged, and the
    survivor's prediction is the next step's. Branches that end in samples are judged as they are at timestep 0. With
    N = 20 and branching from 750 a prompt costs 5 + 15 k predictions, whatever the windows' length on a path, and k
    judgements for each window: 16 k where j = 1. Going on at the next step costs min(j, steps left) k predictions for
    every branching.

    Raises NotFinite, naming the part, when a prediction, a decoded image or a score is not a finite number.
    """
    b, k = len(prompts), branching.num_candidates
    tiled, repeated = cond.tile(k), [prompt for prompt in prompts for _ in range(k)]
    x_t = noise.normal(*latent_shape)
    prediction: Tensor | None = None
    pools: list[Pool] = []
    t = sampler.timesteps[0]
    while True:
        step_t = torch.full((b,), t, device=x_t.device)
        if prediction is None:
            prediction = denoise(x_t, step_t, cond)
        if branching.applies_at(t, sampler):
            parents = _Branches(t, x_t[:, None], prediction[:, None])
            trace, noises = _branch(denoise, sampler, parents, tiled, noise, branching)
            pool, at = _judge(judge, sampler, cond, repeated, trace, noises, branching, noise)
            pools.append(pool)
            rows = torch.arange(b, device=x_t.device)
            x_t, t = at.x_t[rows, pool.followed], at.t
            prediction = None if at.prediction is None else at.prediction[rows, pool.followed]
            finished, num_steps = at.prediction is None, trace.index(at)
        else:
            x_t = sampler.transition(prediction, x_t, step_t).sample(noise.normal(1, *latent_shape))[:, 0]
            prediction, finished, num_steps = None, t == sampler.timesteps[-1], 1
            t = sampler.previous(t)
        for _ in range(num_steps):
            on_step()
        if finished:
            return pools, x_t


def _branch(
    denoise: Denoiser,
    sampler: Sampler,
    parents: _Branches,
    cond: Conditioning,
    noise: PromptNoise,
    branching: Branching,
) -> tuple[list[_Branches], list[Float[Tensor, "b k c h w"]]]:
    """The branches at every timestep of a window, from their common parent to where they are judged, and their noises.

    `cond` has a row for every branch.
    """
    k, shape = branching.num_candidates, parents.x_t.shape[2:]
    trace, noises = [parents], []
    for index, t in enumerate(branching.window(parents.t, sampler)):
        at = trace[-1]
        assert at.prediction is not None
        flat_t = torch.full((at.x_t.shape[0] * at.x_t.shape[1],), t, device=at.x_t.device)
        prediction, x_t = at.prediction.flatten(0, 1), at.x_t.flatten(0, 1)
        if index and branching.inner_steps == "look-ahead":
            x_prev = sampler.deterministic_step(prediction, x_t, flat_t).unflatten(0, (-1, k))
        else:
            draws = noise.normal(k, *shape)
            noises.append(draws)
            by_parent = draws if index == 0 else draws.flatten(0, 1)[:, None]
            x_prev = sampler.transition(prediction, x_t, flat_t).sample(by_parent)
            x_prev = x_prev if index == 0 else x_prev[:, 0].unflatten(0, (-1, k))
        t_prev = sampler.previous(t)
        following = None
        if t != sampler.timesteps[-1]:
            flat_prev = torch.full((len(cond),), t_prev, device=x_prev.device)
            following = denoise(x_prev.flatten(0, 1), flat_prev, cond).unflatten(0, (-1, k))
        trace.append(_Branches(t_prev, x_prev, following))
    return trace, noises


def _judge(
    judge: Judge,
    sampler: Sampler,
    cond: Conditioning,
    prompts: list[str],
    trace: list[_Branches],
    noises: list[Float[Tensor, "b k c h w"]],
    branching: Branching,
    noise: PromptNoise,
) -> tuple[Pool, _Branches]:
    """A window's branches judged at its end, as a pool, and where the trajectory goes on; `prompts` one per branch."""
    end = trace[-1]
    b, k = end.x_t.shape[:2]
    flat, flat_t = end.x_t.flatten(0, 1), torch.full((b * k,), end.t, device=end.x_t.device)
    x_0 = flat if end.prediction is None else sampler.predict_x0(end.prediction.flatten(0, 1), flat, flat_t)
    scores = judge(flat, x_0, flat_t, prompts).float().reshape(b, k)
    check_scores(scores.flatten(), end.t)
    transitions = []
    for at, draws in zip(trace, noises, strict=False):
        assert at.prediction is not None
        t = torch.full((b,), at.t, device=flat.device)
        transitions.append(StepCandidates(cond, t, at.x_t, at.prediction, draws, scores))
    pool = Pool(transitions, end.t, x_0.unflatten(0, (b, k)), _choose(branching.continue_from, scores, noise))
    return pool, trace[1] if branching.go_on_at == "next-step" else end


@torch.no_grad()
def trajectory(
    denoise: Denoiser,
    sampler: Sampler,
    *,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
) -> Iterator[tuple[int, Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]]:
    """Plain sampling step by step: every timestep, x_t and the x̂0 predicted there; last 0 and the samples, twice."""
    x_t = noise.normal(*latent_shape)
    for t in sampler.timesteps:
        step_t = torch.full((len(noise),), t, device=x_t.device)
        prediction = denoise(x_t, step_t, cond)
        yield t, x_t, sampler.predict_x0(prediction, x_t, step_t)
        x_t = sampler.transition(prediction, x_t, step_t).sample(noise.normal(1, *latent_shape))[:, 0]
    yield 0, x_t, x_t


def sample(
    denoise: Denoiser,
    sampler: Sampler,
    *,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
) -> Float[Tensor, "b c h w"]:
    """Plain samples: the same steps without pools."""
    *_, (_, x_0, _) = trajectory(denoise, sampler, cond=cond, latent_shape=latent_shape, noise=noise)
    return x_0


def _choose(rule: Continuation, scores: Float[Tensor, "b k"], noise: PromptNoise) -> Int[Tensor, " b"]:
    match rule:
        case "random":
            return noise.choice(scores.shape[1])
        case "best":
            return scores.argmax(1)
        case "worst":
            return scores.argmin(1)


def check_scores(scores: Float[Tensor, " b"], t: int) -> None:
    """Raise NotFinite, naming the judge, unless all scores at a timestep are finite numbers."""
    check_finite(scores, f"the judge's scores at timestep {t}", "check the files of the judge")
