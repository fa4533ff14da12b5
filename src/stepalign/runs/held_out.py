"""Held-out evaluation of a run's models, shared by all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from stepalign.core.choices import Role
from stepalign.core.seeding import Purpose
from stepalign.reports.sampling_record import sampling_record
from stepalign.runs.assemble import Parts
from stepalign.support.parallel import processes, together
from stepalign.training.held_out_scores import Generated, generate


def sampling_of(parts: Parts) -> dict[str, Any]:
    """How a run's held-out images are sampled, for its summary and tables."""
    recipe = parts.recipe
    return sampling_record(
        num_steps=recipe.base.num_steps,
        eta=recipe.evaluation.eta,
        guidance_scale=recipe.base.guidance_scale,
        seed=recipe.seed,
        resolution=parts.model.image_size,
    )


def measure(
    parts: Parts,
    role: Role,
    *,
    prompts: list[str] | None = None,
    num_kept: int = 0,
    purpose: Purpose = Purpose.EVALUATION,
    key: tuple[int, ...] = (),
    tick: Callable[[int], None] = lambda num: None,
) -> Generated:
    """A role's images of prompts, those of the final evaluation by default, scored by the judge and the run's metrics.

    They are sampled on the run's timesteps with `evaluation.eta`, whatever noise it trains with. Processes share the
    prompts and each gets all scores; the images of the first `num_kept` prompts are kept.
    """
    recipe, prompts = parts.recipe, parts.held_out if prompts is None else prompts
    world, rank = processes().num_processes, processes().process_index
    own = together(
        lambda: generate(
            parts.policy.denoiser(role),
            parts.sampler.with_eta(recipe.evaluation.eta),
            parts.judge,
            prompts=prompts,
            encode=parts.model.encode,
            decode=parts.model.decode,
            latent_shape=parts.model.latent_shape,
            metrics=parts.metrics,
            seed=recipe.seed,
            batch_size=recipe.evaluation.batch_size,
            device=parts.model.device,
            rows=range(len(prompts))[rank::world],
            num_kept=num_kept,
            purpose=purpose,
            key=key,
            tick=lambda num: tick(num * world),
        )
    )
    if world == 1:
        return own
    shares: list[Generated] = gather_object([own])
    scores = {}
    for name in own.scores:
        scores[name] = torch.empty(len(prompts))
        for index, share in enumerate(shares):
            scores[name][index::world] = share.scores[name]
    images = [shares[row % world].images[row // world] for row in range(min(num_kept, len(prompts)))]
    return Generated(images, scores)
