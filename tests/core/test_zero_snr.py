"""Noise schedules that end at a signal-to-noise ratio of zero."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import comparisons, evaluate, stable_diffusion_schedule, toy_predictions

from stepalign.core.sampler import DDIM, NoiseSchedule
from stepalign.objectives.settings import SPO, Stepwise

STEP = torch.tensor([0, 0, 2])


def zero_snr(prediction_type: str) -> NoiseSchedule:
    """Stable Diffusion's with a last cumulative alpha of 0, on a grid that begins there."""
    schedule = stable_diffusion_schedule(prediction_type="v_prediction")
    alphas = schedule.alphas_cumprod.clone()
    alphas[999] = 0.0
    return replace(schedule, alphas_cumprod=alphas, timesteps=(999, 751, 501, 251), prediction_type=prediction_type)


def test_an_epsilon_model_on_such_a_schedule_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"^noise schedule: .* timestep 999 \(zero terminal SNR, rescale_betas_zero_snr"
    ):
        zero_snr("epsilon")


def test_alphas_that_are_no_shares_are_refused() -> None:
    schedule = stable_diffusion_schedule()
    with pytest.raises(ValueError, match=r"^noise schedule: cumulative alphas lie between 0 and 1"):
        replace(schedule, alphas_cumprod=schedule.alphas_cumprod * math.nan)


def test_a_cosine_schedule_is_not_taken_for_one() -> None:
    steps = torch.linspace(0, 1, 1001, dtype=torch.float64)
    cosine = ((steps + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    betas = (1 - cosine[1:] / cosine[:-1]).clamp_max(0.999)
    replace(stable_diffusion_schedule(), alphas_cumprod=(1 - betas).cumprod(0))


@pytest.mark.parametrize("trust_region", [None, "clamp"])
def test_spos_margin_is_that_of_the_steps_densities_there_too(trust_region: str | None) -> None:
    """log pi_theta(x) - log pi_ref(x) of the better candidate less the worse's, whatever delta_eps = 0 · inf is."""
    sampler, batch, roles = DDIM(zero_snr("v_prediction")), comparisons(STEP), toy_predictions(len(STEP), distance=1e-3)
    objective = replace(SPO, trust_region=trust_region, clip=0.999 if trust_region is None else 0.9)
    losses, metrics = evaluate(objective, sampler, batch, **roles)
    step = sampler.transition(batch.prediction[:, 0], batch.x_t[:, 0], STEP)
    x_prev = step.sample(batch.noise)
    ratio = [
        sampler.transition(roles[role], batch.x_t[:, 0], STEP).mean_log_prob(x_prev) for role in ("policy", "reference")
    ]
    expected = objective.beta * ((ratio[0] - ratio[1])[:, 0] - (ratio[0] - ratio[1])[:, 1]).detach()
    torch.testing.assert_close(metrics["margin"], expected, rtol=1e-6, atol=1e-9)
    losses.sum().backward()
    assert roles["policy"].grad.isfinite().all()
    assert roles["policy"].grad[0].any()


@pytest.mark.parametrize("weighting", ["gradspo", "min-snr", "p2"])
def test_the_other_weightings_are_finite_there(weighting: str) -> None:
    """x_t is noise alone whatever is predicted: delta is 0, and nothing is learned from the step."""
    sampler, roles = DDIM(zero_snr("v_prediction")), toy_predictions(len(STEP))
    losses, _ = evaluate(Stepwise(weighting=weighting), sampler, comparisons(STEP), **roles)
    assert losses[:2].tolist() == pytest.approx([math.log(2)] * 2)
    assert losses.isfinite().all()
