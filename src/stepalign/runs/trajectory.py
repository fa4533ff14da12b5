"""One prompt's trajectory under a trained policy, pool by pool, for the report."""

from __future__ import annotations

import torch

from stepalign.core.batch import pair
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.reports.run import TrajectoryStep
from stepalign.runs.assemble import Parts
from stepalign.sources.rollout import Pool, rollout
from stepalign.sources.settings import Candidates, Sources


def candidates_along(parts: Parts, prompt: str) -> list[TrajectoryStep]:
    """One prompt's trajectory under the trained policy, pool by pool, with decoded candidates."""
    recipe = parts.recipe
    pools, _ = rollout(
        parts.policy.denoiser(recipe.training.rollout_role),
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
        with torch.no_grad():
            images = (parts.model.decode(pool.x_0[0]) / 2 + 0.5).clamp(0, 1).cpu()
        steps.append(
            TrajectoryStep(
                timestep=parts.sampler.times[pool.judged_at],
                images=images,
                scores=scores[0].tolist(),
                best=int(scores[0].argmax()),
                worst=int(scores[0].argmin()),
                followed=int(pool.continued_from[0]),
                trained=_trains(recipe.source, pool),
            )
        )
    return steps


def _trains(source: Sources, pool: Pool) -> bool:
    """Whether a run from this source trains on the pool of its first prompt."""
    if not isinstance(source, Candidates):
        return False
    return bool(pair(pool.candidates, rule=source.pairing, min_gap=source.min_gap)[1][0])
