"""Looking ahead: noise at a window's first step alone, the ODE from there, and the verdict for that first step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from branches import (
    JUDGED_AT,
    PARENTS,
    TIMES,
    B,
    CountingDenoiser,
    K,
    began_at,
    clean,
    ended_at,
    judged_at,
    landed,
    noise_of,
    predicted,
    roll,
    survivors,
    windows,
)
from conftest import normal, stable_diffusion_schedule
from torch import Tensor
from worlds import LATENT_SHAPE, BrightnessJudge, assert_same, make_sampler

from stepalign.core.sampler import DDIM
from stepalign.judges.image import ImageJudge
from stepalign.miniature.base import make_scheduler
from stepalign.sources.rollout import Pool
from stepalign.sources.settings import Branching


def looked_ahead(pool: Pool, *, final_alpha: float | None = None) -> Tensor:
    """The branches where the ODE, DDIM with eta = 0, has brought them from their first step."""
    sampler, ode = (make_sampler(final_alpha=final_alpha, eta=eta) for eta in (1.0, 0.0))
    x_t = landed(pool.candidates, sampler)
    for step in range(int(pool.candidates.step[0]) + 1, pool.judged_at):
        flat = torch.full((B * K,), step)
        x_t = ode.transition(predicted(x_t, TIMES[step]).flatten(0, 1), x_t.flatten(0, 1), flat).mean.unflatten(
            0, (B, K)
        )
    return x_t


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_deterministic_step_is_that_of_diffusers_with_eta_0(prediction_type: str, set_alpha_to_one: bool) -> None:
    """To 1e-11 in float64 at every step of the grid, whatever our sampler's own eta."""
    config = {"prediction_type": prediction_type, "set_alpha_to_one": set_alpha_to_one}
    sampler, scheduler = DDIM(stable_diffusion_schedule(**config), eta=1.0), make_scheduler()
    scheduler.register_to_config(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.ones(()).double() if set_alpha_to_one else scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(20)
    prediction, x_t = normal(20, 3, 4, 4), normal(20, 3, 4, 4, seed=1)
    steps = zip(prediction, sampler.times[:-1], x_t, strict=True)
    expected = torch.stack([scheduler.step(guess, t, x, eta=0.0).prev_sample for guess, t, x in steps])
    taken = sampler.with_eta(0.0).transition(prediction, x_t, torch.arange(20)).mean
    torch.testing.assert_close(taken, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
@pytest.mark.parametrize("j", JUDGED_AT)
def test_the_judge_sees_where_the_ode_leads_each_candidate_and_its_scores_are_the_first_steps(
    j: int, resume_at: str
) -> None:
    pools, _ = roll(num_inner_steps=(j,), inner_steps="look-ahead", resume_at=resume_at)
    for pool in pools:
        (step,) = pool.transitions
        t = began_at(step)
        assert step.x_t.shape[1] == 1
        assert ended_at([pool]) == [max(t - 50 * j, 0)]
        assert_same(step.prediction, predicted(step.x_t, t))
        close(pool.x_0, clean(looked_ahead(pool), ended_at([pool])[0]))
        close(step.scores, 10 * pool.x_0.mean((2, 3, 4)))


@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
@pytest.mark.parametrize("j", JUDGED_AT)
def test_a_window_draws_k_noises_and_one_choice_however_far_it_looks(j: int, resume_at: str) -> None:
    noise, (pools, _) = noise_of(0, 1), roll(num_inner_steps=(j,), inner_steps="look-ahead", resume_at=resume_at)
    for shape in (LATENT_SHAPE, *[(1, *LATENT_SHAPE)] * 4):  # x_T and the four plain steps
        noise.normal(*shape)
    for pool in pools:
        assert_same(pool.candidates.noise, noise.normal(K, *LATENT_SHAPE))
        assert_same(pool.continued_from, noise.choice(K))


# Where the trajectory goes on


@pytest.mark.parametrize("j", JUDGED_AT)
def test_from_the_windows_end_it_goes_on_where_the_ode_led_the_followed_candidate(j: int) -> None:
    denoise = CountingDenoiser()
    pools, end = roll(denoise=denoise, num_inner_steps=(j,), inner_steps="look-ahead")
    for pool, following in pairwise(pools):
        assert int(following.candidates.step[0]) == pool.judged_at
        close(following.candidates.x_t[:, 0], survivors(pool, looked_ahead(pool)))
    close(end, survivors(pools[-1], looked_ahead(pools[-1])))
    assert denoise.calls == [(t, B) for t in range(951, 750, -50)] + [(t, B * K) for t in range(701, 0, -50)]


@pytest.mark.parametrize("j", [*JUDGED_AT, 99])
def test_from_the_next_step_it_goes_on_with_the_followed_candidate_whose_prediction_it_has(j: int) -> None:
    """Every window predicts what lies ahead of its candidates, k each; the parent below 751 is predicted already."""
    denoise, judge = CountingDenoiser(), BrightnessJudge()
    pools, end = roll(
        denoise=denoise, judge=judge, num_inner_steps=(j,), inner_steps="look-ahead", resume_at="next-step"
    )
    assert windows(pools) == [[t] for t in PARENTS]
    for pool, following in pairwise(pools):
        assert_same(following.candidates.x_t[:, 0], survivors(pool, landed(pool.candidates)))
        resumed = following.candidates
        assert_same(resumed.prediction, predicted(resumed.x_t, began_at(resumed)))
    assert_same(end, survivors(pools[-1], landed(pools[-1].candidates)))
    ahead = [(at, B * K) for t in PARENTS for at in range(t - 50, max(t - 50 * j - 1, 0), -50)]
    assert denoise.calls == [(t, B) for t in range(951, 750, -50)] + ahead
    assert len(judge.seen) == 16 * B * K


def test_progress_from_the_next_step_on_counts_every_step_once() -> None:
    done: list[None] = []
    branching = {"num_inner_steps": (4,), "inner_steps": "look-ahead", "resume_at": "next-step"}
    roll(**branching, on_step=lambda: done.append(None))
    assert len(done) == 20


# To the end


class Brightness:
    """A scorer of clean images."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3))


def decode(x_0: Tensor) -> Tensor:
    """An image without colours: the mean of the latent's channels."""
    return x_0.mean(1, keepdim=True).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
@pytest.mark.parametrize("timestep_range", [(0, 750), (500, 750)])
@pytest.mark.parametrize("final_alpha", [None, 1.0])
def test_a_look_ahead_to_the_end_shows_a_scorer_of_clean_images_finished_samples(
    resume_at: str, timestep_range: tuple[int, int], final_alpha: float | None
) -> None:
    """Unlike a path, what lies ahead may have no noise, or lie below the steps that branch."""
    judge, sampler = ImageJudge(Brightness(), decode), make_sampler(final_alpha=final_alpha)
    branching = {"inner_steps": "look-ahead", "resume_at": resume_at, "timestep_range": timestep_range}
    pools, end = roll(judge=judge, sampler=sampler, num_inner_steps=(99,), **branching)
    parents = [t for t in PARENTS if t - 1 >= timestep_range[0] and (t > 1 or final_alpha is None)]
    assert windows(pools) == [[t] for t in (parents if resume_at == "next-step" else parents[:1])]
    for pool in pools:
        finished = looked_ahead(pool, final_alpha=final_alpha)
        assert ended_at([pool]) == [0]
        close(pool.x_0, finished)
        images = decode(finished.flatten(0, 1)) / 2 + 0.5
        close(pool.candidates.scores.flatten(), images.clamp(0, 1).mean((1, 2, 3)))
    if resume_at == "window-end":
        close(end, survivors(pools[0], pools[0].x_0))


def test_the_judge_is_told_that_finished_samples_are_finished() -> None:
    judge = BrightnessJudge()
    roll(judge=judge, num_inner_steps=(99,), inner_steps="look-ahead", resume_at="next-step")
    assert judged_at(judge) == [0] * 16


@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
def test_the_length_can_fall_with_the_noise(resume_at: str) -> None:
    """4 1 with the bound 400: four steps ahead above t = 400, one from there on; at the end what is left."""
    branching = {"inner_steps": "look-ahead", "resume_at": resume_at}
    pools, _ = roll(num_inner_steps=(4, 1), inner_step_bounds=(400,), **branching)
    if resume_at == "window-end":
        assert ended_at(pools) == [551, 351, *range(301, 0, -50), 0]
    else:
        assert ended_at(pools) == [*range(551, 200, -50), *range(301, 0, -50), 0]


# Refusals


@pytest.mark.parametrize(
    ("field", "branching"),
    [
        ("num_inner_steps", {"num_inner_steps": ()}),
        ("num_inner_steps", {"num_inner_steps": (0,)}),
        ("num_inner_steps", {"num_inner_steps": (4, -1), "inner_step_bounds": (400,)}),
        ("inner_step_bounds", {"num_inner_steps": (4, 1)}),
        ("inner_step_bounds", {"inner_step_bounds": (400,)}),
        ("inner_step_bounds", {"num_inner_steps": (4, 2, 1), "inner_step_bounds": (200, 400)}),
        ("inner_step_bounds", {"num_inner_steps": (4, 2, 1), "inner_step_bounds": (400, 400)}),
        ("resume_at", {"num_inner_steps": (2,), "resume_at": "next-step"}),
        ("resume_at", {"num_inner_steps": (1, 2), "inner_step_bounds": (400,), "resume_at": "next-step"}),
    ],
)
def test_windows_that_make_no_sense_are_refused(field: str, branching: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^branching\.{field} must be "):
        Branching(**branching)
