"""Judges and the metric they compare with: scores, caches and counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import normal
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.choices import Preprocessing
from stepalign.core.protocols import Judge, Metric
from stepalign.judges.image import ImageJudge
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.models.clip import preprocess, preprocess_decoded, tokenize
from stepalign.runs.assemble import assemble
from stepalign.runs.recipes import load_recipe
from stepalign.scorers.pickscore import PickScore
from stepalign.support.config import change

PROMPTS = ["a red ring", "a dot", "a red ring", "two blue squares", "a dot"]
T = torch.tensor([701, 501, 251, 1, 0])


class Decoder:
    """A VAE whose latents are the images; it keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, x_0: Tensor) -> Tensor:
        self.shown.append(x_0)
        return x_0


@pytest.fixture
def decode() -> Decoder:
    return Decoder()


@pytest.fixture
def model(tiny_spm_folder: Path) -> StepAwarePreferenceModel:
    return StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)


def latents(b: int = 5, seed: int = 0) -> Tensor:
    return normal(b, 3, 32, 32, seed=seed, dtype=torch.float32)


def judged(judge: Judge, x_0: Tensor, t: Tensor = T, prompts: list[str] = PROMPTS) -> Tensor:
    """The noisy sample is of no concern to these judges, so it is NaN."""
    return judge(torch.full_like(x_0, torch.nan), x_0, t, prompts)


def test_the_judges_score_is_the_models_on_the_decoded_image_at_its_timestep(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decoder
) -> None:
    scores = judged(StepAwareJudge(model, tokenizer, decode), latents())
    pixels = preprocess_decoded(latents(), 32)
    for i, prompt in enumerate(PROMPTS):
        text = model.text_features(tokenize(tokenizer, model.config, [prompt]))
        expected = model.score(model.image_features(pixels[i : i + 1], T[i : i + 1]), text)
        assert scores[i].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("kept", "asked", "used"),
    [
        ("clamp-first", None, "clamp-first"),
        ("resize-first", None, "resize-first"),
        ("resize-first", "clamp-first", "clamp-first"),
        ("clamp-first", "resize-first", "resize-first"),
    ],
)
def test_images_are_prepared_as_the_model_was_trained_unless_another_way_is_asked_for(
    tiny_clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    decode: Decoder,
    kept: Preprocessing,
    asked: Preprocessing | None,
    used: Preprocessing,
) -> None:
    """Of 48 pixels a side and far outside of [-1, 1], so that the orders differ."""
    model = StepAwarePreferenceModel.from_clip(tiny_clip, preprocessing=kept)
    x_0 = normal(5, 3, 48, 48, dtype=torch.float32)
    scores = judged(StepAwareJudge(model, tokenizer, decode, preprocessing=asked), x_0)
    text = model.text_features(tokenize(tokenizer, model.config, PROMPTS))
    one, other = (
        model.score(model.image_features(preprocess_decoded(x_0, 32, order=order), T), text)
        for order in (used, *({"clamp-first", "resize-first"} - {used}))
    )
    torch.testing.assert_close(scores, one, rtol=0, atol=1e-5)
    assert (scores - other).abs().max() > 1e-3


@pytest.mark.parametrize(("asked", "used"), [(None, "resize-first"), ("clamp-first", "clamp-first")])
def test_a_recipe_asks_for_a_preprocessing_or_leaves_it_to_the_judge(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path, asked: str | None, used: str
) -> None:
    StepAwarePreferenceModel.from_clip(tiny_clip, preprocessing="resize-first").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    changes = {"judge": {"path": str(tmp_path), "preprocessing": asked}}
    judge = assemble(change(load_recipe("gradspo-miniature"), changes)).judge.judge
    assert isinstance(judge, StepAwareJudge)
    assert judge.preprocessing == used


def test_the_judge_sees_the_timestep(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decoder
) -> None:
    judge = StepAwareJudge(model, tokenizer, decode)
    assert (judged(judge, latents()) - judged(judge, latents(), 0 * T))[:3].abs().min() > 1e-4


def test_scores_are_fp32_and_need_no_gradient(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decoder
) -> None:
    scores = judged(StepAwareJudge(model.to(torch.bfloat16), tokenizer, decode), latents())
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_text_tower_runs_once_per_distinct_prompt(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded, text_features = [], model.text_features

    def recorded(ids: Tensor) -> Tensor:
        embedded.extend(ids.tolist())
        return text_features(ids)

    monkeypatch.setattr(model, "text_features", recorded)
    judge = StepAwareJudge(model, tokenizer, decode)
    for prompts in (PROMPTS, PROMPTS, ["a dot", "a line", "a dot", "a line", "a red ring"]):
        judged(judge, latents(), prompts=prompts)
    assert judge.num_texts == len(embedded) == 4


@pytest.mark.parametrize("max_batch", [None, 1, 2, 5, 100])
def test_each_image_is_decoded_once_in_parts_of_max_batch(
    model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, decode: Decoder, max_batch: int | None
) -> None:
    judge = StepAwareJudge(model, tokenizer, decode, max_batch=max_batch)
    judged(judge, latents())
    judged(judge, latents(seed=1))
    assert torch.equal(torch.cat(decode.shown), torch.cat([latents(), latents(seed=1)]))
    assert max(map(len, decode.shown)) == min(max_batch or 5, 5)


@pytest.mark.parametrize("max_batch", [1, 2, 3])
def test_max_batch_does_not_change_scores(
    model: StepAwarePreferenceModel, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, decode: Decoder, max_batch: int
) -> None:
    for whole, parted in (
        (StepAwareJudge(model, tokenizer, decode), StepAwareJudge(model, tokenizer, decode, max_batch=max_batch)),
        (
            ImageJudge(PickScore(tiny_clip, tokenizer), decode),
            ImageJudge(PickScore(tiny_clip, tokenizer), decode, max_batch=max_batch),
        ),
    ):
        torch.testing.assert_close(judged(parted, latents()), judged(whole, latents()), rtol=0, atol=1e-5)


def test_pickscore_is_clips_logits(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = PickScore(tiny_clip, tokenizer)(images, PROMPTS)
    ids = tokenize(tokenizer, tiny_clip.config, PROMPTS)
    logits = tiny_clip(
        input_ids=ids, pixel_values=preprocess(images, 32, rounding="transformers")
    ).logits_per_text.diagonal()
    torch.testing.assert_close(scores, logits, rtol=1e-5, atol=1e-5)


def test_pickscore_loads_from_a_folder_and_embeds_each_prompt_once(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    tiny_clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    metric, images = PickScore.from_pretrained(str(tmp_path)), torch.rand(5, 3, 40, 48)
    for _ in range(2):
        scores = metric(images, PROMPTS)
    assert metric.num_texts == 3
    torch.testing.assert_close(scores, PickScore(tiny_clip, tokenizer)(images, PROMPTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_pickscore_in_half_precision_keeps_its_scale_and_scores_in_fp32(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    metric, images = PickScore.from_pretrained(str(tmp_path), dtype=dtype), normal(5, 3, 40, 48, dtype=torch.float32)
    assert torch.equal(metric.model.logit_scale, tiny_clip.logit_scale)
    assert metric.model.visual_projection.weight.dtype == dtype
    scores = metric(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, PickScore(tiny_clip, tokenizer)(images, PROMPTS), rtol=0, atol=0.1)


def test_an_untrained_judge_scores_as_pickscore_does(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, decode: Decoder
) -> None:
    """Also where the decoded image leaves [-1, 1], as normal numbers do."""
    untrained = StepAwareJudge(StepAwarePreferenceModel.from_clip(tiny_clip), tokenizer, decode)
    plain = ImageJudge(PickScore(tiny_clip, tokenizer), decode)
    torch.testing.assert_close(judged(untrained, latents()), judged(plain, latents()), rtol=0, atol=1e-5)


def test_the_image_judge_hands_its_metric_clamped_images(decode: Decoder) -> None:
    """x̂0 of -3, -1, 0, 1, 3 is shown as 0, 0, .5, 1, 1."""
    judge = ImageJudge(lambda images, prompts: images.mean((1, 2, 3)), decode, max_batch=2)
    x_0 = torch.tensor([-3.0, -1, 0, 1, 3]).view(5, 1, 1, 1).expand(-1, 3, 4, 4)
    assert judged(judge, x_0).tolist() == [0, 0, 0.5, 1, 1]


def test_judges_and_metric_keep_to_their_protocols(
    model: StepAwarePreferenceModel, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, decode: Decoder
) -> None:
    metric = PickScore(tiny_clip, tokenizer)
    assert isinstance(metric, Metric)
    assert isinstance(ImageJudge(metric, decode), Judge)
    assert isinstance(StepAwareJudge(model, tokenizer, decode), Judge)
