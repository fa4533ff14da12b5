"""Training the judge: its loss by hand, what the base model shows it, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import normal
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.batch import Conditioning, ImagePairs
from stepalign.clip import preprocess, tokenize
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.sampler import DDIM
from stepalign.train_judge import (
    FrozenBase,
    JudgeTraining,
    linear_schedule,
    pair_accuracy,
    preference_loss,
    score_pairs,
    train_judge,
)


class Denoiser(torch.nn.Module):
    """A base model without noise to remove, x̂0 = x_t / sqrt(abar) · number, that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.shown: list[tuple[Tensor, Tensor, Conditioning]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.shown.append((x_t, t, cond))
        return self.number * x_t


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser()


@pytest.fixture
def base(denoiser: Denoiser, sampler: DDIM) -> FrozenBase:
    """Latents are pictures, and a prompt's embedding is its length."""

    def encode(prompts: list[str]) -> Conditioning:
        return Conditioning(torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None])

    return FrozenBase(encode, lambda images: images, lambda x_0: x_0, denoiser, sampler)


@pytest.fixture
def model(tiny_clip: CLIPModel) -> StepAwarePreferenceModel:
    torch.manual_seed(0)
    return StepAwarePreferenceModel.from_clip(tiny_clip)


def pairs_of(images: Tensor, label: Tensor | None = None, prompts: list[str] | None = None) -> ImagePairs:
    b = len(images)
    label = torch.ones(b) if label is None else label
    return ImagePairs(prompts or ["a dot"] * b, images, label, torch.ones(b))


def bright_or_dark(num: int, seed: int) -> ImagePairs:
    """A bright and a dark picture in either order; people prefer the bright one, and every fifth pair is a tie."""
    label = (normal(num, seed=seed) > 0).float()
    signs = torch.stack([2 * label - 1, 1 - 2 * label], 1)[:, :, None, None, None]
    images = 0.5 * signs + 0.1 * normal(num, 2, 3, 32, 32, seed=seed + 1, dtype=torch.float32)
    return pairs_of(images, torch.where(torch.arange(num) % 5 == 0, 0.5, label))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("scores", "label", "loss"), [((1, 0), 1, 0.3133), ((1, 0), 0, 1.3133), ((1, 0), 0.5, 0.1201), ((2, 2), 0.5, 0.0)]
)
def test_the_loss_by_hand(scores: tuple[float, float], label: float, loss: float) -> None:
    """-ln σ(1) = .3133, -ln σ(-1) = 1.3133; a tie: their mean .8133 less ln 2 = .6931 is .1201, and 0 when equal."""
    assert preference_loss(column(*scores)[None], column(label), column(1)).item() == pytest.approx(loss, abs=5e-5)


def test_a_tie_is_at_its_optimum_when_the_scores_are_equal() -> None:
    scores = column(22.3, 22.3)[None].requires_grad_()
    preference_loss(scores, column(0.5), column(1)).backward()
    assert scores.grad.tolist() == [[0, 0]]


def test_a_pair_counts_by_its_weight() -> None:
    """(3 · .3133 + 1 · 1.3133) / 4 = .5633."""
    scores = torch.stack([column(1, 0), column(0, 1)])
    assert preference_loss(scores, column(1, 1), column(3, 1)).item() == pytest.approx(0.5633, abs=5e-5)


def test_the_loss_of_a_split_batch_sums_to_that_of_the_whole() -> None:
    """Each part's weighted mean times its share of the weights: 6/21 and 15/21."""
    scores, label, weight = normal(6, 2), column(1, 0, 0.5, 1, 0, 1), column(1, 2, 3, 4, 5, 6)
    parts = [preference_loss(scores[part], label[part], weight[part]) for part in (slice(3), slice(3, 6))]
    whole = preference_loss(scores, label, weight).item()
    assert (parts[0] * 6 / 21 + parts[1] * 15 / 21).item() == pytest.approx(whole, abs=1e-12)


def test_the_loss_does_not_depend_on_which_image_comes_first() -> None:
    scores, label, weight = normal(6, 2), column(1, 0, 0.5, 1, 0, 1), column(1, 2, 3, 4, 5, 6)
    swapped = preference_loss(scores.flip(1), 1 - label, weight)
    assert swapped.item() == pytest.approx(preference_loss(scores, label, weight).item(), abs=1e-12)


def test_both_images_of_a_pair_get_one_noise_and_every_pair_its_own(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser, sampler: DDIM
) -> None:
    """x_t - sqrt(abar) x_0 = sqrt(1 - abar) noise, of unit variance after division."""
    images = normal(3, 2, 3, 32, 32, dtype=torch.float32)
    t = torch.tensor([0, 501, 999])
    score_pairs(model, tokenizer, base, pairs_of(images), t, torch.Generator().manual_seed(0))
    ((x_t, seen, _),) = denoiser.shown
    assert seen.tolist() == [0, 0, 501, 501, 999, 999]
    abar = sampler.alpha_bar(t)[:, None, None, None, None].float()
    noise = (x_t.unflatten(0, (3, 2)) - abar.sqrt() * images) / (1 - abar).sqrt()
    torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-3)
    assert (noise[0, 0] - noise[1, 0]).square().mean().item() == pytest.approx(2, rel=0.1)
    assert noise.square().mean().item() == pytest.approx(1, rel=0.1)


def test_each_image_is_denoised_under_its_own_prompt(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser
) -> None:
    pairs = pairs_of(normal(3, 2, 3, 32, 32, dtype=torch.float32), prompts=["a dot", "a red ring", "a dot"])
    score_pairs(model, tokenizer, base, pairs, torch.tensor([1, 2, 3]), torch.Generator().manual_seed(0))
    assert denoiser.shown[0][2].tokens.flatten().tolist() == [5, 5, 10, 10, 5, 5]


def test_a_pairs_scores_are_those_of_its_images_its_prompt_and_its_timestep(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser, sampler: DDIM
) -> None:
    """Each image's alone, from x̂0 = x_t / sqrt(abar); the modulations are random, so that the timestep tells."""
    for layer in model.vision_model.encoder.layers:
        torch.nn.init.normal_(layer.adaLN_modulation[1].weight)
    prompts, t = ["a dot", "a red ring", "a dot"], torch.tensor([0, 501, 951])
    pairs = pairs_of(normal(3, 2, 3, 32, 32, dtype=torch.float32), prompts=prompts)
    with torch.no_grad():
        scores = score_pairs(model, tokenizer, base, pairs, t, torch.Generator().manual_seed(0))
        ((x_t, _, _),) = denoiser.shown
        for i, j in product(range(3), range(2)):
            x_0 = x_t[2 * i + j] / sampler.alpha_bar(t)[i].sqrt()
            image = model.image_features(preprocess(x_0[None] / 2 + 0.5, 32), t[i : i + 1])
            text = model.text_features(tokenize(tokenizer, model.config, prompts[i : i + 1]))
            assert scores[i, j].item() == pytest.approx(model.score(image, text).item(), abs=1e-4)


def test_gradients_reach_every_part_of_the_judge_and_not_the_base(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser
) -> None:
    model.requires_grad_(True)
    pairs = bright_or_dark(4, 0)
    scores = score_pairs(model, tokenizer, base, pairs, torch.full((4,), 251), torch.Generator().manual_seed(0))
    preference_loss(scores, pairs.label, pairs.weight).backward()
    assert denoiser.number.grad is None
    for part in (
        "logit_scale",
        "text_projection.weight",
        "visual_projection.weight",
        "vision_model.embeddings.class_embedding",
    ):
        assert model.get_parameter(part).grad.any()
    for layer in model.vision_model.encoder.layers:
        assert layer.adaLN_modulation[1].weight.grad.any()


def trained(model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, steps: int = 60) -> float:
    config = JudgeTraining(num_steps=steps, learning_rate=3e-3, num_warmup_steps=5, weight_decay=0.01)
    return train_judge(model, tokenizer, base=base, draw=lambda step: bright_or_dark(16, 10 + 2 * step), config=config)


def test_training_teaches_a_plain_preference(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase
) -> None:
    held_out = [bright_or_dark(50, 10_000), bright_or_dark(50, 10_002)]

    def accuracy(t: int) -> float:
        right, total = pair_accuracy(model, tokenizer, base=base, batches=held_out, timestep=t, seed=0)
        assert total == 80
        return right / total

    before = accuracy(251)
    loss = trained(model, tokenizer, base)
    assert before < 0.8
    assert accuracy(251) > 0.95
    assert loss < math.log(2)


def test_a_trained_judge_is_frozen_and_its_base_untouched(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser
) -> None:
    trained(model, tokenizer, base, steps=2)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert denoiser.number.grad is None
    assert all(t.min() >= 0 and t.max() <= 999 for _, t, _ in denoiser.shown)


def test_the_seed_decides_training_whatever_was_drawn_before(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, base: FrozenBase
) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = StepAwarePreferenceModel.from_clip(tiny_clip)
        torch.manual_seed(len(results))
        trained(model, tokenizer, base, steps=3)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_every_step_has_its_rate_and_a_clipped_gradient(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of warm-up, then down from 1 to 0 at the fifth: .5, 1, 1, 2/3, 1/3."""
    seen, step = [], torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *arguments: object) -> object:
        (group,) = self.param_groups
        norm = torch.nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
        seen.append((group["lr"], norm.item(), group["weight_decay"], len(group["params"])))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    config = JudgeTraining(num_steps=5, learning_rate=6e-4, num_warmup_steps=2, weight_decay=0.2, max_grad_norm=1e-3)
    train_judge(model, tokenizer, base=base, draw=lambda step: bright_or_dark(4, step), config=config)
    rates, norms, decays, sizes = zip(*seen, strict=True)
    assert rates == pytest.approx([3e-4, 6e-4, 6e-4, 4e-4, 2e-4], rel=1e-6)
    assert norms == pytest.approx([1e-3] * 5, rel=1e-2)
    assert set(decays) == {0.2}
    assert set(sizes) == {len(list(model.parameters()))}


def test_progress_is_reported_after_every_step_with_the_running_loss(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase
) -> None:
    rows, drawn = [], []

    def draw(step: int) -> ImagePairs:
        drawn.append(step)
        return bright_or_dark(4, step)

    config = JudgeTraining(num_steps=3, num_warmup_steps=1)
    loss = train_judge(model, tokenizer, base=base, draw=draw, config=config, progress=lambda *row: rows.append(row))
    assert drawn == [0, 1, 2]
    assert [step for step, _ in rows] == [1, 2, 3]
    assert rows[-1][1] == loss


def test_ties_are_left_out_of_the_accuracy(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase
) -> None:
    """Of five pairs with the same two pictures, labels 1 1 0 .5 .5: two right or one, of three."""
    images = normal(1, 2, 3, 32, 32, dtype=torch.float32).expand(5, -1, -1, -1, -1)
    pairs = pairs_of(images, torch.tensor([1, 1, 0, 0.5, 0.5]))
    denoised = replace(base, encode_images=lambda x: 1e4 * x, decode=lambda x: x / 1e4)
    right, total = pair_accuracy(model, tokenizer, base=denoised, batches=[pairs], timestep=0, seed=0)
    swapped = replace(pairs, images=images.flip(1))
    assert total == 3
    assert {right} | {pair_accuracy(model, tokenizer, base=denoised, batches=[swapped], timestep=0, seed=0)[0]} == {
        1,
        2,
    }


def test_accuracy_has_its_own_seeded_noise(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, base: FrozenBase, denoiser: Denoiser
) -> None:
    """The same seed shows the same noisy pictures, whatever was drawn between; another seed others."""
    batches = [bright_or_dark(5, 0), bright_or_dark(5, 0)]
    for seed in (7, 7, 8):
        pair_accuracy(model, tokenizer, base=base, batches=batches, timestep=501, seed=seed)
        torch.rand(3)
    first, second, third, fourth, fifth, _ = (x_t for x_t, _, _ in denoiser.shown)
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    assert not torch.equal(first, fifth)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (2, 0.75), (3, 1.0), (4, 1.0), (7, 0.5), (9, 1 / 6), (10, 0.0)])
def test_the_rate_warms_up_and_decays_linearly(step: int, rate: float) -> None:
    """Four steps of warm-up of ten: 1/4 at the first, 1 at the fourth and fifth, then (10 - step)/6. Without any, 1."""
    assert linear_schedule(step, 4, 10) == pytest.approx(rate, abs=1e-12)
    assert linear_schedule(0, 0, 10) == 1
