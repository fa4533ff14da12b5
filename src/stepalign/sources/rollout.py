"""Candidate rollouts: sample k next latents per step, score them, continue from one (SPO section 4, GradSPO 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.core.batch import Conditioning, StepCandidates
from stepalign.core.protocols import Denoiser, Judge, Sampler
from stepalign.core.sampling import times_at
from stepalign.core.seeding import PromptNoise
from stepalign.sources.branching import windows
from stepalign.sources.settings import Branching, Continuation
from stepalign.support.finite import check_scores


@dataclass(frozen=True, slots=True)
class Pool:
    """One branching of a rollout, judged."""

    transitions: list[StepCandidates]
    """Steps that can train: the first, whose candidates share one parent, and on a path each branch's later steps."""
    judged_at: int
    """The step that begins where the branches are judged; the number of steps where they are finished samples."""
    x_0: Float[Tensor, "b k c h w"]
    """The clean samples predicted there, as the judge saw them."""
    continued_from: Int[Tensor, " b"]
    """The candidate that each trajectory continues from."""

    @property
    def candidates(self) -> StepCandidates:
        """The first step's."""
        return self.transitions[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Branches:
    """k branches of every prompt where one step begins, and what the network predicts there."""

    step: int
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
    survivor's prediction is the next step's. Branches that end in samples are judged as they are, at
    the time of finished samples. With N = 20 and branching from 750 a prompt costs 5 + 15 k predictions, whatever the
    windows' length on a path, and k judgements for each window: 16 k where j = 1. Resuming at the next step costs
    min(j, steps left) k predictions for every branching.

    Raises NotFinite, naming the part, when a prediction, a decoded image or a score is not a finite number.
    """
    b, k = len(prompts), branching.num_candidates
    tiled, repeated = cond.tile(k), [prompt for prompt in prompts for _ in range(k)]
    x_t = noise.normal(*latent_shape)
    prediction: Tensor | None = None
    pools: list[Pool] = []
    lengths = windows(branching, sampler)
    index = 0
    while index < sampler.num_steps:
        step = torch.full((b,), index, device=x_t.device)
        if prediction is None:
            prediction = denoise(x_t, times_at(sampler, step), cond)
        if index in lengths:
            parents = _Branches(index, x_t[:, None], prediction[:, None])
            trace, noises = _branch(denoise, sampler, parents, tiled, noise, branching, length=lengths[index])
            pool, at = _judge(judge, sampler, cond, repeated, trace, noises, branching, noise)
            pools.append(pool)
            rows = torch.arange(b, device=x_t.device)
            x_t, following = at.x_t[rows, pool.continued_from], at.step
            prediction = None if at.prediction is None else at.prediction[rows, pool.continued_from]
        else:
            x_t = sampler.transition(prediction, x_t, step).sample(noise.normal(1, *latent_shape))[:, 0]
            prediction, following = None, index + 1
        for _ in range(index, following):
            on_step()
        index = following
    return pools, x_t


def _branch(
    denoise: Denoiser,
    sampler: Sampler,
    parents: _Branches,
    cond: Conditioning,
    noise: PromptNoise,
    branching: Branching,
    *,
    length: int,
) -> tuple[list[_Branches], list[Float[Tensor, "b k c h w"]]]:
    """The branches at every step of a window, from their common parent to where they are judged, and their noises.

    `cond` has a row for every branch.
    """
    k, shape = branching.num_candidates, parents.x_t.shape[2:]
    trace, noises = [parents], []
    deterministic = sampler.with_eta(0.0) if branching.inner_steps == "look-ahead" else None
    for index in range(length):
        at = trace[-1]
        assert at.prediction is not None
        step = torch.full((at.x_t.shape[0] * at.x_t.shape[1],), at.step, device=at.x_t.device)
        prediction, x_t = at.prediction.flatten(0, 1), at.x_t.flatten(0, 1)
        if index and deterministic is not None:
            x_prev = deterministic.transition(prediction, x_t, step).mean.unflatten(0, (-1, k))
        else:
            draws = noise.normal(k, *shape)
            noises.append(draws)
            by_parent = draws if index == 0 else draws.flatten(0, 1)[:, None]
            x_prev = sampler.transition(prediction, x_t, step).sample(by_parent)
            x_prev = x_prev if index == 0 else x_prev[:, 0].unflatten(0, (-1, k))
        following = None
        if at.step + 1 < sampler.num_steps:
            t_prev = times_at(sampler, torch.full((len(cond),), at.step + 1, device=x_prev.device))
            following = denoise(x_prev.flatten(0, 1), t_prev, cond).unflatten(0, (-1, k))
        trace.append(_Branches(at.step + 1, x_prev, following))
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
    """A window's branches judged at its end, as a pool, and where the trajectory resumes; `prompts` one per branch."""
    end = trace[-1]
    b, k = end.x_t.shape[:2]
    flat, step = end.x_t.flatten(0, 1), torch.full((b * k,), end.step, device=end.x_t.device)
    x_0 = flat if end.prediction is None else sampler.predict_x0(end.prediction.flatten(0, 1), flat, step)
    scores = judge(flat, x_0, times_at(sampler, step), prompts).float().reshape(b, k)
    check_scores(scores.flatten(), sampler.times[end.step])
    transitions = []
    for at, draws in zip(trace, noises, strict=False):
        assert at.prediction is not None
        taken = torch.full((b,), at.step, device=flat.device)
        transitions.append(StepCandidates(cond, taken, at.x_t, at.prediction, draws, scores))
    pool = Pool(transitions, end.step, x_0.unflatten(0, (b, k)), _choose(branching.continue_from, scores, noise))
    return pool, trace[1] if branching.resume_at == "next-step" else end


def _choose(rule: Continuation, scores: Float[Tensor, "b k"], noise: PromptNoise) -> Int[Tensor, " b"]:
    match rule:
        case "random":
            return noise.choice(scores.shape[1])
        case "best":
            return scores.argmax(1)
        case "worst":
            return scores.argmin(1)
