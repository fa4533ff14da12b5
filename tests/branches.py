"""Rollouts of the Gaussian world in windows of several steps, and what can be worked out of their pools again."""

from __future__ import annotations

import torch
from torch import Tensor
from worlds import LATENT_SHAPE, BrightnessJudge, ShiftPolicy, encode, make_sampler

from stepalign.core.batch import Conditioning, StepCandidates
from stepalign.core.sampler import DDIM
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.sources.rollout import Pool, rollout
from stepalign.sources.settings import Branching

PARENTS = list(range(751, 0, -50))
"""Where Stable Diffusion's 20 steps can branch."""
TIMES = make_sampler().times
PROMPTS = ["a", "bb", "ccc", "dddd"]
B, K = 2, 3
JUDGED_AT = {
    1: [*range(701, 0, -50), 0],
    2: [651, 551, 451, 351, 251, 151, 51, 0],
    3: [601, 451, 301, 151, 1, 0],
    4: [551, 351, 151, 0],
    5: [501, 251, 1, 0],
}
"""j -> where the windows of N = 20 steps are judged; the first branches at the fifth step, t = 751."""


WORLD = ShiftPolicy()
"""Untrained: it predicts the data's noise exactly."""


class CountingDenoiser:
    """The world's exact predictions, and (timestep, samples) of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert len(t.unique()) == 1
        self.calls.append((int(t[0]), len(x_t)))
        return WORLD.predict(x_t, t, cond, role="reference")


def noise_of(*rows: int) -> PromptNoise:
    return PromptNoise([generator_for(3, Purpose.ROLLOUT, row) for row in rows])


def roll(
    *,
    rows: tuple[int, ...] = (0, 1),
    denoise: CountingDenoiser | None = None,
    judge: object = None,
    sampler: DDIM | None = None,
    noise: PromptNoise | None = None,
    on_step: object = lambda: None,
    **branching: object,
) -> tuple[list[Pool], Tensor]:
    """A rollout of those of PROMPTS in the world of Gaussian data, three branches each."""
    prompts = [PROMPTS[row] for row in rows]
    return rollout(
        denoise or CountingDenoiser(),
        sampler or make_sampler(),
        judge or BrightnessJudge(),
        cond=encode(prompts),
        prompts=prompts,
        latent_shape=LATENT_SHAPE,
        noise=noise or noise_of(*rows),
        branching=Branching(num_candidates=K, **branching),
        on_step=on_step,
    )


def windows(pools: list[Pool]) -> list[list[int]]:
    """The timesteps whose transitions each pool has, the same for every prompt."""
    assert all(len(step.step.unique()) == 1 for pool in pools for step in pool.transitions)
    return [[began_at(step) for step in pool.transitions] for pool in pools]


def began_at(step: StepCandidates) -> int:
    """The timestep of a step's parents."""
    return TIMES[int(step.step[0])]


def ended_at(pools: list[Pool]) -> list[int]:
    """The timesteps at which the windows end."""
    return [TIMES[pool.judged_at] for pool in pools]


def judged_at(judge: BrightnessJudge) -> list[int]:
    """The timestep of every call of the judge."""
    return [t for t, _ in judge.seen[:: B * K]]


def landed(step: StepCandidates, sampler: DDIM | None = None) -> Tensor:
    """x_prev of every branch from its own parent, prediction and noise."""
    sampler, num = sampler or make_sampler(), step.x_t.shape[1]
    parents = [(step.prediction[:, i % num], step.x_t[:, i % num], step.noise[:, [i]]) for i in range(K)]
    return torch.cat([sampler.transition(guess, x_t, step.step).sample(z) for guess, x_t, z in parents], 1)


def predicted(x_t: Tensor, t: int) -> Tensor:
    """What the network says of points "b k c h w"."""
    cond, at = encode(PROMPTS[: len(x_t)]).tile(x_t.shape[1]), torch.full((len(x_t) * x_t.shape[1],), t)
    return WORLD.predict(x_t.flatten(0, 1), at, cond, role="reference").unflatten(0, x_t.shape[:2])


def clean(x_t: Tensor, t: int) -> Tensor:
    """The clean samples that points "b k c h w" promise; at 0 themselves."""
    at = torch.full((x_t.shape[0] * x_t.shape[1],), t)
    guess = predicted(x_t, t).flatten(0, 1)
    return (
        x_t if t == 0 else make_sampler().schedule.predict_x0(guess, x_t.flatten(0, 1), at).unflatten(0, x_t.shape[:2])
    )


def survivors(pool: Pool, branches: Tensor) -> Tensor:
    return branches[torch.arange(len(branches)), pool.continued_from]
