"""One prompt's trajectory under a trained policy, pool by pool, for the report."""

from __future__ import annotations

import torch

from stepalign.assemble import Parts
from stepalign.batch import pair
from stepalign.recipes import Recipe
from stepalign.report import TrajectoryStep
from stepalign.rollout import rollout
from stepalign.seeding import PromptNoise, Purpose, generator_for


def follow(recipe: Recipe, parts: Parts, prompt: str) -> list[TrajectoryStep]:
    """One prompt's trajectory under the trained policy, pool by pool, with decoded candidates."""
    pools, _ = rollout(
        parts.policy.denoiser(recipe.training.sample_with),
        parts.sampler,
        parts.judge,
        cond=parts.model.encode([prompt]),
        prompts=[prompt],
        latent_shape=parts.model.latent_shape,
        noise=PromptNoise([generator_for(recipe.seed, Purpose.EVALUATION, 0)], device=parts.model.device),
        branching=recipe.branching,
    )
    steps = []
    for pool in pools:
        scores = pool.candidates.scores
        _, sure = pair(pool.candidates, rule=recipe.training.pairing, min_gap=recipe.training.min_gap)
        with torch.no_grad():
            images = (parts.model.decode(pool.x_0[0]) / 2 + 0.5).clamp(0, 1).cpu()
        steps.append(
            TrajectoryStep(
                timestep=pool.t_prev,
                images=images,
                scores=scores[0].tolist(),
                best=int(scores[0].argmax()),
                worst=int(scores[0].argmin()),
                followed=int(pool.followed[0]),
                trained=bool(sure[0]),
            )
        )
    return steps
