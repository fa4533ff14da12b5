"""Shared by judges of decoded images: scores in batches, and their gradients with respect to the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Real
from torch import Tensor

from stepalign.core.protocols import Decode

DecodedScore = Callable[[Float[Tensor, "b 3 hh ww"], Real[Tensor, " b"], list[str]], Float[Tensor, " b"]]
"""Scores of decoded images, with values around [-1, 1], at their timesteps under their prompts."""


@torch.no_grad()
def decoded_scores(
    score: DecodedScore,
    decode: Decode,
    x_0: Float[Tensor, "b c h w"],
    t: Real[Tensor, " b"],
    prompts: list[str],
    *,
    max_batch: int | None,
) -> Float[Tensor, " b"]:
    """The scores of latents, `max_batch` decoded and judged at once; None for all."""
    assert len(prompts) == len(x_0)
    return torch.cat([score(decode(x_0[rows]), t[rows], prompts[rows]) for rows in _rows(len(x_0), max_batch)])


def decoded_gradients(
    score: DecodedScore,
    decode: Decode,
    x_0: Float[Tensor, "b c h w"],
    t: Real[Tensor, " b"],
    prompts: list[str],
    *,
    max_batch: int | None,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
    """The scores of latents and each one's gradient with respect to its latent, through the decoder."""
    assert len(prompts) == len(x_0)
    scores, gradients = [], []
    for rows in _rows(len(x_0), max_batch):
        with torch.enable_grad():
            leaf = x_0[rows].detach().requires_grad_(True)
            found = score(decode(leaf), t[rows], prompts[rows])
            gradients.append(torch.autograd.grad(found.sum(), leaf)[0])
        scores.append(found.detach())
    return torch.cat(scores), torch.cat(gradients)


def _rows(num: int, max_batch: int | None) -> Iterator[slice]:
    step = max_batch or max(1, num)
    return (slice(start, start + step) for start in range(0, max(1, num), step))
