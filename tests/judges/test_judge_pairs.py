"""A judge's scores of pairs: what the base model makes of them, what the judge sees, and who agrees with whom."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, stable_diffusion_schedule
from judge_world import LATENT_SHAPE, PROMPTS, Base, make_scorer
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.core.batch import Conditioning
from stepalign.judges.pairs import FrozenBase, JudgeScorer, agreement
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.models.base import BaseModel
from stepalign.models.clip import preprocess_decoded, tokenize
from stepalign.models.policy import GuidedNetwork

T = torch.tensor([0, 501, 951])


def lengths(prompts: list[str]) -> Conditioning:
    return Conditioning(torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None])


def latents(b: int = 3, n: int = 2) -> Tensor:
    return normal(b, n, *LATENT_SHAPE, dtype=torch.float32)


def noise(b: int = 3) -> Tensor:
    return normal(b, *LATENT_SHAPE, seed=1, dtype=torch.float32)


def scored(scorer: JudgeScorer, *, t: Tensor = T, prompts: list[str] = PROMPTS[:3]) -> Tensor:
    return scorer.scores(latents(), lengths(prompts), scorer.text_features(prompts), t, noise())


# The base model


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_estimates_are_the_decoded_x_0_of_one_guided_prediction(kind: str) -> None:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) z; eps: x̂0 = (x_t - sqrt(1 - abar) p) / sqrt(abar), decoded to twice it;
    v: x̂0 = sqrt(abar) x_t - sqrt(1 - abar) p. The prediction here is a tenth of the prompt's length."""
    schedule = stable_diffusion_schedule(prediction_type=kind)

    def denoise(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return 0.1 * cond.tokens[:, :, :, None].expand_as(x_t).to(x_t.dtype)

    base = FrozenBase(denoise, lambda x_0: 2 * x_0, schedule)
    x_0, z = normal(3, 2, *LATENT_SHAPE), normal(3, *LATENT_SHAPE, seed=1)
    found = base.estimates(x_0, lengths(["a", "abc", "abcde"]), T, z)
    abar = schedule.alphas_cumprod[T]
    for i, j in product(range(3), range(2)):
        signal, spread, prediction = abar[i].sqrt(), (1 - abar[i]).sqrt(), (0.1, 0.3, 0.5)[i]
        x_t = signal * x_0[i, j] + spread * z[i]
        estimate = (x_t - spread * prediction) / signal if kind == "epsilon" else signal * x_t - spread * prediction
        torch.testing.assert_close(found[i, j], 2 * estimate, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_samples_of_a_prompt_are_denoised_in_one_batch_under_one_noise(n: int) -> None:
    base = Base()
    estimates = base.frozen().estimates(torch.zeros(3, n, *LATENT_SHAPE), lengths(PROMPTS[:3]), T, noise())
    (shown,) = base.shown
    assert estimates.shape == (3, n, *LATENT_SHAPE)
    assert shown.t.tolist() == [t for t in T.tolist() for _ in range(n)]
    assert shown.tokens.flatten().tolist() == [len(prompt) for prompt in PROMPTS[:3] for _ in range(n)]
    x_t = shown.x_t.unflatten(0, (3, n))
    assert torch.equal(x_t, x_t[:, :1].expand_as(x_t))
    assert len(base.decoded) == 1


def test_a_real_base_is_never_run_with_gradients(tiny_sd: BaseModel, tiny_spm_folder: Path) -> None:
    network = copy.deepcopy(tiny_sd.network).requires_grad_(True)
    with_grad = []
    network.register_forward_hook(lambda *_: with_grad.append(torch.is_grad_enabled()))
    guided = GuidedNetwork(network, negative=tiny_sd.negative(), guidance_scale=5.0)
    scorer = make_scorer(tiny_spm_folder)
    scorer.base = FrozenBase(guided, tiny_sd.decode, tiny_sd.schedule(20))
    x_0 = normal(2, 2, *tiny_sd.latent_shape, dtype=torch.float32)
    z = normal(2, *tiny_sd.latent_shape, seed=1, dtype=torch.float32)
    prompts = ["a cat", "two boats"]
    text = scorer.text_features(prompts)
    scorer.scores(x_0, tiny_sd.encode(prompts), text, torch.tensor([37, 963]), z).sum().backward()
    assert with_grad == [False]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert scorer.model.visual_projection.weight.grad.any()


# The judge


def test_text_features_are_the_models_of_each_prompt(tiny_spm_folder: Path) -> None:
    scorer = make_scorer(tiny_spm_folder)
    found = scorer.text_features(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = scorer.model.text_features(tokenize(scorer.tokenizer, scorer.model.config, [prompt]))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("order", ["clamp-first", "resize-first"])
def test_a_pairs_scores_are_those_of_its_images_its_prompt_and_its_timestep(tiny_spm_folder: Path, order: str) -> None:
    """Each image's alone, preprocessed as the model was trained, from x̂0 = x_t / sqrt(abar)."""
    base = Base()
    scorer = make_scorer(tiny_spm_folder, base)
    model = scorer.model
    model.preprocessing = order
    found = scored(scorer)
    estimates = base.decoded[0][0].unflatten(0, (3, 2))
    for i, j in product(range(3), range(2)):
        image = model.image_features(preprocess_decoded(estimates[i, j][None], 32, order=order), T[i : i + 1])
        text = model.text_features(tokenize(scorer.tokenizer, model.config, PROMPTS[i : i + 1]))
        assert found[i, j].item() == pytest.approx(model.score(image, text).item(), abs=1e-4)


def test_scores_change_with_the_timestep_the_prompt_and_the_preprocessing(tiny_spm_folder: Path) -> None:
    scorer = make_scorer(tiny_spm_folder)
    found = scored(scorer)
    assert not torch.allclose(scored(scorer, t=T + 7), found, atol=1e-3)
    assert not torch.allclose(scored(scorer, prompts=PROMPTS[2:]), found, atol=1e-3)
    scorer.model.preprocessing = "resize-first"
    assert not torch.allclose(scored(scorer), found, atol=1e-3)


def test_gradients_reach_the_judge_and_the_text_but_not_the_base(tiny_spm_folder: Path) -> None:
    base = Base()
    scorer = make_scorer(tiny_spm_folder, base)
    text = F.normalize(normal(3, 8, dtype=torch.float32), dim=1).requires_grad_()
    scorer.scores(latents(), lengths(PROMPTS[:3]), text, T, noise()).square().sum().backward()
    assert text.grad.any()
    assert base.number.grad is None
    assert scorer.model.logit_scale.grad.any()
    for layer in scorer.model.vision_model.encoder.layers:
        assert layer.adaLN_modulation[1].weight.grad.any()


def test_half_precision_gives_float32_scores_near_those_of_full(tiny_spm_folder: Path) -> None:
    full, half = (scored(make_scorer(tiny_spm_folder, precision=precision)) for precision in ("fp32", "bf16"))
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float())
    assert 0 < (full - half).abs().max() < 0.02 * full.abs().max() + 0.1


def test_work_is_counted_until_it_is_taken(tiny_spm_folder: Path) -> None:
    scorer = make_scorer(tiny_spm_folder)
    scored(scorer)
    scored(scorer)
    assert scorer.drain_counters() == {"judge_texts": 6, "judge_images": 12, "base_samples": 12}
    assert scorer.drain_counters() == {}
    scorer.text_features(["a dot"])
    assert scorer.drain_counters() == {"judge_texts": 1}


def test_a_tokenizer_of_another_text_tower_is_refused(tiny_spm_folder: Path, tokenizer: CLIPTokenizer) -> None:
    model = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)
    model.config.text_config.vocab_size = len(tokenizer) - 1
    with pytest.raises(ValueError, match="the judge has a tokenizer of"):
        JudgeScorer(model, tokenizer, Base().frozen())


# Agreement


@pytest.mark.parametrize(
    ("scores", "label", "right"),
    [
        *(((2.0, 1.0), 1.0, 1.0), ((2.0, 1.0), 0.0, 0.0), ((1.0, 2.0), 0.0, 1.0), ((1.0, 2.0), 1.0, 0.0)),
        *(((3.0, 3.0), 1.0, 0.5), ((3.0, 3.0), 0.0, 0.5)),
    ],
)
def test_a_judge_is_right_when_it_orders_a_pair_as_people_do(
    scores: tuple[float, float], label: float, right: float
) -> None:
    assert agreement(torch.tensor([scores]), torch.tensor([label])).tolist() == [right]


def test_nobody_is_right_or_wrong_about_a_tie() -> None:
    found = agreement(torch.tensor([[2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), torch.tensor([0.5, 0.5, 1.0]))
    assert found.isnan().tolist() == [True, True, False]
