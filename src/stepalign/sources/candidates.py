"""Comparisons of judged candidates: rollouts whose every branching is paired (SPO section 4, GradSPO section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stepalign.core.batch import Conditioning, StepComparisons, pair
from stepalign.core.experience import Collected
from stepalign.core.protocols import Judge
from stepalign.core.seeding import PromptNoise
from stepalign.sources.by_prompt import Compared, PromptSampling, collect_by_prompt
from stepalign.sources.rollout import rollout
from stepalign.sources.settings import Branching, Candidates


@dataclass(frozen=True, slots=True, eq=False)
class CandidateSource:
    """Collects one comparison per pool of candidates."""

    settings: Candidates
    branching: Branching
    sampling: PromptSampling
    judge: Judge

    @property
    def digest(self) -> str:
        """Of the prompts."""
        return self.sampling.stream.digest

    def collect(self, index: int, tick: Callable[[int, int], None]) -> Collected[StepComparisons]:
        """This process's comparisons of round `index`, counted from 0."""
        return collect_by_prompt(self.sampling, index, tick, self._compare)

    def _compare(
        self, prompts: list[str], cond: Conditioning, noise: PromptNoise, on_step: Callable[[], None]
    ) -> Compared:
        pools, _ = rollout(
            self.sampling.denoise,
            self.sampling.sampler,
            self.judge,
            cond=cond,
            prompts=prompts,
            latent_shape=self.sampling.latent_shape,
            noise=noise,
            branching=self.branching,
            on_step=on_step,
        )
        rule, min_gap = self.settings.pairing, self.settings.min_gap
        steps = [pair(step, rule=rule, min_gap=min_gap) for pool in pools for step in pool.transitions]
        scores = [pool.candidates.scores for pool in pools]
        spreads = torch.cat([pool.amax(1) - pool.amin(1) for pool in scores]).tolist() if scores else []
        return Compared(
            steps,
            {
                "judge_score": scores[-1].flatten().tolist() if scores else [],
                "judge_timestep": self.sampling.sampler.times[pools[-1].judged_at] if pools else None,
                "judge_spread": spreads,
            },
        )
