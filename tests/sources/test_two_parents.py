"""Stepwise losses over two parents: each log-ratio at its own branch's point, by hand and against the densities."""

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
    evaluate,
    normal,
    random_conditioning,
    stable_diffusion_schedule,
    steps_at,
)
from torch import Tensor

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Role
from stepalign.core.sampler import DDIM
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.objectives.stepwise import guidance_step, stepwise_loss, target_weight

WEIGHTINGS = ["spo", "gradspo", "min-snr", "p2"]
REGIONS = ["clamp", "rms", None]
ROLES: tuple[Role, ...] = ("policy", "reference", "ema")
NAMES = ("margin", "accuracy", "rms_delta", "outside")
FAMILY = [Stepwise(weighting=weighting, trust_region=region) for weighting in WEIGHTINGS for region in REGIONS]


@pytest.fixture(params=FAMILY, ids=lambda each: f"{each.weighting}-{each.trust_region}")
def objective(request: pytest.FixtureRequest) -> Stepwise:
    return request.param


def pairs_of_two(step: Tensor = STEPS) -> StepComparisons:
    """One comparison per step in float64, whose entries left parents of their own."""
    b = len(step)
    x_t, prediction, noise = (normal(b, 2, *LATENT, seed=seed) for seed in (2, 3, 1))
    return StepComparisons(random_conditioning(b), step, x_t, prediction, noise)


def near(batch: StepComparisons, *, distance: float = 0.1) -> dict[str, Tensor]:
    """What each role predicts at the parents, "b p c h w": near what was sampled with, all of them different."""
    shape = batch.prediction.shape
    roles = {role: batch.prediction + distance * normal(*shape, seed=4 + i) for i, role in enumerate(ROLES)}
    return {**roles, "policy": roles["policy"].requires_grad_()}


def judge_two(
    objective: Stepwise, sampler: DDIM, batch: StepComparisons, roles: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and metrics under predictions "b p c h w"."""
    return evaluate(objective, sampler, batch, **{role: value.flatten(0, 1) for role, value in roles.items()})


def pull(losses: Tensor, roles: dict[str, Tensor]) -> Tensor:
    """The gradient at every parent, "b p c h w"."""
    return torch.autograd.grad(losses.sum(), roles["policy"])[0]


def entry_mean(x: Tensor) -> Tensor:
    return x.mean((-3, -2, -1))


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def targets(objective: Stepwise, sampler: DDIM, batch: StepComparisons, base: Tensor) -> Tensor:
    """T = base - g sqrt(1 - abar) z, each entry with its own noise."""
    return base - guidance_step(objective, sampler, batch.step)[:, None, None, None, None] * batch.noise


def log_ratios(
    objective: Stepwise, sampler: DDIM, batch: StepComparisons, roles: dict[str, Tensor], base: Tensor
) -> Tensor:
    """-a mean[(eps_theta - T)² - (eps_ref - T)²], as published."""
    target = targets(objective, sampler, batch, base)
    distance = (roles["policy"] - target) ** 2 - (roles["reference"] - target) ** 2
    return -target_weight(objective.weighting, sampler, batch.step)[:, None] * entry_mean(distance)


def base_of(objective: Stepwise, batch: StepComparisons, roles: dict[str, Tensor]) -> Tensor:
    """GradSPO's clamp starts from the average's prediction, everything else from the one sampled with."""
    average = objective.trust_region == "clamp" and objective.weighting != "spo"
    return roles["ema"] if average else batch.prediction


# Numbers


def one_entry(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 2, 1, 1, 1)


def test_the_hand_worked_margin_is_a_fifth(sampler: DDIM) -> None:
    """One latent entry, a = 1, g sqrt(1 - abar) = .5, beta = 10; winner and loser at parents of their own:

    eps_theta = .2, -.1;  eps_ref = 0, .1;  base = .1, .3;  z = 1, -.5, so that T = .1 - .5 = -.4 and .3 + .25 = .55;
    r⁺ = -(.6² - .4²) = -.2;  r⁻ = -(.65² - .45²) = -.22;  margin = 10 (-.2 + .22) = .2;  loss = ln(1 + e^-.2) = .5981.
    """
    step = steps_at(501)
    gamma = 0.5 / sampler.scales(step)[1].item()
    batch = replace(
        pairs_of_two(step), x_t=one_entry([0, 0]), prediction=one_entry([0.1, 0.3]), noise=one_entry([1, -0.5])
    )
    roles = {"policy": one_entry([0.2, -0.1]), "reference": one_entry([0.0, 0.1])}
    losses, metrics = judge_two(Stepwise(gamma=gamma, trust_region=None), sampler, batch, roles)
    assert metrics["margin"].item() == pytest.approx(0.2, abs=1e-12)
    assert losses.item() == pytest.approx(0.5981, abs=5e-5)
    assert metrics["rms_delta"].item() == pytest.approx(0.2, abs=1e-12)


def test_the_loss_is_that_of_the_full_squares_at_each_parent(sampler: DDIM, objective: Stepwise) -> None:
    """softplus(-beta (r⁺ - r⁻)), each r clamped under "clamp"; gradient too, but for "rms" outside its radius."""
    batch = pairs_of_two()
    roles = near(batch, distance=0.2)
    losses, metrics = judge_two(objective, sampler, batch, roles)
    ratios = log_ratios(objective, sampler, batch, roles, base_of(objective, batch, roles))
    if objective.trust_region == "clamp":
        ratios = ratios.clamp(math.log(0.9), math.log(1.1))
    expected = -torch.nn.functional.logsigmoid(objective.beta * (ratios[:, 0] - ratios[:, 1]))
    close(losses, expected)
    held = metrics["outside"] if objective.trust_region == "rms" else torch.zeros(len(batch))
    assert 0 <= held.sum() < len(batch) / 2
    close(pull(losses, roles), pull(expected[held == 0], roles))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("region", ["clamp", None])
def test_spos_ratios_are_those_of_each_branchs_own_transition_density(prediction_type: str, region: str | None) -> None:
    """x_prev - mean_theta = c (eps_theta - T) for T = base - (sigma / c) z, hence -A mean[(eps - T)²] = log p + const.

    DPO: -log sigma(beta ([log p_theta - log p_ref](w) - [log p_theta - log p_ref](l))), log p per latent entry. Under
    the clamp each ratio p_theta / p_ref is held to [.9, 1.1].
    """
    sampler, batch = DDIM(stable_diffusion_schedule(prediction_type=prediction_type)), pairs_of_two()
    roles = near(batch, distance=0.05)
    losses, _ = judge_two(replace(SPO, trust_region=region), sampler, batch, roles)

    def density(role: str, entry: int) -> Tensor:
        x_t = batch.x_t[:, entry]
        x_prev = sampler.transition(batch.prediction[:, entry], x_t, batch.step).sample(batch.noise[:, [entry]])
        return sampler.transition(roles[role][:, entry], x_t, batch.step).mean_log_prob(x_prev)[:, 0]

    won, lost = (density("policy", entry) - density("reference", entry) for entry in (0, 1))
    if region == "clamp":
        won, lost = (ratio.exp().clamp(0.9, 1.1).log() for ratio in (won, lost))
    expected = -torch.nn.functional.logsigmoid(10 * (won - lost))
    torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(pull(losses, roles), pull(expected, roles), rtol=1e-6, atol=1e-9)


def test_before_training_the_loss_is_log_two(sampler: DDIM, objective: Stepwise) -> None:
    batch = pairs_of_two()
    same = dict.fromkeys(ROLES, normal(len(GRID), 2, *LATENT, seed=4))
    losses, metrics = judge_two(objective, sampler, batch, same)
    close(losses, torch.full_like(losses, math.log(2)))
    assert not metrics["margin"].any()


@pytest.mark.parametrize("noise", ["max-min", "separate"])
def test_two_parents_that_are_one_give_the_loss_of_one(sampler: DDIM, objective: Stepwise, noise: str) -> None:
    """Where every target keeps its own noise, which two parents always do; without a clamp the base cancels again."""
    two = pairs_of_two()
    one = replace(two, x_t=two.x_t[:, :1], prediction=two.prediction[:, :1])
    twice = replace(two, x_t=one.x_t.expand(-1, 2, -1, -1, -1), prediction=one.prediction.expand(-1, 2, -1, -1, -1))
    roles = near(one)
    shared = {role: value.expand(-1, 2, -1, -1, -1) for role, value in roles.items()}
    losses, metrics = judge_two(replace(objective, noise=noise), sampler, twice, shared)
    expected, expected_metrics = judge_two(replace(objective, noise="separate"), sampler, one, roles)
    close(losses, expected)
    close(pull(losses, roles), pull(expected, roles))
    assert all(torch.allclose(metrics[name], expected_metrics[name]) for name in NAMES)


# What is asked of the policy


class Asked:
    """A policy that notes every point it is asked about."""

    def __init__(self) -> None:
        self.points: dict[Role, tuple[Tensor, Tensor, Conditioning]] = {}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        assert role not in self.points
        self.points[role] = x_t, t, cond
        return x_t.clone().requires_grad_(role == "policy")


def test_each_parent_is_asked_about_once_per_role_at_its_timestep_and_for_its_prompt(
    sampler: DDIM, objective: Stepwise
) -> None:
    batch = pairs_of_two()
    policy = Asked()
    stepwise_loss(objective, policy, sampler, batch)
    averaged = objective.trust_region == "clamp" and objective.weighting != "spo"
    assert set(policy.points) == {"policy", "reference"} | ({"ema"} if averaged else set())
    for x_t, t, cond in policy.points.values():
        for entry in (0, 1):
            assert torch.equal(x_t[entry::2], batch.x_t[:, entry])
            assert torch.equal(t[entry::2], GRID)
            assert torch.equal(cond.tokens[entry::2], batch.cond.tokens)


def test_two_parents_cost_two_predictions_per_role(sampler: DDIM) -> None:
    for objective, averaged in ((SPO, 0), (GRADSPO, 40), (Stepwise(), 0)):
        policy = ToyPolicy(**{role: value.flatten(0, 1) for role, value in near(pairs_of_two()).items()})
        stepwise_loss(objective, policy, sampler, pairs_of_two())
        assert policy.calls == Counter({"policy": 40, "reference": 40, "ema": averaged})


def test_a_loss_does_not_depend_on_the_comparisons_beside_it(sampler: DDIM, objective: Stepwise) -> None:
    batch = pairs_of_two()
    roles = near(batch)
    losses, metrics = judge_two(objective, sampler, batch, roles)
    few, few_metrics = judge_two(objective, sampler, batch[3:7], {role: value[3:7] for role, value in roles.items()})
    torch.testing.assert_close(few, losses[3:7], rtol=0, atol=1e-14)
    assert all(torch.allclose(few_metrics[name], metrics[name][3:7]) for name in NAMES)


# Where it pulls


def test_the_winners_prediction_is_pulled_to_its_target_and_the_losers_pushed_from_its_own(
    sampler: DDIM, objective: Stepwise
) -> None:
    """d loss / d eps = ± beta sigma(-margin) 2 a (eps - T) / D: plus for the winner, minus for the loser."""
    batch = pairs_of_two()
    objective, roles = replace(objective, clip=0.999, radius=1e3), near(batch, distance=0.02)
    losses, metrics = judge_two(objective, sampler, batch, roles)
    target = targets(objective, sampler, batch, base_of(objective, batch, roles))
    weight = (
        2 * objective.beta * (-metrics["margin"]).sigmoid() * target_weight(objective.weighting, sampler, batch.step)
    )
    away = weight[:, None, None, None, None] * (roles["policy"] - target).detach() / math.prod(LATENT)
    close(pull(losses, roles), torch.stack([away[:, 0], -away[:, 1]], 1))


def test_a_small_step_against_the_gradient_prefers_the_better_branch(sampler: DDIM, objective: Stepwise) -> None:
    batch = pairs_of_two()
    same = dict.fromkeys(ROLES, batch.prediction)
    roles = {**same, "policy": batch.prediction.clone().requires_grad_()}
    losses, _ = judge_two(objective, sampler, batch, roles)
    moved = batch.prediction - 1e-3 * pull(losses, roles)
    _, metrics = judge_two(objective, sampler, batch, {**same, "policy": moved})
    assert (metrics["accuracy"] == 1).all()


def outside_by_entry(rms: list[float]) -> tuple[StepComparisons, dict[str, Tensor]]:
    """Both entries of every comparison at the given rms(delta), with a base that is eps_theta and noise of mean zero.

    Then mean[delta ⊙ z] = 0 and each log-ratio is its own a_t rms².
    """
    signs = torch.tensor([1.0, -1.0]).double().repeat(9).view(LATENT)
    batch = pairs_of_two()
    policy = batch.prediction
    reference = policy - torch.tensor(rms).double().view(1, 2, 1, 1, 1)
    noise = torch.stack([signs, -signs]).expand_as(policy)
    return replace(batch, noise=noise), {"policy": policy.requires_grad_(), "reference": reference, "ema": policy}


@pytest.mark.parametrize(("rms", "stopped"), [([1.01, 0.5], [1, 0]), ([0.5, 1.01], [0, 1]), ([1.01, 1.01], [1, 1])])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_clamp_stops_each_parent_by_itself(
    sampler: DDIM, weighting: str, rms: list[float], stopped: list[int]
) -> None:
    """In units of the radius sqrt(ln 1.1 / a_t), at t = 501."""
    (at,) = steps_at(501)
    radius = (math.log(1.1) / target_weight(weighting, sampler, steps_at(501))).sqrt().item()
    batch, roles = outside_by_entry([value * radius for value in rms])
    losses, metrics = judge_two(Stepwise(weighting=weighting, trust_region="clamp"), sampler, batch, roles)
    assert (pull(losses, roles)[at].abs().amax((1, 2, 3)) == 0).int().tolist() == stopped
    assert metrics["outside"][at] == float(all(stopped))


@pytest.mark.parametrize(
    ("rms", "outside"), [([0.31, 0.1], True), ([0.1, 0.31], True), ([0.308, 0.1], False), ([0.308, 0.308], False)]
)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_under_rms_the_farther_parent_decides_for_both(
    sampler: DDIM, weighting: str, rms: list[float], outside: bool
) -> None:
    batch, roles = outside_by_entry(rms)
    losses, metrics = judge_two(Stepwise(weighting=weighting, trust_region="rms"), sampler, batch, roles)
    free, _ = judge_two(Stepwise(weighting=weighting, trust_region=None), sampler, batch, roles)
    close(metrics["rms_delta"], torch.full((20,), max(rms)).double())
    assert (metrics["outside"] == outside).all()
    torch.testing.assert_close(losses, free, rtol=0, atol=0)
    assert ((pull(losses, roles).abs().amax((2, 3, 4)) == 0) == outside).all()
