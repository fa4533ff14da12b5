"""Plain sampling: one trajectory per prompt, without candidates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.core.protocols import Denoiser, Sampler
from stepalign.core.seeding import PromptNoise


def times_at(sampler: Sampler, step: Int[Tensor, " b"]) -> Real[Tensor, " b"]:
    """The times of steps, as the network and judges take them; of finished samples at step N."""
    return torch.tensor(sampler.times, device=step.device)[step]


@torch.no_grad()
def trajectory(
    denoise: Denoiser,
    sampler: Sampler,
    *,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    noise: PromptNoise,
) -> Iterator[tuple[int | float, Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]]:
    """Plain sampling: every step's time, x_t and the x̂0 predicted there; last the samples' time, and they twice."""
    x_t = noise.normal(*latent_shape)
    for index, time in enumerate(sampler.times[:-1]):
        step = torch.full((len(noise),), index, device=x_t.device)
        prediction = denoise(x_t, times_at(sampler, step), cond)
        yield time, x_t, sampler.predict_x0(prediction, x_t, step)
        x_t = sampler.transition(prediction, x_t, step).sample(noise.normal(1, *latent_shape))[:, 0]
    yield sampler.times[-1], x_t, x_t


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
