"""Rollouts: the work they do, where their trajectories go, and what a prompt's random numbers depend on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from conftest import copied_policy
from torch import Tensor
from worlds import LATENT_SHAPE, encode, make_sampler

from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.models.base import BaseModel
from stepalign.sources.rollout import Pool, rollout
from stepalign.sources.settings import Branching

ALL_TIMESTEPS = list(range(951, 0, -50))


class FakeDenoiser:
    """Predicts new random numbers every time it is asked, so that no prediction can be mistaken for another."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        """(timestep, samples) of every call."""
        self.predictions: dict[int, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        assert len(t.unique()) == 1
        self.calls.append((int(t[0]), len(x_t)))
        self.predictions[int(t[0])] = torch.randn(x_t.shape, generator=self._generator)
        return self.predictions[int(t[0])]

    @property
    def num_samples(self) -> int:
        return sum(count for _, count in self.calls)


class FakeJudge:
    """Scores by a function of x̂0 and remembers every batch."""

    def __init__(self, score: Callable[[Tensor], Tensor] = lambda x_0: x_0.mean((1, 2, 3))) -> None:
        self.score = score
        self.calls: list[tuple[int, int]] = []
        self.prompts: list[list[str]] = []

    def __call__(self, x_t: Tensor, x_0: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        assert len(t.unique()) == 1
        self.calls.append((int(t[0]), len(x_0)))
        self.prompts.append(prompts)
        return self.score(x_0)


def noise_of(*keys: int) -> PromptNoise:
    return PromptNoise([generator_for(3, Purpose.ROLLOUT, key) for key in keys])


def roll(
    b: int = 2,
    k: int = 3,
    *,
    denoise: object = None,
    judge: object = None,
    sampler: DDIM | None = None,
    keys: tuple[int, ...] | None = None,
    **branching: object,
) -> tuple[list[Pool], Tensor]:
    """A rollout in the world of Gaussian data, for prompts "a", "bb", "ccc" and so on."""
    prompts = [chr(ord("a") + row % 26) * (row % 7 + 1) for row in range(b)]
    return rollout(
        denoise or FakeDenoiser(),
        sampler or make_sampler(),
        judge or FakeJudge(),
        cond=encode(prompts),
        prompts=prompts,
        latent_shape=LATENT_SHAPE,
        noise=noise_of(*(keys or range(b))),
        branching=Branching(num_candidates=k, **branching),
    )


def at(pool: Pool, values: Tensor, which: Tensor) -> Tensor:
    """Row i's entry which[i] of values "b k c h w"."""
    return values[torch.arange(len(which)), which]


def candidates_of(pool: Pool, sampler: DDIM) -> Tensor:
    """x_prev of every candidate, from the pool's parents, predictions and noise."""
    parents = pool.candidates
    return sampler.transition(parents.prediction[:, 0], parents.x_t[:, 0], parents.step).sample(parents.noise)


# Work


@pytest.mark.parametrize(("b", "k"), [(1, 2), (3, 4)])
def test_a_prompt_costs_5_plain_predictions_and_15_k_at_candidates(b: int, k: int) -> None:
    denoise = FakeDenoiser()
    roll(b, k, denoise=denoise)
    assert denoise.calls == [(t, b) for t in ALL_TIMESTEPS[:5]] + [(t, k * b) for t in range(701, 0, -50)]
    assert denoise.num_samples == 5 * b + 15 * k * b


@pytest.mark.parametrize(("b", "k"), [(1, 2), (3, 4)])
def test_the_judge_sees_every_candidate_once_at_its_own_timestep(b: int, k: int) -> None:
    judge = FakeJudge()
    roll(b, k, judge=judge)
    assert judge.calls == [(t, k * b) for t in [*range(701, 0, -50), 0]]


def test_the_judge_is_told_the_prompt_of_every_candidate() -> None:
    judge = FakeJudge()
    roll(2, 3, judge=judge)
    assert judge.prompts == [["a", "a", "a", "bb", "bb", "bb"]] * 16


def test_pools_are_drawn_at_751_and_below() -> None:
    pools, _ = roll()
    assert [pool.candidates.step.tolist() for pool in pools] == [[step, step] for step in range(4, 20)]
    assert [pool.judged_at for pool in pools] == list(range(5, 21))


def test_guidance_doubles_the_samples_through_the_network(tiny_sd: BaseModel) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=5.0)
    rollout(
        policy.denoiser("policy"),
        make_sampler(),
        FakeJudge(),
        cond=tiny_sd.encode(["a", "b"]),
        prompts=["a", "b"],
        latent_shape=tiny_sd.latent_shape,
        noise=noise_of(0, 1),
        branching=Branching(num_candidates=3),
    )
    assert policy.calls == {"policy": 5 * 2 * 2 + 15 * 2 * 3 * 2}


# Trajectories


def test_the_survivors_prediction_is_reused() -> None:
    denoise = FakeDenoiser()
    pools, _ = roll(denoise=denoise)
    for pool, following in pairwise(pools):
        predicted = denoise.predictions[ALL_TIMESTEPS[pool.judged_at]].unflatten(0, (2, 3))
        assert torch.equal(following.candidates.prediction[:, 0], at(pool, predicted, pool.continued_from))


def test_the_next_parents_are_the_followed_candidates() -> None:
    pools, end = roll()
    for pool, following in pairwise(pools):
        followed = at(pool, candidates_of(pool, make_sampler()), pool.continued_from)
        assert torch.equal(following.candidates.x_t[:, 0], followed)
    assert torch.equal(end, at(pools[-1], candidates_of(pools[-1], make_sampler()), pools[-1].continued_from))


def test_candidates_are_the_steps_mean_plus_sigma_times_their_noise() -> None:
    sampler = make_sampler()
    judged = []
    pools, _ = roll(judge=FakeJudge(lambda x_0: judged.append(x_0) or x_0.mean((1, 2, 3))))
    last = pools[-1].candidates
    transition = sampler.transition(last.prediction[:, 0], last.x_t[:, 0], last.step)
    sigma = sampler.std(last.step)[0].item()
    expected = transition.mean[:, None] + sigma * last.noise
    assert torch.allclose(judged[-1].unflatten(0, (2, 3)), expected, atol=1e-6)
    assert torch.equal(pools[-1].x_0, judged[-1].unflatten(0, (2, 3)))


def test_before_the_end_the_judge_sees_the_clean_sample_predicted_at_the_candidate() -> None:
    sampler, denoise = make_sampler(), FakeDenoiser()
    pools, _ = roll(denoise=denoise)
    pool = pools[0]
    flat = candidates_of(pool, sampler).flatten(0, 1)
    expected = sampler.predict_x0(denoise.predictions[701], flat, torch.full((6,), 5))
    assert torch.equal(pool.x_0.flatten(0, 1), expected)


def test_scores_are_kept_prompt_by_prompt() -> None:
    pools, _ = roll()
    for pool in pools:
        assert torch.equal(pool.candidates.scores, pool.x_0.mean((2, 3, 4)))


@pytest.mark.parametrize(("rule", "index"), [("best", Tensor.argmax), ("worst", Tensor.argmin)])
def test_the_trajectory_can_follow_the_best_or_the_worst(rule: str, index: Callable[[Tensor, int], Tensor]) -> None:
    pools, _ = roll(continue_from=rule)
    for pool in pools:
        assert torch.equal(pool.continued_from, index(pool.candidates.scores, 1))


def test_random_continuations_are_uniform_whatever_the_scores() -> None:
    pools, _ = roll(400, 4, keys=tuple(range(400)))
    followed = torch.stack([pool.continued_from for pool in pools])
    ranks = [pool.candidates.scores.argsort(1).argsort(1) for pool in pools]
    by_rank = torch.stack([at(pool, rank, pool.continued_from) for pool, rank in zip(pools, ranks, strict=True)])
    for values in (followed, by_rank):
        counts = values.flatten().bincount(minlength=4).double()
        chi_squared = ((counts - 1600) ** 2 / 1600).sum()
        assert chi_squared < 16.3  # 3 degrees of freedom, p = .001


def test_random_continuations_differ_between_prompts() -> None:
    pools, _ = roll(8, 4, keys=tuple(range(8)))
    assert len({tuple(column) for column in torch.stack([pool.continued_from for pool in pools]).T.tolist()}) == 8


@pytest.mark.parametrize(
    ("timestep_range", "parents", "num_samples"),
    [((0, 250), list(range(251, 0, -50)), 15 + 5 * 3), ((500, 750), list(range(751, 500, -50)), 5 + 6 * 3 + 9)],
)
def test_branching_can_be_limited_to_a_range(
    timestep_range: tuple[int, int], parents: list[int], num_samples: int
) -> None:
    denoise = FakeDenoiser()
    pools, _ = roll(1, 3, denoise=denoise, timestep_range=timestep_range)
    assert [ALL_TIMESTEPS[int(pool.candidates.step)] for pool in pools] == parents
    assert denoise.num_samples == num_samples


def test_a_last_step_without_noise_is_not_branched() -> None:
    denoise, judge = FakeDenoiser(), FakeJudge()
    pools, end = roll(1, 3, denoise=denoise, judge=judge, sampler=make_sampler(final_alpha=1.0))
    assert [int(pool.candidates.step) for pool in pools] == list(range(4, 19))
    assert judge.calls[-1] == (1, 3)
    assert denoise.num_samples == 5 + 15 * 3
    x_0 = at(pools[-1], pools[-1].x_0, pools[-1].continued_from)
    assert torch.allclose(end, x_0)


# Random numbers


def test_a_prompts_noise_and_choices_do_not_depend_on_its_company() -> None:
    together, _ = roll(4, 3, keys=(7, 8, 9, 10))
    alone, _ = roll(1, 3, keys=(9,))
    for full, single in zip(together, alone, strict=True):
        assert torch.equal(full.candidates.noise[2:3], single.candidates.noise)
        assert torch.equal(full.continued_from[2:3], single.continued_from)


def test_a_prompts_comparisons_do_not_depend_on_its_company(tiny_sd: BaseModel) -> None:
    policy = copied_policy(tiny_sd, trained=True)
    prompts = ["a cat", "a dog", "two boats"]

    def pools_of(rows: list[int]) -> list[Pool]:
        return rollout(
            policy.denoiser("policy"),
            make_sampler(),
            FakeJudge(),
            cond=tiny_sd.encode([prompts[row] for row in rows]),
            prompts=[prompts[row] for row in rows],
            latent_shape=tiny_sd.latent_shape,
            noise=noise_of(*rows),
            branching=Branching(num_candidates=2),
        )[0]

    for full, single in zip(pools_of([0, 1, 2]), pools_of([1]), strict=True):
        assert torch.equal(full.candidates.noise[1:2], single.candidates.noise)
        assert torch.equal(full.candidates.scores[1:2].argmax(1), single.candidates.scores.argmax(1))
        assert torch.allclose(full.candidates.x_t[1:2], single.candidates.x_t, atol=1e-4)


def test_plain_samples_are_what_a_rollout_without_pools_ends_in() -> None:
    pools, end = roll(timestep_range=(2000, 3000))
    plain = sample(
        FakeDenoiser(), make_sampler(), cond=encode(["a", "bb"]), latent_shape=LATENT_SHAPE, noise=noise_of(0, 1)
    )
    assert pools == []
    assert torch.equal(end, plain)


# Refusals


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    def score(x_0: Tensor) -> Tensor:
        return torch.tensor([bad, 1.0]).repeat(len(x_0) // 2)

    with pytest.raises(ValueError, match=r"the judge's scores at timestep 701: 2 of 4 are not finite numbers"):
        roll(2, 2, judge=FakeJudge(score))


@pytest.mark.parametrize("k", [1, 0, -1])
def test_fewer_than_two_candidates_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"num_candidates must be at least 2 to compare, got {k}"):
        Branching(num_candidates=k)
