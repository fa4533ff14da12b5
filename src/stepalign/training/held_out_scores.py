"""Held-out evaluation: images of prompts from the same seeds, scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.core.protocols import Decode, Denoiser, Judge, Metric, Sampler
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.support.config import to_plain
from stepalign.support.finite import check_scores
from stepalign.support.statistics import clusters_of, paired_difference


@dataclass(frozen=True, slots=True)
class Generated:
    """Images of prompts and their scores by metric."""

    images: list[Float[Tensor, "3 h w"]]
    """In [0, 1], on the CPU; of the first prompts only, as many as were to be kept."""
    scores: dict[str, Float[Tensor, " n"]]


class ScoreChange(TypedDict):
    """A metric's means over held-out prompts, and the mean difference with its 95 % interval."""

    base: float
    aligned: float
    difference: float
    interval: list[float]


@torch.no_grad()
def generate(
    denoise: Denoiser,
    sampler: Sampler,
    judge: Judge,
    *,
    prompts: list[str],
    encode: Callable[[list[str]], Conditioning],
    decode: Decode,
    latent_shape: tuple[int, int, int],
    metrics: dict[str, Metric],
    seed: int,
    batch_size: int,
    device: torch.device,
    rows: Sequence[int] | None = None,
    num_kept: int = 0,
    purpose: Purpose = Purpose.EVALUATION,
    key: tuple[int, ...] = (),
    tick: Callable[[int], None] = lambda num: None,
) -> Generated:
    """One image per prompt, image i from its own generator at any batch size, with the judge's score of the sample at
    timestep 0 and every metric's of the image.

    `rows` are the prompts to sample, all by default; the images of the first `num_kept` prompts are kept;
    `purpose` and `key` choose the noise.
    """
    rows = range(len(prompts)) if rows is None else rows
    images: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [torch.zeros(0)] for name in ("judge", *metrics)}
    for start in range(0, len(rows), batch_size):
        own = rows[start : start + batch_size]
        chunk = [prompts[row] for row in own]
        noise = PromptNoise([generator_for(seed, purpose, *key, row) for row in own], device=device)
        x_0 = sample(denoise, sampler, cond=encode(chunk), latent_shape=latent_shape, noise=noise)
        image = (decode(x_0) / 2 + 0.5).clamp(0, 1).cpu()
        zero = torch.zeros(len(chunk), dtype=torch.long, device=device)
        judged = judge(x_0, x_0, zero, chunk)
        check_scores(judged, 0)
        scores["judge"].append(judged.cpu())
        for name, metric in metrics.items():
            scores[name].append(metric(image, chunk).cpu())
        images += [one for row, one in zip(own, image, strict=True) if row < num_kept]
        tick(len(chunk))
    return Generated(images, {name: torch.cat(rows) for name, rows in scores.items()})


def compare(base: Generated, aligned: Generated, prompts: Sequence[str]) -> dict[str, ScoreChange]:
    """For every metric: base and aligned mean, paired difference, and its 95 % interval over distinct prompts."""
    clusters = clusters_of(prompts)
    return {
        name: to_plain(paired_difference(base.scores[name], aligned.scores[name], clusters=clusters))
        for name in base.scores
    }
