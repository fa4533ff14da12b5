"""Comparisons without candidates: the exact gradient of the judge's score in place of noise (GradSPO appendix G)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.protocols import Denoiser, DifferentiableJudge, Sampler
from stepalign.core.sampling import times_at
from stepalign.core.seeding import PromptNoise
from stepalign.sources.branching import windows
from stepalign.sources.by_prompt import Compared, PromptSampling, PromptSource
from stepalign.sources.settings import Branching
from stepalign.support.finite import check_finite, check_scores


def clean_gradient_source(branching: Branching, sampling: PromptSampling, judge: DifferentiableJudge) -> PromptSource:
    """The source of one comparison per step of a plain trajectory, along the gradient of the judge's score."""

    def compare(prompts: list[str], cond: Conditioning, noise: PromptNoise, on_step: Callable[[], None]) -> Compared:
        comparisons, scores = gradient_rollout(
            sampling.denoise,
            sampling.sampler,
            judge,
            cond=cond,
            prompts=prompts,
            latent_shape=sampling.latent_shape,
            noise=noise,
            branching=branching,
            on_step=on_step,
        )
        times = sampling.sampler.times
        return Compared(
            [(step, step.noise.flatten(1).any(1)) for step in comparisons],
            {
                "judge_score": scores.tolist(),
                "judge_timestep": times[int(comparisons[-1].step[0])] if comparisons else None,
                "judge_spread": [],
            },
        )

    return PromptSource(sampling, compare)


@torch.no_grad()
def gradient_rollout(
    denoise: Denoiser,
    sampler: Sampler,
    judge: DifferentiableJudge,
    *,
    cond: Conditioning,
    prompts: list[str],
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
    branching: Branching,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[StepComparisons], Float[Tensor, " b"]]:
    """A comparison per prompt at every step that branches, on one plain trajectory, and the last step's scores.

    The comparison's noises are ±z/2 with z along the gradient of the judge's score at x̂0(x_t) with respect to x̂0 (with
    respect to x_t it is unstable), and as long as the difference of two independent noises is on average: sqrt(2 D)
    for D latent entries. A prompt costs N predictions and a judged image, with its gradient, per comparison.

    Raises NotFinite, naming the part, when a score or a gradient is not a finite number.
    """
    b = len(prompts)
    x_t = noise.normal(*latent_shape)
    comparisons: list[StepComparisons] = []
    scores = torch.zeros(b, device=x_t.device)
    branching_steps = windows(branching, sampler)
    for index, time in enumerate(sampler.times[:-1]):
        step = torch.full((b,), index, device=x_t.device)
        t = times_at(sampler, step)
        prediction = denoise(x_t, t, cond)
        if index in branching_steps:
            scores, gradient = judge.gradient(sampler.predict_x0(prediction, x_t, step), t, prompts)
            check_scores(scores, time)
            half = _half_difference(gradient.float(), time)
            pair = torch.stack([half, -half], 1)
            comparisons.append(StepComparisons(cond, step, x_t[:, None], prediction[:, None], pair))
        x_t = sampler.transition(prediction, x_t, step).sample(noise.normal(1, *latent_shape))[:, 0]
        on_step()
    return comparisons, scores


def _half_difference(gradient: Float[Tensor, "b c h w"], t: int | float) -> Float[Tensor, "b c h w"]:
    """Gradients scaled to the length sqrt(D / 2); zeros stay zeros."""
    check_finite(gradient, f"the gradient of the judge's score at timestep {t}", "check the files of judge and VAE")
    norm = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    length = (gradient[0].numel() / 2) ** 0.5
    return torch.where(norm > 0, gradient * (length / norm.clamp_min(1e-30)), 0.0)
