"""Where the stepwise losses stop pulling, what they call, what they report and what they refuse."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import (
    GRID,
    LATENT,
    STEPS,
    ToyPolicy,
    comparisons,
    evaluate,
    normal,
    stable_diffusion_schedule,
    steps_at,
    toy_predictions,
)
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Role
from stepalign.core.sampler import DDIM
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.objectives.stepwise import stepwise_loss, target_weight

WEIGHTINGS = ["spo", "gradspo", "min-snr", "p2"]
REGIONS = ["clamp", "rms", None]
FAMILY = [Stepwise(weighting=weighting, trust_region=region) for weighting in WEIGHTINGS for region in REGIONS]


def name_of(objective: Stepwise) -> str:
    return f"{objective.weighting}-{objective.trust_region}"


@pytest.fixture(params=FAMILY, ids=name_of)
def objective(request: pytest.FixtureRequest) -> Stepwise:
    return request.param


def at_distance(rms: Tensor) -> tuple[StepComparisons, dict[str, Tensor]]:
    """Comparisons with eps_theta - eps_ref = rms everywhere, a base that tracks eps_theta and noises of mean zero.

    Then mean[delta ⊙ z] = 0 and q = -rms², so that both log ratios are a_t rms².
    """
    signs = torch.tensor([1.0, -1.0]).double().repeat(8).view(1, 1, 1, 4, 4)
    noise = torch.cat([signs, -signs], 1).expand(len(rms), -1, -1, -1, -1)
    policy = normal(len(rms), 1, 4, 4, seed=4)
    roles = {"policy": policy.clone().requires_grad_(), "reference": policy - rms.view(-1, 1, 1, 1), "ema": policy}
    return comparisons(noise=noise, prediction=policy), roles


def gradient_at(objective: Stepwise, sampler: DDIM, rms: Tensor) -> tuple[Tensor, Tensor]:
    """The largest gradient per comparison, and which of them the objective calls outside."""
    batch, roles = at_distance(rms)
    losses, metrics = evaluate(objective, sampler, batch, **roles)
    return torch.autograd.grad(losses.sum(), roles["policy"])[0].abs().amax((1, 2, 3)), metrics["outside"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("noise", ["max-min", "separate"])
def test_the_clamp_lets_go_where_rms_delta_passes_its_radius(sampler: DDIM, weighting: str, noise: str) -> None:
    """a_t rms² = ln 1.1 at rms = sqrt(ln 1.1 / a_t): no gradient at all 1 % beyond it, some 1 % within."""
    objective = Stepwise(weighting=weighting, trust_region="clamp", noise=noise)
    radius = (math.log(1.1) / target_weight(weighting, sampler, STEPS)).sqrt()
    beyond, outside = gradient_at(objective, sampler, 1.01 * radius)
    within, inside = gradient_at(objective, sampler, 0.99 * radius)
    assert (beyond == 0).all()
    assert (within > 0).all()
    assert outside.all()
    assert not inside.any()


def test_the_clamp_knows_in_float32_too_what_lies_outside(sampler: DDIM) -> None:
    batch, roles = at_distance(torch.full((20,), 0.31))
    batch = batch.map(lambda value: value.float() if value.is_floating_point() else value)
    _, metrics = evaluate(GRADSPO, sampler, batch, **{role: value.float() for role, value in roles.items()})
    assert metrics["outside"].tolist() == [1.0] * 20


def test_the_clamps_radius_for_gradspo_is_309_at_every_timestep(sampler: DDIM) -> None:
    assert (gradient_at(GRADSPO, sampler, torch.full((20,), 0.309))[0] == 0).all()
    assert (gradient_at(GRADSPO, sampler, torch.full((20,), 0.308))[0] > 0).all()


def test_the_clamps_radius_for_spo_is_080_at_51_and_no_less_than_38_elsewhere_but_701_at_most(sampler: DDIM) -> None:
    """method.md section 3: .080 at t = 51, .38 to .70 elsewhere."""
    radius = torch.where(GRID == 51, 0.081, 0.702)
    assert (gradient_at(SPO, sampler, radius)[0] == 0).all()
    assert (gradient_at(SPO, sampler, torch.where(GRID == 51, 0.080, 0.38))[0] > 0).all()


def test_a_ratio_inside_still_pulls_when_the_other_is_clamped(sampler: DDIM) -> None:
    """q = 0, ln r⁺ = -2 · .2 · g z⁺ far below ln .9, ln r⁻ = 0: the gradient is that of the losing side alone."""
    one = torch.ones(1, 1, 1, 1).double()
    batch = comparisons(steps_at(501), noise=torch.cat([3 * one, 0 * one]).view(1, 2, 1, 1, 1))
    policy = (0.2 * one).requires_grad_()
    losses, metrics = evaluate(
        replace(GRADSPO, noise="separate"), sampler, batch, policy=policy, reference=0 * one, ema=0.1 * one
    )
    losses.sum().backward()
    margin = 10 * math.log(0.9)
    assert metrics["margin"].item() == pytest.approx(margin, abs=1e-9)
    assert metrics["outside"].item() == 0
    # dL/d margin = -sigmoid(-margin); d margin/d eps = -10 · d ln r⁻/d eps = 10 · 2 (eps - base) = 10 · 2 · .1
    assert policy.grad.item() == pytest.approx(-2 / (1 + math.exp(margin)), abs=1e-9)


def test_rms_keeps_the_loss_and_drops_the_gradient_outside_its_radius_only(sampler: DDIM) -> None:
    """Every other comparison lies outside; inside, the gradient is that of the loss without a region."""
    rms = torch.where(torch.arange(20) % 2 == 0, 0.31, 0.308)
    batch, roles = at_distance(rms)
    batch = replace(batch, noise=normal(20, 2, 1, 4, 4, seed=8))
    losses, metrics = evaluate(Stepwise(trust_region="rms"), sampler, batch, **roles)
    free, _ = evaluate(Stepwise(trust_region=None), sampler, batch, **roles)
    held, pulled = (torch.autograd.grad(each.sum(), roles["policy"])[0] for each in (losses, free))
    torch.testing.assert_close(losses, free, rtol=0, atol=0)
    assert metrics["outside"].tolist() == [1.0, 0.0] * 10
    assert (held[::2] == 0).all()
    assert (pulled != 0).all()
    torch.testing.assert_close(held[1::2], pulled[1::2], rtol=0, atol=0)


def test_the_radius_of_rms_is_its_own(sampler: DDIM) -> None:
    _, outside = gradient_at(Stepwise(trust_region="rms", radius=0.05), sampler, torch.linspace(0.031, 0.069, 20))
    assert outside.tolist() == [0.0] * 10 + [1.0] * 10


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_without_a_region_no_distance_blocks(sampler: DDIM, weighting: str) -> None:
    pull, _ = gradient_at(Stepwise(weighting=weighting, trust_region=None), sampler, torch.full((20,), 5.0))
    assert (pull > 0).all()


def test_each_parent_is_predicted_once_per_role_and_by_the_average_for_gradspos_clamp_alone(
    sampler: DDIM, objective: Stepwise
) -> None:
    policy = ToyPolicy(**toy_predictions())
    stepwise_loss(objective, policy, sampler, comparisons())
    expected = {"policy": 20, "reference": 20}
    if objective.trust_region == "clamp" and objective.weighting != "spo":
        expected["ema"] = 20
    assert policy.calls == Counter(expected)


class ScaledPolicy:
    """A policy with one trainable number per role: role -> number · prediction."""

    def __init__(self, **predictions: Tensor) -> None:
        self.predictions = predictions
        self.numbers = {role: torch.ones((), dtype=torch.float64, requires_grad=True) for role in predictions}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        return self.numbers[role] * self.predictions[role]


def test_gradients_reach_the_policy_alone(sampler: DDIM, objective: Stepwise) -> None:
    policy = ScaledPolicy(**{role: value.detach() for role, value in toy_predictions(distance=0.01).items()})
    losses, _ = stepwise_loss(objective, policy, sampler, comparisons(prediction=policy.predictions["ema"]))
    losses.sum().backward()
    assert policy.numbers["policy"].grad != 0
    assert policy.numbers["reference"].grad is None
    assert policy.numbers["ema"].grad is None


def test_a_small_step_against_the_gradient_prefers_the_better_candidate(sampler: DDIM, objective: Stepwise) -> None:
    """From eps_theta = eps_ref the winner's noise falls out of the prediction, and the margin turns positive."""
    same = normal(20, *LATENT, seed=4)
    batch, policy = comparisons(prediction=same), same.clone().requires_grad_()
    losses, _ = evaluate(objective, sampler, batch, policy=policy, reference=same, ema=same)
    losses.sum().backward()
    moved = same - 1e-3 * policy.grad
    _, metrics = evaluate(objective, sampler, batch, policy=moved, reference=same, ema=same)
    assert ((moved - same) * (batch.noise[:, 0] - batch.noise[:, 1])).mean((1, 2, 3)).max() < 0
    assert (metrics["accuracy"] == 1).all()


def test_metrics_are_detached_and_have_one_value_per_comparison(sampler: DDIM, objective: Stepwise) -> None:
    losses, metrics = evaluate(objective, sampler, comparisons(), **toy_predictions())
    assert losses.shape == (20,)
    assert losses.requires_grad
    by_timestep = metrics.pop("rms_delta_by_timestep")
    assert torch.equal(by_timestep.values, metrics["rms_delta"])
    assert torch.equal(by_timestep.by, GRID)
    assert set(metrics) == {"margin", "accuracy", "rms_delta", "outside"}
    assert all(value.shape == (20,) and not value.requires_grad for value in metrics.values())


def test_margin_accuracy_and_distance_are_what_they_say(sampler: DDIM, objective: Stepwise) -> None:
    roles = toy_predictions()
    losses, metrics = evaluate(objective, sampler, comparisons(), **roles)
    torch.testing.assert_close(losses.detach(), (1 + (-metrics["margin"]).exp()).log(), rtol=1e-12, atol=1e-12)
    assert metrics["accuracy"].tolist() == [(margin > 0) + (margin == 0) / 2 for margin in metrics["margin"].tolist()]
    rms = (roles["policy"] - roles["reference"]).detach().square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(metrics["rms_delta"], rms, rtol=1e-12, atol=0)


def test_a_loss_does_not_depend_on_the_comparisons_beside_it(sampler: DDIM, objective: Stepwise) -> None:
    batch, roles = comparisons(), toy_predictions()
    losses, _ = evaluate(objective, sampler, batch, **roles)
    few = {role: value[3:7] for role, value in roles.items()}
    torch.testing.assert_close(evaluate(objective, sampler, batch[3:7], **few)[0], losses[3:7], rtol=0, atol=1e-14)


def of_kind(prediction_type: str, eps: Tensor, batch: StepComparisons, sampler: DDIM) -> Tensor:
    """A noise prediction as the clean sample or the velocity that says the same."""
    alpha, sigma = (scale[:, None, None, None] for scale in sampler.scales(batch.step))
    x_0 = (batch.x_t[:, 0] - sigma * eps) / alpha
    return {"sample": x_0, "v_prediction": alpha * eps - sigma * x_0}[prediction_type]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_kind_of_prediction_does_not_change_the_loss(
    sampler: DDIM, objective: Stepwise, prediction_type: str
) -> None:
    roles, batch = toy_predictions(), comparisons()
    losses, _ = evaluate(objective, sampler, batch, **roles)
    other = DDIM(stable_diffusion_schedule(prediction_type=prediction_type))
    converted = {role: of_kind(prediction_type, eps, batch, sampler) for role, eps in roles.items()}
    taken = of_kind(prediction_type, batch.prediction[:, 0], batch, sampler)
    same, _ = evaluate(objective, other, replace(batch, prediction=taken[:, None]), **converted)
    torch.testing.assert_close(same, losses, rtol=1e-9, atol=1e-11)


def test_named_and_default_settings_are_those_of_the_specification() -> None:
    """method.md sections 3 and 5: beta 10, gamma .5, clip .1; recipes named after papers clamp, else rms with .309."""
    common = {"beta": 10.0, "gamma": 0.5, "clip": 0.1, "radius": 0.309}
    assert Stepwise(weighting="spo", trust_region="clamp", noise="separate", **common) == SPO
    assert Stepwise(weighting="gradspo", trust_region="clamp", noise="max-min", **common) == GRADSPO
    assert Stepwise() == Stepwise(weighting="gradspo", trust_region="rms", noise="max-min", **common)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("beta", "gamma", "radius", "clip") for value in (0.0, -1.0, math.nan, math.inf)),
        ("clip", 1.0),
        ("clip", 1.5),
    ],
)
def test_hyperparameters_beyond_their_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"objective.{field}"):
        Stepwise(**{field: value})
