"""CLIPScore: 100 max(cos, 0)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from drawn import blotches
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.protocols import Metric, Scorer
from stepalign.models.clip import tokenize
from stepalign.scorers.clip_score import CLIPScore
from stepalign.scorers.preparation import clip_pixels

PROMPTS = ["a red ring", "a dot", "two blue squares on a green background", "a ring"]


def some_images() -> list[Image.Image]:
    return [blotches(40, 48 + seed, seed=seed) for seed in range(4)]


@pytest.fixture
def opposed(tiny_clip: CLIPModel) -> CLIPModel:
    """The same model with its images turned round: every cosine changes its sign."""
    model = CLIPModel(tiny_clip.config).eval()
    model.load_state_dict(tiny_clip.state_dict())
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    return model


def test_the_score_is_a_hundred_cosines_and_never_negative(
    tiny_clip: CLIPModel, opposed: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    """Of an image and its opposite one scores 100 |cos| and the other 0."""
    with torch.no_grad():
        found = tiny_clip(
            input_ids=tokenize(tokenizer, tiny_clip.config, PROMPTS),
            pixel_values=clip_pixels(some_images(), 32, "torchvision"),
        )
    cosines = (found.image_embeds * found.text_embeds).sum(-1)
    plain, turned = (CLIPScore(model, tokenizer).score(some_images(), PROMPTS) for model in (tiny_clip, opposed))
    torch.testing.assert_close(plain, 100 * cosines.clamp(min=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(turned, 100 * (-cosines).clamp(min=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(plain + turned, 100 * cosines.abs(), rtol=0, atol=1e-4)
    assert cosines.abs().min() > 0.001


def test_gradients_flow_where_the_cosine_is_positive(
    tiny_clip: CLIPModel, opposed: CLIPModel, tokenizer: CLIPTokenizer
) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for model in (tiny_clip, opposed):
        scores = CLIPScore(model, tokenizer)(images, PROMPTS)
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        assert ((gradient != 0).flatten(1).any(1) == (scores > 0)).all()


def test_it_loads_from_a_folder_with_its_record(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tiny_clip.save_pretrained(tmp_path / "vit")
    tokenizer.save_pretrained(tmp_path / "vit")
    scorer = CLIPScore.from_pretrained(str(tmp_path / "vit"))
    assert (scorer.record.name, scorer.record.weights) == ("clip-score", "vit")
    assert scorer.record.scale == "100 max(cos, 0)"
    expected = CLIPScore(tiny_clip, tokenizer).score(some_images(), PROMPTS)
    torch.testing.assert_close(scorer.score(some_images(), PROMPTS), expected, rtol=0, atol=1e-4)
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Metric)


@pytest.mark.hub
@pytest.mark.skipif("STEPALIGN_CLIP" not in os.environ, reason="STEPALIGN_CLIP: a folder with clip-vit-large-patch14")
def test_the_released_model_prefers_the_right_caption() -> None:
    scorer = CLIPScore.from_pretrained(os.environ["STEPALIGN_CLIP"])
    square = Image.new("RGB", (512, 512), "red")
    right, wrong = scorer.score([square] * 2, ["a plain red square", "a photo of two dogs in the snow"]).tolist()
    assert 10 < wrong < right < 40
