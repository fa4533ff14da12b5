"""SPO and GradSPO as one family: hand-worked numbers, the published equations in full as oracles, the trust regions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import GRID, LATENT, STEPS, comparisons, evaluate, normal, rounds_to, steps_at, toy_predictions
from torch import Tensor
from torch.distributions import Normal

from stepalign.core.batch import StepComparisons
from stepalign.core.sampler import DDIM
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.objectives.stepwise import clamp_log_ratio, guidance_step, kappa, target_weight

WEIGHTINGS = ["spo", "gradspo", "min-snr", "p2"]
REGIONS = ["clamp", "rms", None]
NOISES = ["max-min", "separate"]


def gradient(losses: Tensor, policy: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), policy)[0]


def entry_mean(x: Tensor) -> Tensor:
    return x.mean((-3, -2, -1))


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("t", "expected"), [(751, ".72"), (501, ".626"), (451, ".62"), (101, "1.14"), (51, "5.43")])
def test_kappa_of_spo_is_that_of_the_table(sampler: DDIM, t: int, expected: str) -> None:
    assert rounds_to(kappa(SPO, sampler, steps_at(t)).item(), expected)


def test_kappa_of_spo_is_the_root_of_twice_a(sampler: DDIM) -> None:
    close(kappa(SPO, sampler, STEPS), (2 * target_weight("spo", sampler, STEPS)).sqrt())


@pytest.mark.parametrize(("t", "expected"), [(751, ".97"), (501, ".85"), (1, ".04")])
def test_kappa_of_gradspo_falls_from_one_to_nothing(sampler: DDIM, t: int, expected: str) -> None:
    assert rounds_to(kappa(GRADSPO, sampler, steps_at(t)).item(), expected)


def test_kappa_of_gradspo_is_proportional_to_gamma(sampler: DDIM) -> None:
    close(kappa(replace(GRADSPO, gamma=1.5), sampler, STEPS), 3 * kappa(GRADSPO, sampler, STEPS))


@pytest.mark.parametrize(("t", "snr", "min_snr", "p2"), [(501, 0.379, 1.0, 0.725), (51, 19.22, 0.2601, 0.04946)])
def test_min_snr_and_p2_weights_by_hand(sampler: DDIM, t: int, snr: float, min_snr: float, p2: float) -> None:
    """min(SNR, 5)/SNR: 1 below the cap; 5/19.22 = .2601 above. 1/(1 + SNR): 1/1.379 = .725, 1/20.22 = .04946."""
    at = steps_at(t)
    abar = sampler.schedule.alpha_bar(torch.tensor([t])).item()
    assert abar / (1 - abar) == pytest.approx(snr, rel=1e-3)
    assert target_weight("min-snr", sampler, at).item() == pytest.approx(min_snr, rel=1e-3)
    assert target_weight("p2", sampler, at).item() == pytest.approx(p2, rel=1e-3)


@pytest.mark.parametrize("weighting", ["min-snr", "p2"])
def test_kappa_of_a_weighted_gradspo_is_gradspos_times_the_weight(sampler: DDIM, weighting: str) -> None:
    weighted = replace(GRADSPO, weighting=weighting)
    noise = (1 - sampler.schedule.alpha_bar(GRID)).sqrt()
    close(kappa(weighted, sampler, STEPS), target_weight(weighting, sampler, STEPS) * noise)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("noise", NOISES)
def test_before_training_the_loss_is_log_two(sampler: DDIM, weighting: str, region: str | None, noise: str) -> None:
    same = normal(len(GRID), *LATENT, seed=4)
    batch = comparisons(prediction=same)
    objective = Stepwise(weighting=weighting, trust_region=region, noise=noise)
    losses, _ = evaluate(objective, sampler, batch, policy=same, reference=same, ema=same)
    close(losses, torch.full_like(losses, math.log(2)))


def test_the_hand_worked_loss_is_softplus_of_one_and_a_half(sampler: DDIM) -> None:
    """delta = .2, z⁺ = 1, z⁻ = -.5, beta = 10; gamma such that kappa = 2 gamma sqrt(1 - abar) = .5:

    softplus(10 · .5 · .2 · 1.5) = softplus(1.5) = 1.701.
    """
    step = steps_at(501)
    gamma = 0.25 / sampler.scales(step)[1].item()
    batch = comparisons(step, noise=torch.tensor([1.0, -0.5]).double().view(1, 2, 1, 1, 1))
    reference = torch.full((1, 1, 1, 1), 0.3).double()
    objective = Stepwise(weighting="gradspo", gamma=gamma, trust_region=None)
    losses, metrics = evaluate(objective, sampler, batch, policy=reference + 0.2, reference=reference)
    assert losses.item() == pytest.approx(1.701, abs=5e-4)
    assert metrics["margin"].item() == pytest.approx(-1.5, abs=1e-12)


def closed_form(weighting: str, sampler: DDIM, t: Tensor, gamma: float) -> Tensor:
    """kappa_t from the schedule alone, by method.md sections 1 and 3, at eta = 1."""
    abar = sampler.schedule.alpha_bar(t)
    snr = abar / (1 - abar)
    if weighting == "spo":
        abar_p = sampler.schedule.alpha_bar((t - 50).clamp_min(0))
        return (((1 - abar) / abar) / ((1 - abar_p) / abar_p) - 1).sqrt()
    a = {"gradspo": torch.ones_like(snr), "min-snr": 5 / snr.clamp_min(5), "p2": 1 - abar}[weighting]
    return 2 * gamma * a * (1 - abar).sqrt()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("noise", NOISES)
def test_unclipped_every_member_is_one_softplus_in_loss_and_gradient(sampler: DDIM, weighting: str, noise: str) -> None:
    """softplus(beta kappa mean[delta (z⁺ - z⁻)]), to 1e-12 in loss and gradient with respect to the prediction."""
    roles, batch = toy_predictions(), comparisons()
    objective = Stepwise(weighting=weighting, beta=7.0, gamma=0.4, trust_region=None, noise=noise)
    losses, _ = evaluate(objective, sampler, batch, **roles)

    factor = closed_form(weighting, sampler, GRID, 0.4)
    product = (roles["policy"] - roles["reference"]) * (batch.noise[:, 0] - batch.noise[:, 1])
    expected = torch.nn.functional.softplus(7.0 * factor * entry_mean(product))

    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        gradient(losses, roles["policy"]), gradient(expected, roles["policy"]), rtol=1e-9, atol=1e-12
    )


def log_ratios(objective: Stepwise, sampler: DDIM, batch: StepComparisons, roles: dict, base: Tensor) -> Tensor:
    """The published form, in full: ln r = -a mean[(eps_theta - T)² - (eps_ref - T)²], T = base - g sqrt(1 - abar) z."""
    z = batch.noise
    if objective.noise == "max-min":
        half = (z[:, 0] - z[:, 1]) / 2
        z = torch.stack([half, -half], 1)
    target = base[:, None] - guidance_step(objective, sampler, batch.step)[:, None, None, None, None] * z
    distance = (roles["policy"][:, None] - target) ** 2 - (roles["reference"][:, None] - target) ** 2
    return -target_weight(objective.weighting, sampler, batch.step)[:, None] * entry_mean(distance)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", [3, 6, 9])
def test_without_a_clip_the_targets_base_cancels(sampler: DDIM, weighting: str, noise: str, seed: int) -> None:
    """Whatever base the squared distances are taken from, loss and gradient are the objective's."""
    roles, batch = toy_predictions(), comparisons()
    objective = Stepwise(weighting=weighting, trust_region=None, noise=noise)
    losses, _ = evaluate(objective, sampler, batch, **roles)
    ratios = log_ratios(objective, sampler, batch, roles, 2 * normal(len(GRID), *LATENT, seed=seed))
    full = -torch.nn.functional.logsigmoid(objective.beta * (ratios[:, 0] - ratios[:, 1]))
    close(losses, full)
    close(gradient(losses, roles["policy"]), gradient(full, roles["policy"]))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("region", ["rms", None])
def test_without_a_clip_max_min_equals_separate_noise(sampler: DDIM, weighting: str, region: str | None) -> None:
    roles, batch = toy_predictions(), comparisons()
    objective = Stepwise(weighting=weighting, trust_region=region)
    losses, _ = evaluate(replace(objective, noise="max-min"), sampler, batch, **roles)
    separate, _ = evaluate(replace(objective, noise="separate"), sampler, batch, **roles)
    close(losses, separate)
    close(gradient(losses, roles["policy"]), gradient(separate, roles["policy"]))


def transition_log_ratios(sampler: DDIM, batch: StepComparisons, roles: dict[str, Tensor]) -> Tensor:
    """ln p_theta(x_prev) - ln p_ref(x_prev) per latent entry, x_prev as sampled, by torch.distributions."""
    x_t = batch.x_t[:, 0]
    x_prev = sampler.transition(batch.prediction[:, 0], x_t, batch.step).sample(batch.noise)

    def density(role: str) -> Tensor:
        step = sampler.transition(roles[role], x_t, batch.step)
        return entry_mean(Normal(step.mean[:, None], step.std[:, None, None, None, None]).log_prob(x_prev))

    return density("policy") - density("reference")


def test_unclipped_spos_margin_is_a_difference_of_transition_densities(sampler: DDIM) -> None:
    roles, batch = toy_predictions(), comparisons()
    _, metrics = evaluate(replace(SPO, trust_region=None), sampler, batch, **roles)
    ratios = transition_log_ratios(sampler, batch, roles).detach()
    torch.testing.assert_close(metrics["margin"] / 10, ratios[:, 0] - ratios[:, 1], rtol=1e-9, atol=1e-11)


def test_clamped_spo_clamps_the_ratio_of_transition_densities(sampler: DDIM) -> None:
    """Each exp(log ratio) to [.9, 1.1] by itself; of these forty, some are inside, some beyond either end."""
    batch = comparisons()
    roles = {
        "policy": batch.prediction[:, 0] + 0.4 * normal(len(GRID), *LATENT, seed=4),
        "reference": batch.prediction[:, 0] + 0.3 * normal(len(GRID), *LATENT, seed=5),
    }
    losses, _ = evaluate(SPO, sampler, batch, **roles)
    ratios = transition_log_ratios(sampler, batch, roles).exp()
    clamped = ratios.clamp(0.9, 1.1).log()
    assert all(part.sum() >= 5 for part in (ratios < 0.9, ratios > 1.1, clamped == ratios.log()))
    expected = (1 + (-10 * (clamped[:, 0] - clamped[:, 1])).exp()).log()
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("noise", NOISES)
def test_the_clamped_loss_is_that_of_the_clamped_full_form(sampler: DDIM, weighting: str, noise: str) -> None:
    """From the average's prediction, or for SPO from the one sampled with; loss and gradient."""
    roles, batch = toy_predictions(distance=0.3), comparisons()
    objective = Stepwise(weighting=weighting, trust_region="clamp", noise=noise)
    losses, _ = evaluate(objective, sampler, batch, **roles)
    base = batch.prediction[:, 0] if weighting == "spo" else roles["ema"]
    full = log_ratios(objective, sampler, batch, roles, base)
    ratios = full.clamp(math.log(0.9), math.log(1.1))
    assert 5 <= (ratios == full).sum() <= 35
    expected = -torch.nn.functional.logsigmoid(10 * (ratios[:, 0] - ratios[:, 1]))
    close(losses, expected)
    close(gradient(losses, roles["policy"]), gradient(expected, roles["policy"]))


def test_the_clamp_by_hand(sampler: DDIM) -> None:
    """One latent entry, g sqrt(1 - abar) = .5, base .1, eps_theta .2, eps_ref 0, z⁺ = .1, z⁻ = -.8, separate noise:

    q = .1² - .1² = 0;  ln r⁺ = -0 - 2 · .2 · .05 = -.02;  ln r⁻ = -0 - 2 · .2 · (-.4) = .16 > ln 1.1 = .0953;
    margin = 10 (-.02 - .0953) = -1.153.
    """
    step = steps_at(501)
    gamma = 0.5 / sampler.scales(step)[1].item()
    one = torch.ones(1, 1, 1, 1).double()
    batch = comparisons(step, noise=torch.tensor([0.1, -0.8]).double().view(1, 2, 1, 1, 1))
    objective = replace(GRADSPO, gamma=gamma, noise="separate")
    losses, metrics = evaluate(objective, sampler, batch, policy=0.2 * one, reference=0 * one, ema=0.1 * one)
    assert metrics["margin"].item() == pytest.approx(-1.153, abs=5e-4)
    assert losses.item() == pytest.approx(math.log1p(math.exp(1.1531)), abs=5e-4)


def test_clamping_stops_the_gradient_beyond_either_limit() -> None:
    """ln .9 = -.10536 and ln 1.1 = .09531."""
    ratio = torch.tensor([[-0.1054, -0.1053], [0.0953, 0.0954]], dtype=torch.float64, requires_grad=True)
    clamped = clamp_log_ratio(ratio, 0.1)
    clamped.sum().backward()
    assert clamped.flatten().tolist() == pytest.approx([math.log(0.9), -0.1053, 0.0953, math.log(1.1)], abs=1e-12)
    assert ratio.grad.tolist() == [[0, 1], [1, 0]]
