"""PickScore's `score`: images as published numbers had them. Its reward on tensors is in test_judges.py."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import normal
from drawn import an_image, blotches
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from stepalign.core.protocols import Metric, Scorer
from stepalign.models.clip import tokenize
from stepalign.scorers.pickscore import PickScore

PROMPTS = ["a red ring", "a dot", "two blue squares on a green background"]
SIZES = [(40, 48), (64, 20), (32, 35)]


@pytest.fixture
def scorer(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> PickScore:
    return PickScore(tiny_clip, tokenizer)


@pytest.fixture
def folder(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path) -> Path:
    tiny_clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def some_images() -> list[Image.Image]:
    return [blotches(height, width, seed=seed) for seed, (height, width) in enumerate(SIZES)]


def test_the_score_is_clips_logit_on_what_its_processor_makes(
    scorer: PickScore, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    """CLIPProcessor's settings are its defaults, but for the size."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(some_images(), return_tensors="pt").pixel_values
    with torch.no_grad():
        found = tiny_clip(input_ids=tokenize(tokenizer, tiny_clip.config, PROMPTS), pixel_values=pixels)
    scores = scorer.score(some_images(), PROMPTS)
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, found.logits_per_text.diagonal(), rtol=0, atol=1e-5)


def test_prompts_are_embedded_once_for_images_and_tensors(scorer: PickScore) -> None:
    scorer.score(some_images(), ["a dot", "a ring", "a dot"])
    scorer(torch.rand(2, 3, 32, 32), ["a ring", "a dot"])
    assert scorer.num_texts == 2


def test_images_and_tensors_are_prepared_differently(scorer: PickScore) -> None:
    """With antialias and in whole levels, and without either; alike where nothing is resized."""
    for size, same in (((80, 80), False), ((32, 32), True), ((32, 35), True), ((35, 32), True)):
        image = an_image(*size)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        gap = (scorer.score([image], ["a dot"]) - scorer(tensor, ["a dot"])).abs().item()
        assert (gap < 1e-5) == same


def derivative(scorer: PickScore, images: Tensor, direction: Tensor, *, step: float) -> float:
    ahead, behind = (scorer(images + sign * step * direction, PROMPTS[:1]) for sign in (1, -1))
    return ((ahead - behind) / (2 * step)).item()


def test_the_reward_has_the_right_derivative(scorer: PickScore) -> None:
    """Along a direction, against the difference quotient, as far as fp32 allows."""
    images = (0.2 + 0.6 * torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer(images, PROMPTS[:1]).sum(), images)
    assert (gradient[..., 4:36] != 0).all()
    direction = gradient / gradient.norm() + 0.2 * normal(1, 3, 32, 40, dtype=torch.float32) / 60
    with torch.no_grad():
        expected = derivative(scorer, images, direction, step=0.03)
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=0.02)


def test_the_record_says_how_the_numbers_came_about(folder: Path) -> None:
    record = PickScore.from_pretrained(str(folder)).record
    assert (record.name, record.weights, record.scale, record.needs_prompt) == (
        "pickscore",
        "clip",
        "exp(logit_scale) cos",
        True,
    )
    assert record.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert record.preprocessing == (
        "RGB, PIL bicubic to 32 on the short side, centre crop (odd margins halved down, as transformers does), CLIP "
        "mean and std; prompts as they are, without ftfy, for transformers' tokenizer"
    )
    half = PickScore.from_pretrained(str(folder), dtype=torch.float16).record
    assert half.preprocessing == f"{record.preprocessing}; towers in float16"


def test_a_model_in_memory_is_known_by_its_tensors(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    one, other = CLIPModel(tiny_clip.config), CLIPModel(tiny_clip.config)
    records = [PickScore(model, tokenizer).record for model in (one, other, one)]
    assert records[0] == records[2]
    assert records[0].sha256 != records[1].sha256
    assert records[0].weights == "in memory"


def test_old_files_with_position_ids_load(folder: Path, scorer: PickScore) -> None:
    """PickScore_v1's file holds them."""
    path = folder / "model.safetensors"
    old = load_file(path) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(old, path, metadata={"format": "pt"})
    scores = PickScore.from_pretrained(str(folder)).score(some_images(), PROMPTS)
    torch.testing.assert_close(scores, scorer.score(some_images(), PROMPTS), rtol=0, atol=1e-5)


def test_it_is_a_scorer_and_a_metric(scorer: PickScore) -> None:
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Metric)


# Bad input


def test_missing_weights_and_tokenizers_are_named(folder: Path, tmp_path: Path, tiny_clip: CLIPModel) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for visual_projection\.weight"):
        PickScore.from_pretrained(str(folder))
    tiny_clip.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="tokenizer"):
        PickScore.from_pretrained(str(tmp_path / "bare"))


@pytest.mark.hub
@pytest.mark.skipif("STEPALIGN_PICKSCORE" not in os.environ, reason="STEPALIGN_PICKSCORE: a folder with PickScore_v1")
def test_the_released_model_scores_in_its_range_and_prefers_the_right_caption() -> None:
    """Published means lie between 20 and 24; a plain red square is no photograph, but red."""
    scorer = PickScore.from_pretrained(os.environ["STEPALIGN_PICKSCORE"])
    square = Image.new("RGB", (512, 512), "red")
    right, wrong = scorer.score([square] * 2, ["a plain red square", "a photo of two dogs in the snow"]).tolist()
    assert right > wrong + 1
    assert 12 < wrong < right < 26
