"""Branch, judge, go on: sampling in which every step is a pool of judged candidates (SPO section 4, GradSPO 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.batch import Conditioning, StepCandidates
from stepalign.config import require
from stepalign.protocols import Denoiser, Judge, Sampler
from stepalign.seeding import PromptNoise

Continuation = Literal["random", "best", "worst"]


@dataclass(frozen=True, slots=True)
class Branching:
    """How a rollout branches."""

    num_candidates: int = 4
    """k, the candidates drawn at each branching step."""
    timestep_range: tuple[int, int] = (0, 750)
    """Steps that branch, ends included, counted from 0 as the papers do: Stable Diffusion's t = 751 is their 750."""
    continue_from: Continuation = "random"
    """Which candidate the trajectory goes on from; "best" and "worst" are the ablations of SPO Table 4."""

    def __post_init__(self) -> None:
        require(self.num_candidates >= 2, "branching.num_candidates", self.num_candidates, "at least 2 to compare")

    def applies_at(self, t: int, sampler: Sampler) -> bool:
        """Whether the step from t draws a pool."""
        low, high = self.timestep_range
        return low <= t - 1 <= high and sampler.is_stochastic(t)


@dataclass(frozen=True, slots=True)
class Pool:
    """One judged step of a rollout."""

    candidates: StepCandidates
    t_prev: int
    """Where the candidates lie; the judge's timestep."""
    x_0: Float[Tensor, "b k c h w"]
    """The clean samples they promise, as the judge saw them."""
    followed: Int[Tensor, " b"]
    """The candidate each trajectory went on from."""


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

    Every point of the trajectory is predicted once: at a pool all k candidates are predicted, for the judge, and the
    survivor's prediction is the next step's. Candidates of the last step are samples, judged as they are at
    timestep 0. With N = 20 and branching from 750 a prompt costs 5 + 15 k predictions and 16 k judgements.

    Raises ValueError when the judge returns anything but finite numbers.
    """
    b, k = len(prompts), branching.num_candidates
    x_t = noise.normal(*latent_shape)
    prediction: Tensor | None = None
    pools: list[Pool] = []
    for t in sampler.timesteps:
        step_t = torch.full((b,), t, device=x_t.device)
        if prediction is None:
            prediction = denoise(x_t, step_t, cond)
        transition = sampler.transition(prediction, x_t, step_t)
        if not branching.applies_at(t, sampler):
            x_t, prediction = transition.sample(noise.normal(1, *latent_shape))[:, 0], None
            on_step()
            continue
        draws = noise.normal(k, *latent_shape)
        x_prev = transition.sample(draws)
        t_prev = sampler.previous(t)
        flat_t = torch.full((b * k,), t_prev, device=x_t.device)
        flat = x_prev.flatten(0, 1)
        is_last = t == sampler.timesteps[-1]
        flat_prediction = None if is_last else denoise(flat, flat_t, cond.tile(k))
        flat_x0 = flat if flat_prediction is None else sampler.predict_x0(flat_prediction, flat, flat_t)
        scores = judge(flat, flat_x0, flat_t, [prompt for prompt in prompts for _ in range(k)]).float().reshape(b, k)
        _check_finite(scores, t_prev)
        candidates = StepCandidates(cond, step_t, x_t[:, None], prediction[:, None], draws, scores)
        followed = _choose(branching.continue_from, scores, noise)
        pools.append(Pool(candidates, t_prev, flat_x0.unflatten(0, (b, k)), followed))
        rows = torch.arange(b, device=x_t.device)
        x_t = x_prev[rows, followed]
        prediction = None if flat_prediction is None else flat_prediction.unflatten(0, (b, k))[rows, followed]
        on_step()
    return pools, x_t


@torch.no_grad()
def sample(
    denoise: Denoiser,
    sampler: Sampler,
    *,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
) -> Float[Tensor, "b c h w"]:
    """Plain samples: the same steps without pools."""
    x_t = noise.normal(*latent_shape)
    for t in sampler.timesteps:
        step_t = torch.full((len(noise),), t, device=x_t.device)
        transition = sampler.transition(denoise(x_t, step_t, cond), x_t, step_t)
        x_t = transition.sample(noise.normal(1, *latent_shape))[:, 0]
    return x_t


def _choose(rule: Continuation, scores: Float[Tensor, "b k"], noise: PromptNoise) -> Int[Tensor, " b"]:
    match rule:
        case "random":
            return noise.choice(scores.shape[1])
        case "best":
            return scores.argmax(1)
        case "worst":
            return scores.argmin(1)


def _check_finite(scores: Float[Tensor, "b k"], t: int) -> None:
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(
            f"the judge gave {bad} of {scores.numel()} images at timestep {t} a score that is not a finite number; "
            "check its weights and precision (fp32 scores), or that decoded images are finite"
        )
