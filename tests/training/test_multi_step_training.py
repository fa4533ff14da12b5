"""Training on windows of several steps: what a round is made of, what it costs and learns, and the papers' recipes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import copied_policy
from torch import Tensor
from worlds import LATENT_SHAPE, BrightnessJudge, ShiftPolicy, encode, make_sampler, make_trainer

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Role
from stepalign.core.protocols import Metrics
from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.models.base import BaseModel
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.objectives.stepwise import stepwise_loss
from stepalign.runs.recipes import SDXL, Recipe, load_recipe
from stepalign.sources.settings import Branching, Candidates
from stepalign.training.trainer import Trainer

PATH = Branching(num_candidates=2, num_inner_steps=(3,))
"""Sixteen steps in six windows, the first of each window of one parent and the other ten of two."""
WINDOWS = [[751, 701, 651], [601, 551, 501], [451, 401, 351], [301, 251, 201], [151, 101, 51], [1]]


class BatchSpy:
    """An objective that remembers the batches it was given."""

    def __init__(self, objective: Stepwise | None = None) -> None:
        self.objective = objective or Stepwise()
        self.batches: list[StepComparisons] = []

    def __call__(self, policy: object, sampler: DDIM, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        self.batches.append(batch)
        return stepwise_loss(self.objective, policy, sampler, batch)


def round_of(**given: object) -> tuple[Trainer, dict[str, object], list[StepComparisons]]:
    """One round of four prompts, and the batches it trained on."""
    spy = BatchSpy(given.pop("objective", None))
    trainer = make_trainer(objective=spy, **{"branching": PATH, **given})
    return trainer, trainer.round(), spy.batches


def num_by(batches: list[StepComparisons], *, parents: int) -> Counter[int]:
    """How many comparisons of so many parents there are at every timestep."""
    times = make_sampler().times
    return Counter(times[step] for batch in batches if batch.x_t.shape[1] == parents for step in batch.step.tolist())


def brightness(trainer: Trainer, role: Role) -> float:
    """The mean of samples from fresh noise."""
    noise = PromptNoise([generator_for(7, Purpose.EVALUATION, row) for row in range(64)])
    fixed = {"cond": encode(["a cat"] * 64), "latent_shape": LATENT_SHAPE, "noise": noise}
    return sample(trainer.policy.denoiser(role), trainer.sampler, **fixed).mean().item()


# A round


def test_every_transition_of_a_path_is_compared_once_and_no_batch_mixes_one_parent_with_two() -> None:
    trainer, row, batches = round_of()
    assert {batch.x_t.shape[1] for batch in batches} == {batch.prediction.shape[1] for batch in batches} == {1, 2}
    assert num_by(batches, parents=1) == Counter({window[0]: 4 for window in WINDOWS})
    assert num_by(batches, parents=2) == Counter({t: 4 for window in WINDOWS for t in window[1:]})
    noises = [tuple(noise) for batch in batches for noise in batch.noise.flatten(1).tolist()]
    assert len(set(noises)) == len(noises) == row["comparisons"] == trainer.num_comparisons == 4 * 16
    assert (row["kept"], row["updates"]) == (1.0, 10)
    assert list(row["rms_delta_by_timestep"]) == [str(t) for window in WINDOWS for t in window]
    assert max(len(batch) for batch in batches) == 3


def test_winner_and_loser_of_a_window_keep_their_places_from_its_first_step_to_its_last() -> None:
    """Each parent of a later transition is where the same entry's transition before it led."""
    trainer, _, batches = round_of(prompts_per_round=1)
    times = trainer.sampler.times
    by_timestep = {times[int(batch.step[row])]: batch[[row]] for batch in batches for row in range(len(batch))}
    for before, after in ((by_timestep[t], by_timestep[p]) for window in WINDOWS for t, p in pairwise(window)):
        for entry in (0, 1):
            parent = entry % before.x_t.shape[1]
            step = trainer.sampler.transition(before.prediction[:, parent], before.x_t[:, parent], before.step)
            assert torch.equal(after.x_t[:, entry], step.sample(before.noise[:, [entry]])[:, 0])


def test_the_transitions_of_a_window_are_trained_on_together_or_not_at_all() -> None:
    _, row, batches = round_of(min_gap=0.2)
    counts = num_by(batches, parents=1) + num_by(batches, parents=2)
    assert 0 < row["comparisons"] == counts.total() < 4 * 16
    assert all(len({counts[t] for t in window}) == 1 for window in WINDOWS)
    assert row["kept"] == row["comparisons"] / (4 * 16)


@pytest.mark.parametrize("resume_at", ["window-end", "next-step"])
def test_a_look_ahead_trains_on_its_first_steps_of_one_parent(resume_at: str) -> None:
    _, row, batches = round_of(branching=replace(PATH, inner_steps="look-ahead", resume_at=resume_at))
    steps = [window[0] for window in WINDOWS] if resume_at == "window-end" else list(range(751, 0, -50))
    assert num_by(batches, parents=1) == Counter(dict.fromkeys(steps, 4))
    assert row["comparisons"] == 4 * len(steps)


def test_batch_sizes_change_nothing_but_speed() -> None:
    adapters = []
    for sizes in ({"sample_batch": 4, "train_batch": 64}, {"sample_batch": 1, "train_batch": 2}):
        trainer, row, _ = round_of(**sizes)
        adapters.append(trainer.policy.adapter["shift"].detach())
        assert row["comparisons"] == 4 * 16
    assert torch.allclose(*adapters, atol=1e-6)


@pytest.mark.parametrize(("objective", "averaged"), [(Stepwise(), False), (SPO, False), (GRADSPO, True)])
def test_training_costs_one_prediction_per_role_for_every_parent(objective: Stepwise, averaged: bool) -> None:
    """Of 64 comparisons, 24 = 4 prompts · 6 windows have one parent and 40 two: 104; sampling is 5 + 15 k each."""
    trainer, _, batches = round_of(objective=objective)
    num_parents = sum(batch.x_t.shape[:2].numel() for batch in batches)
    assert num_parents == 24 + 2 * 40
    assert trainer.calls == Counter(
        sampling_policy=4 * (5 + 15 * 2),
        training_policy=num_parents,
        training_reference=num_parents,
        judge_images=4 * 6 * 2,
        **({"training_ema": num_parents} if averaged else {}),
    )


# Learning


@pytest.mark.parametrize(
    ("objective", "branching", "pairing"),
    [
        (SPO, Branching(num_inner_steps=(3,)), "best-worst"),
        (GRADSPO, Branching(num_inner_steps=(3,)), "best-worst"),
        (Stepwise(), Branching(num_inner_steps=(4, 1), inner_step_bounds=(400,)), "two-random"),
        (Stepwise(), Branching(num_inner_steps=(4,), inner_steps="look-ahead"), "all-k"),
        (GRADSPO, Branching(num_inner_steps=(99,), inner_steps="look-ahead", resume_at="next-step"), "best-worst"),
    ],
    ids=["mspo", "gradspo path", "shorter windows at low noise", "look-ahead", "look-ahead to the end"],
)
def test_training_raises_the_judges_score(objective: Stepwise, branching: Branching, pairing: str) -> None:
    sizes = {"prompts_per_round": 12, "sample_batch": 12, "comparisons_per_update": 48, "train_batch": 48}
    trainer = make_trainer(
        objective=objective, branching=branching, pairing=pairing, learning_rate=0.02, min_gap=0.3, **sizes
    )
    for _ in range(5):
        trainer.round()
    before, after = brightness(trainer, "reference"), brightness(trainer, "policy")
    assert before == pytest.approx(0.5, abs=0.1)
    assert after > before + 0.1


# Base models


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_an_sdxl_of_any_kind_of_prediction_learns_from_windows(tiny_sdxl: BaseModel, prediction_type: str) -> None:
    """Four steps in two windows of two: [751, 501] and [251, 1]."""
    policy = copied_policy(tiny_sdxl)
    before = {name: value.detach().clone() for name, value in policy.adapter.items()}
    spy = BatchSpy(SPO)
    parts = {"policy": policy, "encode": tiny_sdxl.encode, "latent_shape": tiny_sdxl.latent_shape, "objective": spy}
    trainer = make_trainer(
        judge=BrightnessJudge(100.0),
        branching=replace(PATH, num_inner_steps=(2,)),
        prompts_per_round=2,
        train_batch=8,
        sampler=DDIM(replace(tiny_sdxl.schedule(4), prediction_type=prediction_type)),
        **parts,
    )
    row = trainer.round()
    assert {batch.x_t.shape[1] for batch in spy.batches} == {1, 2}
    assert row["comparisons"] == 2 * 4
    json.dumps(row, allow_nan=False)
    assert all(value.isfinite().all() for value in policy.adapter.values())
    assert all(not torch.equal(before[name], value) for name, value in policy.adapter.items() if "lora_B" in name)


class OfKind:
    """The shift policy, its predictions said as velocities or clean samples."""

    def __init__(self, prediction_type: str) -> None:
        self.shift, self.kind = ShiftPolicy(), prediction_type
        self.adapter, self.ema, self.calls = self.shift.adapter, self.shift.ema, self.shift.calls
        self.update_ema, self.load = self.shift.update_ema, self.shift.load

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        eps = self.shift.predict(x_t, t, cond, role=role)
        abar = make_sampler().schedule.alpha_bar(t)[:, None, None, None]
        x_0 = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
        return (x_0 if self.kind == "sample" else abar.sqrt() * eps - (1 - abar).sqrt() * x_0).float()

    def denoiser(self, role: Role) -> object:
        return lambda x_t, t, cond: self.predict(x_t, t, cond, role=role)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("inner_steps", ["path", "look-ahead"])
def test_the_kind_of_prediction_changes_nothing_of_a_round(prediction_type: str, inner_steps: str) -> None:
    """Up to rounding: float32 noise out of clean samples at t = 1 has lost a factor of 30."""
    branching = replace(PATH, inner_steps=inner_steps)
    expected = make_trainer(objective=SPO, branching=branching)
    sampler = DDIM(replace(make_sampler().schedule, prediction_type=prediction_type))
    other = make_trainer(objective=SPO, branching=branching, policy=OfKind(prediction_type), sampler=sampler)
    rows = [trainer.round() for trainer in (expected, other)]
    for name in ("comparisons", "judge_score", "loss", "margin", "rms_delta"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-2, abs=1e-4)
    torch.testing.assert_close(other.policy.adapter["shift"], expected.policy.adapter["shift"], rtol=1e-2, atol=1e-3)


# Recipes


@pytest.mark.parametrize("name", ["spo-sdxl", "gradspo-sdxl"])
def test_the_papers_settings_for_sdxl(name: str) -> None:
    """method.md section 5."""
    recipe = load_recipe(name)
    training, branching, base = recipe.training, recipe.branching, recipe.base
    assert (recipe.model, base.vae, recipe.lora_rank) == (SDXL, None, 64)
    assert (base.guidance_scale, base.num_steps, base.eta) == (5.0, 20, 1.0)
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (1e-5, 1e-4, None)
    assert training.comparisons_per_update == 16
    assert training.num_rounds * training.prompts_per_round == 10 * 4000
    assert (recipe.source, training.ema_decay) == (Candidates(pairing="best-worst", min_gap=0.4), 0.9)
    assert (branching.num_candidates, branching.timestep_range, branching.continue_from) == (4, (0, 750), "random")
    assert recipe.judge.kind == "spm"
    assert recipe.judge.path.endswith("/sdxl_step-aware_preference_model.bin")
    assert (recipe.objective.beta, recipe.objective.clip, recipe.objective.gamma) == (10.0, 0.1, 0.5)


def test_spo_takes_windows_of_four_steps_on_sdxl_and_gradspo_single_ones() -> None:
    spo, gradspo = load_recipe("spo-sdxl"), load_recipe("gradspo-sdxl")
    assert (spo.branching.num_inner_steps, spo.branching.inner_steps) == ((4,), "path")
    assert gradspo.branching == Branching()
    assert (spo.objective, spo.training.rollout_role) == (SPO, "policy")
    assert (gradspo.objective, gradspo.training.rollout_role) == (GRADSPO, "ema")
    as_gradspo = {"name": "gradspo-sdxl", "objective": GRADSPO, "branching": gradspo.branching}
    assert replace(spo, training=replace(spo.training, rollout_role="ema"), **as_gradspo) == gradspo


@pytest.mark.parametrize("num_inner_steps", [(4,), (1, 2)])
def test_every_candidate_votes_only_where_they_share_a_parent(num_inner_steps: tuple[int, ...]) -> None:
    voting = load_recipe("gradspo-miniature")
    assert voting.source.pairing == "all-k"
    branching = Branching(num_inner_steps=num_inner_steps, inner_step_bounds=(400,) * (len(num_inner_steps) - 1))
    with pytest.raises(ValueError, match=r"^source\.pairing must be best-worst or two-random [^\n]* got all-k$"):
        replace(voting, branching=branching)
    assert replace(voting, branching=replace(branching, inner_steps="look-ahead")).source.pairing == "all-k"
    assert Recipe("path", branching=branching).source.pairing == "best-worst"
