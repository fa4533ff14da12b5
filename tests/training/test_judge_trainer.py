"""A step of the judge's training: its loss by hand, its gradient by one plain forward pass, its rate, its refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from judge_world import LATENT_SHAPE, Base, bright_or_dark, gradients_of_a_step, make_scorer, make_trainer, ready
from torch import Tensor
from worlds import make_sampler

from stepalign.core.seeding import EpochOrder, PromptNoise, Purpose, generator_for
from stepalign.data.prepared import PreparedPairs
from stepalign.judges.pairs import JudgeScorer
from stepalign.models.clip import preprocess_decoded, tokenize
from stepalign.training.judge_settings import JudgeTraining
from stepalign.training.judge_trainer import linear_schedule, preference_losses


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreparedPairs:
    return ready(tmp_path_factory.mktemp("pairs"), bright_or_dark(12))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The loss


@pytest.mark.parametrize(
    ("scores", "label", "loss"),
    [
        *(((1, 0), 1, 0.3133), ((1, 0), 0, 1.3133), ((0, 1), 1, 1.3133), ((0, 1), 0, 0.3133)),
        *(((1, 0), 0.5, 0.1201), ((0, 1), 0.5, 0.1201), ((2, 2), 0.5, 0.0), ((2, 2), 1, 0.6931), ((2, 2), 0, 0.6931)),
    ],
)
def test_the_loss_by_hand(scores: tuple[float, float], label: float, loss: float) -> None:
    """-ln sigma(1) = .3133, -ln sigma(-1) = 1.3133; a tie: their mean .8133 less ln 2 = .6931; equal scores: ln 2."""
    found = preference_losses(column(*scores)[None], column(label))
    assert found.tolist() == pytest.approx([loss], abs=5e-5)


def test_every_pair_has_a_loss_of_its_own() -> None:
    """The cross-entropy of the label under sigma(gap); the entropy of a tie, ln 2, is taken off."""
    scores, label = normal(6, 2), column(1, 0, 0.5, 1, 0, 0.5)
    expected = F.binary_cross_entropy_with_logits(scores[:, 0] - scores[:, 1], label, reduction="none")
    expected = expected - math.log(2) * (label == 0.5).double()
    torch.testing.assert_close(preference_losses(scores, label), expected, rtol=0, atol=1e-9)


def test_the_loss_does_not_depend_on_which_image_comes_first() -> None:
    scores, label = normal(6, 2), column(1, 0, 0.5, 1, 0, 1)
    swapped = preference_losses(scores.flip(1), 1 - label)
    torch.testing.assert_close(swapped, preference_losses(scores, label), rtol=0, atol=1e-12)


def test_a_tie_is_at_its_optimum_when_the_scores_are_equal() -> None:
    scores = column(22.3, 22.3)[None].requires_grad_()
    preference_losses(scores, column(0.5)).sum().backward()
    assert scores.grad.tolist() == [[0, 0]]
    gaps = torch.stack([torch.linspace(-3, 3, 61), torch.zeros(61)], 1).double()
    losses = preference_losses(gaps, torch.full((61,), 0.5, dtype=torch.float64))
    assert losses.argmin() == 30
    assert losses.min().item() == pytest.approx(0, abs=1e-12)


# Its gradient over a batch


def plain_loss(scorer: JudgeScorer, pairs: PreparedPairs, positions: range, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """sum(w loss) / sum(w) and the gaps of the scores, the whole batch in one pass, every prompt embedded anew."""
    order = EpochOrder(len(pairs), seed=seed, purpose=Purpose.JUDGE_ORDER)
    batch = pairs.take([order[position] for position in positions])
    draws = PromptNoise([generator_for(seed, Purpose.JUDGE_TRAINING, position) for position in positions])
    t, noise = draws.choice(1000), draws.normal(*LATENT_SHAPE)
    abar = make_sampler().schedule.alpha_bar(t)[:, None, None, None, None]
    x_0 = (batch.latents + ((1 - abar) / abar).sqrt() * noise[:, None]).flatten(0, 1).float()
    model = scorer.model
    images = model.image_features(preprocess_decoded(x_0, 32), t.repeat_interleave(2))
    text = model.text_features(tokenize(scorer.tokenizer, model.config, batch.prompts))
    scores = model.score(images, text.repeat_interleave(2, 0)).unflatten(0, (-1, 2))
    gap, label = scores[:, 0] - scores[:, 1], batch.label
    losses = -label * F.logsigmoid(gap) - (1 - label) * F.logsigmoid(-gap) - math.log(2) * (label == 0.5).double()
    return (batch.weight * losses).sum() / batch.weight.sum(), gap * (label - 0.5).sign()


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 8])
def test_loss_and_gradient_are_those_of_the_whole_batch(
    pairs: PreparedPairs, tiny_spm_folder: Path, micro_batch: int
) -> None:
    """Pairs weigh from 1/4 to 1, prompts repeat, and the batch is the second, across the end of an epoch of eight."""
    few = pairs.select(list(range(8)))
    scorer = make_scorer(tiny_spm_folder, dtype=torch.float64)
    trainer = make_trainer(scorer, few, micro_batch=micro_batch)
    trainer.num_steps = 1
    row, gradients = gradients_of_a_step(trainer)

    plain = make_scorer(tiny_spm_folder, dtype=torch.float64)
    loss, _ = plain_loss(plain, few, range(5, 10))
    loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: parameter.grad for name, parameter in plain.model.named_parameters()}
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    norm = torch.nn.utils.get_total_norm(list(expected.values())).item()
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_every_weight_of_the_judge_gets_a_gradient(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """But the keys' biases, which softmax does not see."""
    trainer = make_trainer(make_scorer(tiny_spm_folder, dtype=torch.float64), pairs)
    _, gradients = gradients_of_a_step(trainer)
    assert {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9} == {
        name for name in gradients if name.endswith("k_proj.bias")
    }


def test_the_judge_sees_noise_through_a_frozen_base(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    base = Base()
    make_trainer(make_scorer(tiny_spm_folder, base), pairs).step()
    assert not any(shown.with_grad for shown in base.shown)
    assert not any(with_grad for _, with_grad in base.decoded)
    assert base.number.grad is None


def test_the_text_tower_runs_once_per_distinct_prompt_and_step(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    for micro_batch in (1, 2, 5):
        trainer = make_trainer(make_scorer(tiny_spm_folder), pairs, micro_batch=micro_batch)
        texts: list[int] = []
        trainer.scorer.model.text_model.register_forward_hook(
            lambda *given, texts=texts: texts.append(len(given[-1].pooler_output))
        )
        for _ in range(2):
            trainer.step()
        order = EpochOrder(len(pairs), seed=0, purpose=Purpose.JUDGE_ORDER)
        batches = [{pairs.prompts[order[position]] for position in range(start, start + 5)} for start in (0, 5)]
        assert texts == [len(prompts) for prompts in batches]
        assert sum(texts) < 10
        assert dict(trainer.calls) == {"judge_texts": sum(texts), "judge_images": 20, "base_samples": 20}


# Rows


def test_a_row_says_what_a_step_did(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """The accuracy is the share of decided pairs in which the preferred image has the higher score."""
    trainer = make_trainer(make_scorer(tiny_spm_folder, dtype=torch.float64), pairs)
    with torch.no_grad():
        loss, gaps = plain_loss(make_scorer(tiny_spm_folder, dtype=torch.float64), pairs, range(5))
    row = trainer.step()
    assert list(row) == ["step", "loss", "accuracy", "learning_rate", "grad_norm", "seconds"]
    assert row["step"] == trainer.num_steps == 1
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx(((gaps > 0).sum() / (gaps != 0).sum()).item())
    assert (gaps != 0).sum() < 5
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert all(parameter.grad is None for parameter in trainer.parameters)
    assert trainer.step()["step"] == 2


def test_a_step_of_ties_has_no_accuracy(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    row = make_trainer(make_scorer(tiny_spm_folder), pairs.select([4, 9])).step()
    assert row["accuracy"] is None
    assert json.loads(json.dumps(row, allow_nan=False)) == row


# The optimizer


def test_the_first_step_is_adams_with_decay_apart(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """After one step the moments give w - lr (decay w + g / (|g| + 1e-8)), lr being half the peak's."""
    trainer = make_trainer(make_scorer(tiny_spm_folder, dtype=torch.float64), pairs)
    before = {name: weight.detach().clone() for name, weight in trainer.scorer.model.named_parameters()}
    _, gradients = gradients_of_a_step(trainer)
    expected = {
        name: weight - 0.5e-3 * (0.1 * weight + gradients[name] / (gradients[name].abs() + 1e-8))
        for name, weight in before.items()
    }
    after = {name: weight.detach() for name, weight in trainer.scorer.model.named_parameters()}
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-9)


def test_every_step_has_its_rate_and_a_clipped_gradient(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """Two steps of warm-up, then down from 1 to 0 at the fifth: .5, 1, 1, 2/3, 1/3."""
    settings: dict[str, Any] = {"num_steps": 5, "learning_rate": 6e-4, "max_grad_norm": 1e-3}
    trainer = make_trainer(make_scorer(tiny_spm_folder), pairs, **settings)
    used: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    for _ in range(5):
        row, gradients = gradients_of_a_step(trainer)
        assert row["learning_rate"] == used[-1]
        assert row["grad_norm"] > 1e-3
        assert torch.nn.utils.get_total_norm(list(gradients.values())).item() == pytest.approx(1e-3, rel=1e-2)
    assert used == pytest.approx([3e-4, 6e-4, 6e-4, 4e-4, 2e-4], rel=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (2, 0.75), (3, 1.0), (4, 1.0), (7, 0.5), (9, 1 / 6), (10, 0.0)])
def test_the_rate_warms_up_and_decays_linearly(step: int, rate: float) -> None:
    """Four steps of warm-up of ten: 1/4 at the first, 1 at the fourth and fifth, then (10 - step)/6. Without any, 1."""
    assert linear_schedule(step, 4, 10) == pytest.approx(rate, abs=1e-12)
    assert linear_schedule(0, 0, 10) == 1


# Refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_steps", 0), ("batch_size", 0), ("micro_batch", -1), ("num_warmup_steps", -1)),
        *(("weight_decay", -0.1), ("learning_rate", 0.0), ("max_grad_norm", 0.0)),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field} must be .* got {value}"):
        JudgeTraining(**{field: value})


def test_losses_that_are_no_numbers_end_training_naming_the_step(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """After as many steps in a row as the settings say; one more step would not change the weights either."""
    trainer = make_trainer(make_scorer(tiny_spm_folder), pairs, max_skipped=2)
    trainer.step()
    with torch.no_grad():
        trainer.scorer.model.logit_scale.fill_(torch.inf)
    projection = trainer.scorer.model.text_projection.weight.detach().clone()
    row = trainer.step()
    assert (row["step"], row["loss"], row["grad_norm"]) == (2, None, None)
    ended = r"^the loss of step 3 is not .* lower training\.learning_rate \(2 steps in a row were skipped for it"
    with pytest.raises(ValueError, match=ended):
        trainer.step()
    assert (trainer.num_steps, trainer.num_skipped) == (2, 2)
    assert torch.equal(trainer.scorer.model.text_projection.weight, projection)


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(pairs: PreparedPairs, tiny_spm_folder: Path) -> None:
    """The loss is one, but at one of the weights the backward pass overflows; later steps train again."""
    trainer = make_trainer(make_scorer(tiny_spm_folder), pairs, max_skipped=2)
    before = {name: weight.detach().clone() for name, weight in trainer.scorer.model.named_parameters()}
    hook = trainer.scorer.model.visual_projection.weight.register_hook(lambda gradient: gradient * torch.inf)
    row = trainer.step()
    assert math.isfinite(row["loss"])
    assert row["grad_norm"] is None
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.scorer.model.named_parameters())
    hook.remove()
    assert trainer.step()["grad_norm"] > 0
    assert (trainer.state().num_skipped, trainer.state().num_failures) == (1, 0)
    trainer.restore(replace(trainer.state(), num_failures=1))
    trainer.scorer.model.visual_projection.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match=r"^the gradient of step 3 .*start again with a lower training.learning_rate"):
        trainer.step()
