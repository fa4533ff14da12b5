"""Comparisons of judged candidates: rollouts whose every branching is paired (SPO section 4, GradSPO section 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stepalign.core.batch import Conditioning, pair
from stepalign.core.protocols import Judge
from stepalign.core.seeding import PromptNoise
from stepalign.sources.by_prompt import Compared, PromptSampling, PromptSource
from stepalign.sources.rollout import rollout
from stepalign.sources.settings import Branching, Candidates


def candidate_source(
    settings: Candidates, branching: Branching, sampling: PromptSampling, judge: Judge
) -> PromptSource:
    """The source of one comparison per pool of candidates."""

    def compare(prompts: list[str], cond: Conditioning, noise: PromptNoise, on_step: Callable[[], None]) -> Compared:
        pools, _ = rollout(
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
        rule, min_gap = settings.pairing, settings.min_gap
        steps = [pair(step, rule=rule, min_gap=min_gap) for pool in pools for step in pool.transitions]
        scores = [pool.candidates.scores for pool in pools]
        spreads = torch.cat([pool.amax(1) - pool.amin(1) for pool in scores]).tolist() if scores else []
        return Compared(
            steps,
            {
                "judge_score": scores[-1].flatten().tolist() if scores else [],
                "judge_timestep": sampling.sampler.times[pools[-1].judged_at] if pools else None,
                "judge_spread": spreads,
            },
        )

    return PromptSource(sampling, compare)
