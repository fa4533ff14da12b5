"""The training loop: what a round uses, counts and learns, and that a run can be cut and shared anywhere."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import copied_policy
from ranks import in_ranks
from torch import Tensor
from worlds import (
    LATENT_SHAPE,
    BrightnessJudge,
    PairRecorder,
    ShiftPolicy,
    assert_same,
    encode,
    make_trainer,
    shared_rounds,
)

from stepalign.core.choices import Pairing
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.models.base import BaseModel
from stepalign.models.policy import LoraPolicy
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.sources.settings import Branching
from stepalign.support.files import RunState, load_state, save_state
from stepalign.training.settings import Training
from stepalign.training.trainer import Trainer

NUM_PARENTS = 16


def spied_trainer(**training: Any) -> tuple[Trainer, PairRecorder]:
    policy = ShiftPolicy()
    spy = PairRecorder(policy)
    return make_trainer(policy=policy, objective=spy, **training), spy


@pytest.fixture(scope="module")
def sd_policy(tiny_sd: BaseModel) -> LoraPolicy:
    """A policy under guidance, for counting."""
    return copied_policy(tiny_sd)


def sd_trainer(model: BaseModel, policy: LoraPolicy, *, judge: object = None, **given: Any) -> Trainer:
    """Four steps, two candidates, on the tiny Stable Diffusion."""
    judge = judge or BrightnessJudge(100.0)
    parts = {"policy": policy, "judge": judge, "encode": model.encode, "latent_shape": model.latent_shape}
    return make_trainer(**parts, num_steps=4, **given)


def brightness(trainer: Trainer, role: str) -> float:
    """The mean of samples from fresh noise."""
    noise = PromptNoise([generator_for(7, Purpose.EVALUATION, row) for row in range(64)])
    fixed = {"cond": encode(["a cat"] * 64), "latent_shape": LATENT_SHAPE, "noise": noise}
    return sample(trainer.policy.denoiser(role), trainer.sampler, **fixed).mean().item()


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


# A round


def test_a_round_says_what_it_did() -> None:
    row = make_trainer().round()
    assert list(row) == [
        *("round", "seconds", "judge_score", "judge_timestep", "judge_spread", "comparisons", "kept", "updates"),
        *("skipped", "loss_scale", "grad_norm"),
        *("loss", "margin", "accuracy", "rms_delta", "outside", "rms_delta_by_timestep"),
    ]
    assert (row["round"], row["comparisons"], row["kept"], row["updates"]) == (1, 4 * NUM_PARENTS, 1.0, 10)
    assert list(row["rms_delta_by_timestep"]) == [str(t) for t in range(751, 0, -50)]
    assert row["grad_norm"] > 0
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_rounds_comparisons_are_used_once_in_updates_of_nearly_equal_size() -> None:
    trainer, spy = spied_trainer()
    trainer.round()
    *updates, rest = spy.updates
    used = [pair for update in updates for pair in update]
    assert len(used) == len(set(used)) == 4 * NUM_PARENTS
    assert sorted({len(update) for update in updates}) == [6, 7]
    assert not rest


def test_nothing_crosses_rounds() -> None:
    trainer, spy = spied_trainer()
    trainer.round()
    first = {pair for update in spy.updates for pair in update}
    assert all(parameter.grad is None for parameter in trainer.updater.parameters)
    spy.updates[:] = [[]]
    trainer.round()
    assert len(spy.updates) == 10 + 1
    assert not first & {pair for update in spy.updates for pair in update}


def test_comparisons_of_a_round_are_shuffled_together_and_anew_each_round() -> None:
    trainer, spy = spied_trainer(comparisons_per_update=64, train_batch=64)
    for _ in range(2):
        trainer.round()
    first, second = ([pair[0] for pair in update] for update in spy.updates[:2])
    assert first != second
    assert sum(t >= following for t, following in pairwise(first)) < 45  # of 63; sampling goes down all the way


def test_unsure_comparisons_are_not_trained_on() -> None:
    row = make_trainer(min_gap=0.2).round()
    assert 0 < row["comparisons"] < 4 * NUM_PARENTS
    assert row["kept"] == row["comparisons"] / (4 * NUM_PARENTS)


def test_a_round_without_comparisons_is_a_normal_round() -> None:
    trainer = make_trainer(min_gap=1.0)
    row = trainer.round()
    assert (row["comparisons"], row["kept"], row["updates"], row["grad_norm"]) == (0, 0.0, 0, None)
    assert not trainer.policy.adapter["shift"].any()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert trainer.round()["round"] == 2


def test_the_average_follows_every_optimizer_step() -> None:
    trainer = make_trainer(ema_decay=0.8)
    adapters: list[Tensor] = []
    trainer.updater.optimizer.register_step_post_hook(
        lambda *_: adapters.append(trainer.policy.adapter["shift"].detach().clone())
    )
    trainer.round()
    expected = sum(0.2 * 0.8**age * adapter for age, adapter in enumerate(reversed(adapters)))
    assert len(adapters) == trainer.num_updates == 10
    assert torch.allclose(trainer.policy.ema["shift"], expected, atol=1e-7)


def test_gradients_are_clipped_when_asked() -> None:
    norms: list[float] = []
    trainer = make_trainer(max_grad_norm=0.01)
    shift = trainer.policy.adapter["shift"]
    trainer.updater.optimizer.register_step_pre_hook(lambda *_: norms.append(shift.grad.norm().item()))
    row = trainer.round()
    assert norms == pytest.approx([0.01] * 10, rel=1e-3)
    assert row["grad_norm"] > 0.01


def test_progress_is_reported_by_phase() -> None:
    ticks = []
    make_trainer().round(lambda *tick: ticks.append(tick))
    assert ticks == [("sample", step, 40) for step in range(1, 41)] + [("train", step, 10) for step in range(1, 11)]


# Counting


@pytest.mark.parametrize(
    ("objective", "with_average"),
    [(Stepwise(), False), (replace(GRADSPO, trust_region=None), False), (SPO, False), (GRADSPO, True)],
    ids=["rms", "none", "spo clamp", "gradspo clamp"],
)
def test_a_comparison_costs_one_policy_and_one_reference_prediction(
    tiny_sd: BaseModel, sd_policy: LoraPolicy, objective: Stepwise, with_average: bool
) -> None:
    trainer = sd_trainer(tiny_sd, sd_policy, objective=objective, rollout_role="ema", prompts_per_round=2)
    comparisons = trainer.round()["comparisons"]
    training = {role: number for role, number in trainer.calls.items() if role.startswith("training")}
    assert comparisons == 2 * 4
    assert training == {"training_policy": 2 * comparisons, "training_reference": 2 * comparisons} | (
        {"training_ema": 2 * comparisons} if with_average else {}
    )


def test_sampling_is_counted_for_the_role_that_samples(tiny_sd: BaseModel, sd_policy: LoraPolicy) -> None:
    trainer = sd_trainer(tiny_sd, sd_policy, rollout_role="ema", prompts_per_round=3)
    trainer.round()
    assert trainer.calls["sampling_ema"] == 2 * (3 + 3 * 3 * 2)  # guidance 2, steps at 751, 501, 251 and 1, k = 2
    assert trainer.calls["judge_images"] == 3 * 4 * 2
    assert trainer.calls["sampling_policy"] == 0


def test_each_distinct_prompt_is_encoded_once_per_run_by_base_and_judge(
    tiny_sd: BaseModel, tiny_spm_folder: Path
) -> None:
    model = replace(tiny_sd)
    spm = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)
    judge = StepAwareJudge(spm, model.pipeline.tokenizer, model.decode)
    trainer = sd_trainer(
        model, copied_policy(model), judge=judge, prompts=["a cat", "a dog", "a cat"], prompts_per_round=3
    )
    for _ in range(2):
        trainer.round()
    assert model.num_encoded == 2 + 1  # and the empty prompt
    assert judge.num_texts == 2


# Learning


@pytest.mark.parametrize(
    ("objective", "pairing"),
    [(SPO, "best-worst"), (GRADSPO, "best-worst"), *((Stepwise(), rule) for rule in get_args(Pairing))],
    ids=["spo", "gradspo", *get_args(Pairing)],
)
def test_training_raises_the_judges_score(objective: Stepwise, pairing: str) -> None:
    trainer = make_trainer(
        objective=objective,
        branching=Branching(num_candidates=4),
        pairing=pairing,
        prompts_per_round=12,
        sample_batch=12,
        comparisons_per_update=48,
        train_batch=48,
        learning_rate=0.02,
        min_gap=0.3,
    )
    for _ in range(6):
        trainer.round()
    before, after = brightness(trainer, "reference"), brightness(trainer, "policy")
    assert before == pytest.approx(0.5, abs=0.1)
    assert after > before + 0.1


def test_batch_sizes_change_nothing_but_speed() -> None:
    results = []
    for sample_batch, train_batch in ((4, 64), (1, 2)):
        trainer = make_trainer(sample_batch=sample_batch, train_batch=train_batch)
        row = trainer.round()
        results.append((row["comparisons"], trainer.policy.adapter["shift"].detach()))
    assert results[0][0] == results[1][0]
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_the_seed_decides_a_run() -> None:
    rows = [without_clock(make_trainer(seed=seed).round()) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


# Going on elsewhere


def test_a_restored_run_ends_bit_identical_to_one_left_alone(tmp_path: Path) -> None:
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    expected = [without_clock(whole.round()) for _ in range(4)]
    rows = [without_clock(first.round()) for _ in range(2)]
    save_state(first.state(), tmp_path / "checkpoint.pt")
    second.restore(load_state(tmp_path / "checkpoint.pt", RunState))
    rows += [without_clock(second.round()) for _ in range(2)]
    assert rows == expected
    for name in ("adapter", "ema", "optimizer", "scaler", "calls", "num_rounds", "num_updates", "num_comparisons"):
        assert_same(getattr(second.state(), name), getattr(whole.state(), name))


def test_a_state_stays_what_it_was_while_the_run_goes_on() -> None:
    trainer, other = make_trainer(), make_trainer()
    trainer.round()
    state = trainer.state()
    expected = without_clock(trainer.round())
    for _ in range(2):  # restoring, too, leaves it alone
        other.restore(state)
        assert without_clock(other.round()) == expected


def test_processes_together_do_what_one_does_alone(tmp_path: Path) -> None:
    alone, shares = shared_rounds(), in_ranks(2, tmp_path / "two", shared_rounds)
    assert sum(map(len, alone["updates"])) > 0
    for step, update in enumerate(alone["updates"]):
        assert sorted(shares[0]["updates"][step] + shares[1]["updates"][step]) == sorted(update)
    assert all(any(share["updates"]) for share in shares)
    for share in shares:
        assert torch.allclose(share["adapter"], alone["adapter"], rtol=0, atol=1e-6)
        assert torch.allclose(share["ema"], alone["ema"], rtol=0, atol=1e-6)
        assert share["calls"] == alone["calls"]
        for row, expected in zip(share["rows"], alone["rows"], strict=True):
            assert row.keys() == expected.keys()
            assert all(
                math.isclose(row[key], expected[key], rel_tol=1e-4) for key in ("judge_score", "loss", "grad_norm")
            )
            assert row["comparisons"] == expected["comparisons"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_rounds", 0), ("prompts_per_round", 0), ("sample_batch", -1), ("comparisons_per_update", 0)),
        *(("train_batch", 0), ("ema_decay", 1.0), ("ema_decay", -0.1), ("learning_rate", 0.0)),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field} must be .* got {value}"):
        Training(**{field: value})
