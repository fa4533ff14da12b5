"""Plain sampling: one trajectory per prompt, without candidates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.core.protocols import Denoiser, Sampler
from stepalign.core.seeding import PromptNoise


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
