"""One prompt's trajectory under a trained policy, pool by pool, for the report."""

from __future__ import annotations

import torch

from stepalign.core.batch import pair
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.reports.run import TrajectoryStep
from stepalign.runs.assemble import Parts
from stepalign.sources.rollout import rollout


def candidates_along(parts: Parts, prompt: str) -> list[TrajectoryStep]:
    """One prompt's trajectory under the trained policy, pool by pool, with decoded candidates."""
    recipe = parts.recipe
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
        _, kept = pair(pool.candidates, rule=recipe.training.pairing, min_gap=recipe.training.min_gap)
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
                trained=bool(kept[0]),
            )
        )
    return steps
