"""DDIM as a sequence of Gaussians: its table, diffusers' scheduler and torch's densities as oracles, round trips."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import normal, rounds_to, stable_diffusion_schedule, steps_at
from torch import Tensor
from torch.distributions import Normal

from stepalign.core.protocols import Sampler, Transition
from stepalign.core.sampler import DDIM, GaussianStep, NoiseSchedule
from stepalign.core.sampling import times_at
from stepalign.miniature.base import make_scheduler
from stepalign.objectives.settings import SPO
from stepalign.objectives.stepwise import guidance_step, target_weight

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
SHAPE = (3, 4, 4)


def ddim(num_steps: int = 20, *, eta: float = 1.0, **schedule: object) -> DDIM:
    return DDIM(stable_diffusion_schedule(num_steps, **schedule), eta=eta)


def every_step(sampler: DDIM) -> Tensor:
    return torch.arange(sampler.num_steps)


@pytest.mark.parametrize(
    ("t", "sigma", "a", "b"),
    [
        (751, ".558", ".256", "1.44"),
        (501, ".429", ".196", "1.88"),
        (251, ".284", ".240", "2.52"),
        (101, ".167", ".651", "2.68"),
        (51, ".041", "14.75", ".828"),
        (1, ".021", ".503", "24.1"),
    ],
)
def test_sigma_a_and_b_are_those_of_the_table(sampler: DDIM, t: int, sigma: str, a: str, b: str) -> None:
    """Stable Diffusion's schedule, 20 steps, eta 1. The guidance step is B(t) sqrt(1 - abar_t)."""
    at = steps_at(t)
    assert rounds_to(sampler.std(at).item(), sigma)
    assert rounds_to(target_weight("spo", sampler, at).item(), a)
    assert rounds_to((guidance_step(SPO, sampler, at) / sampler.scales(at)[1]).item(), b)


def test_a_and_b_equal_their_closed_forms(sampler: DDIM) -> None:
    """With alpha = abar_t / abar_p, at eta = 1 (GradSPO eqs. 30-32):

    A = (1 - alpha) / (2 alpha (1 - abar_p)),   B = sqrt(alpha (1 - abar_p) / ((1 - alpha) (1 - abar_t))).
    """
    step = every_step(sampler)
    abar = sampler.scales(step)[0] ** 2
    abar_p = torch.cat([abar[1:], sampler.schedule.alpha_bar(torch.tensor([0]))])
    alpha = abar / abar_p
    a = (1 - alpha) / (2 * alpha * (1 - abar_p))
    b = (alpha * (1 - abar_p) / ((1 - alpha) * (1 - abar))).sqrt()
    torch.testing.assert_close(target_weight("spo", sampler, step), a, rtol=1e-9, atol=0)
    torch.testing.assert_close(guidance_step(SPO, sampler, step) / (1 - abar).sqrt(), b, rtol=1e-9, atol=0)


def test_the_times_fall_by_fifty_from_951_to_1_and_samples_are_finished_at_zero(sampler: DDIM) -> None:
    assert sampler.num_steps == 20
    assert sampler.times == (*range(951, 0, -50), 0)


def test_the_time_of_a_step_is_the_integer_timestep_that_the_network_takes(sampler: DDIM) -> None:
    times = times_at(sampler, torch.tensor([0, 19, 20, 4]))
    assert times.tolist() == [951, 1, 0, 751]
    assert times.dtype == torch.int64


def test_the_sampler_and_its_steps_keep_to_their_protocols(sampler: DDIM) -> None:
    assert isinstance(sampler, Sampler)
    assert isinstance(GaussianStep(normal(1, *SHAPE), torch.ones(1)), Transition)


def diffusers_steps(prediction: Tensor, x_t: Tensor, noise: Tensor, *, num_steps: int, eta: float, **config: object):
    """diffusers' mean and sample of every step of its grid, with its own tables in float64."""
    scheduler = make_scheduler()
    scheduler.register_to_config(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = (
        torch.tensor(1.0).double() if config["set_alpha_to_one"] else scheduler.alphas_cumprod[0]
    )
    scheduler.set_timesteps(num_steps)
    means, samples = [], []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        for rows, z in ((means, torch.zeros_like(noise[i])), (samples, noise[i])):
            step = scheduler.step(
                prediction[i], t, x_t[i], eta=eta, use_clipped_model_output=False, variance_noise=z, return_dict=True
            )
            rows.append(step.prev_sample)
    return scheduler.timesteps.tolist(), torch.stack(means), torch.stack(samples)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_step_is_diffusers_step(prediction_type: str, num_steps: int, eta: float, set_alpha_to_one: bool) -> None:
    """Mean and sample agree to 1e-11 in float64 at every step of the grid; diffusers computes eps from x0 and back."""
    config = {"prediction_type": prediction_type, "set_alpha_to_one": set_alpha_to_one}
    sampler = ddim(num_steps, eta=eta, **config)
    prediction, x_t, noise = (normal(num_steps, *SHAPE, seed=i) for i in range(3))
    timesteps, mean, sample = diffusers_steps(prediction, x_t, noise, num_steps=num_steps, eta=eta, **config)

    step = sampler.transition(prediction, x_t, every_step(sampler))

    assert list(sampler.times) == [*timesteps, 0]
    torch.testing.assert_close(step.mean, mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(step.sample(noise[:, None])[:, 0], sample, rtol=1e-11, atol=1e-11)


def test_in_float32_a_step_is_within_rounding_of_its_float64_self(sampler: DDIM) -> None:
    prediction, x_t = normal(20, *SHAPE), normal(20, *SHAPE, seed=1)
    exact = sampler.transition(prediction, x_t, every_step(sampler))
    single = sampler.transition(prediction.float(), x_t.float(), every_step(sampler))
    assert single.mean.dtype == single.std.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.std.double(), exact.std, rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_log_density_is_that_of_torch_distributions(eta: float) -> None:
    """Per latent entry, at all stochastic steps and for three candidates each, to 1e-12 in float64."""
    sampler = ddim(eta=eta)
    step = sampler.transition(normal(20, *SHAPE), normal(20, *SHAPE, seed=1), every_step(sampler))
    x_prev = step.sample(1.5 * normal(20, 3, *SHAPE, seed=2)) + 0.01
    oracle = Normal(step.mean[:, None], step.std[:, None, None, None, None]).log_prob(x_prev).mean((2, 3, 4))
    torch.testing.assert_close(step.mean_log_prob(x_prev), oracle, rtol=1e-12, atol=1e-12)


def test_a_sample_is_mean_plus_std_times_noise() -> None:
    """Two parents, two ways each: 1 + 2·(.5, -1) = (2, -1) and -1 + .5·(.5, -1) = (-.75, -1.5)."""
    step = GaussianStep(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), torch.tensor([2.0, 0.5]))
    noise = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1, 1).expand(2, -1, -1, -1, -1)
    assert step.sample(noise).flatten(1).tolist() == [[2.0, -1.0], [-0.75, -1.5]]


def prediction_of(prediction_type: str, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a perfect model of the given kind predicts; v = sqrt(abar) eps - sqrt(1 - abar) x_0."""
    abar = schedule.alpha_bar(t)[:, None, None, None]
    return {"epsilon": eps, "sample": x_0, "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * x_0}[prediction_type]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_gives_back_clean_sample_and_noise_at_any_timestep(prediction_type: str) -> None:
    schedule = stable_diffusion_schedule(prediction_type=prediction_type)
    t = torch.tensor([0, 1, 2, 333, 701, 998, 999])
    x_0, eps = normal(7, *SHAPE), normal(7, *SHAPE, seed=1)
    x_t = schedule.add_noise(x_0, eps, t)
    prediction = prediction_of(prediction_type, schedule, x_0, eps, t)
    torch.testing.assert_close(schedule.predict_x0(prediction, x_t, t), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.predict_eps(prediction, x_t, t), eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_step_begins_at_the_noise_level_of_its_timestep(prediction_type: str) -> None:
    sampler = ddim(prediction_type=prediction_type)
    step, t, x, y = (
        every_step(sampler),
        torch.tensor(sampler.times[:-1]),
        normal(20, *SHAPE),
        normal(20, *SHAPE, seed=1),
    )
    alpha, sigma = sampler.scales(step)
    torch.testing.assert_close(alpha, sampler.schedule.alpha_bar(t).sqrt(), rtol=0, atol=0)
    torch.testing.assert_close(sampler.snr(step), (alpha / sigma) ** 2, rtol=1e-12, atol=0)
    for name in ("add_noise", "predict_x0", "predict_eps"):
        assert torch.equal(getattr(sampler, name)(x, y, step), getattr(sampler.schedule, name)(x, y, t))


def test_noise_is_added_by_the_cumulative_alpha(sampler: DDIM) -> None:
    """At t = 501 abar = .275 of the scheduler, so 2 x_0 and 1 of noise make 2 sqrt(abar) + sqrt(1 - abar)."""
    abar = float(make_scheduler().alphas_cumprod[501])
    x_t = sampler.add_noise(torch.full((1, 1, 1, 1), 2.0).double(), torch.ones(1, 1, 1, 1).double(), steps_at(501))
    assert x_t.item() == pytest.approx(2 * abar**0.5 + (1 - abar) ** 0.5, abs=1e-12)


def test_the_cumulative_alphas_are_the_schedulers_in_float64(sampler: DDIM) -> None:
    alpha_bar = sampler.schedule.alpha_bar(torch.arange(1000))
    assert alpha_bar.dtype == torch.float64
    torch.testing.assert_close(alpha_bar, make_scheduler().alphas_cumprod.double(), rtol=0, atol=0)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_the_noise_response_is_how_the_mean_falls_with_the_noise(eta: float) -> None:
    """c_t = -d mean / d eps: one latent entry per step, so the gradient of the sum of means is each entry's own."""
    sampler = ddim(eta=eta)
    eps = normal(20, 1, 1, 1).requires_grad_()
    sampler.transition(eps, normal(20, 1, 1, 1, seed=1), every_step(sampler)).mean.sum().backward()
    torch.testing.assert_close(sampler.noise_response(every_step(sampler)), -eps.grad.flatten(), rtol=1e-9, atol=1e-12)


def test_with_eta_one_the_noise_response_over_sigma_depends_on_noise_to_signal_alone(sampler: DDIM) -> None:
    """c/sigma = sqrt(h_t² / h_p² - 1) with h = sqrt((1 - abar) / abar): method.md section 3."""
    step = every_step(sampler)
    abar = sampler.schedule.alpha_bar(torch.tensor(sampler.times))
    h = ((1 - abar) / abar).sqrt()
    ratio = sampler.noise_response(step) / sampler.std(step)
    torch.testing.assert_close(ratio, (h[:-1] ** 2 / h[1:] ** 2 - 1).sqrt(), rtol=1e-9, atol=0)


def test_every_step_of_stable_diffusion_has_noise(sampler: DDIM) -> None:
    assert (sampler.std(every_step(sampler)) > 0).all()


def test_the_last_step_into_a_clean_sample_has_no_noise() -> None:
    sampler = ddim(set_alpha_to_one=True)
    assert (sampler.std(every_step(sampler)) == 0).nonzero().tolist() == [[19]]


def test_without_eta_no_step_has_noise() -> None:
    sampler = ddim(eta=0.0)
    assert not sampler.std(every_step(sampler)).any()


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_beyond_its_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        ddim(eta=eta)


@pytest.mark.parametrize("wrong", [20, 751, -1])
def test_a_step_that_the_sampler_does_not_have_is_refused(sampler: DDIM, wrong: int) -> None:
    x = normal(2, *SHAPE)
    of_latents = (sampler.transition, sampler.predict_x0, sampler.predict_eps, sampler.add_noise)
    for ask in (sampler.std, sampler.noise_response, sampler.scales, *(partial(ask, x, x) for ask in of_latents)):
        with pytest.raises(ValueError, match=f"step = {wrong} is none of the sampler's steps, 0 to 19"):
            ask(torch.tensor([4, wrong]))


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_a_timestep_beyond_the_schedule_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="t must be between 0 and 999"):
        stable_diffusion_schedule().alpha_bar(torch.tensor([1, wrong]))


def test_samples_of_one_batch_may_be_at_different_steps(sampler: DDIM) -> None:
    """To rounding in float64: kernels over other shapes may round otherwise."""
    x, prediction, step = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), steps_at(751, 51)
    both = sampler.transition(prediction, x, step)
    for i in range(2):
        alone = sampler.transition(prediction[i : i + 1], x[i : i + 1], step[i : i + 1])
        torch.testing.assert_close(both.mean[i], alone.mean[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(both.std[i], alone.std[0], rtol=0, atol=1e-14)
