"""Scorers as metrics of tensors: what they are shown is what would have been saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import normal
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.protocols import Metric
from stepalign.evaluation.generation import to_pixels
from stepalign.scorers.image_metric import ImageMetric, to_pil
from stepalign.scorers.pickscore import PickScore


def images(num: int = 3, height: int = 32, width: int = 24) -> Float[Tensor, "b 3 h w"]:
    """Random images, a few values of them outside [0, 1]."""
    return normal(num, 3, height, width, dtype=torch.float32) * 0.3 + 0.5


def test_levels_by_hand() -> None:
    """255 times the value, rounded; a half to even as torch and diffusers round; red, green and blue per pixel."""
    values = torch.tensor([0.0, 1.0, 0.5, 0.5 / 255, 1.5 / 255, 254.4 / 255, -0.2, 1.2])
    image = to_pil(values.repeat(3, 1)[None, :, None] * torch.tensor([1.0, 0.0, 0.0])[:, None, None])[0]
    assert (image.mode, image.size) == ("RGB", (8, 1))
    assert [image.getpixel((x, 0)) for x in range(8)] == [(level, 0, 0) for level in (0, 255, 128, 0, 2, 254, 0, 255)]


def test_images_are_those_that_generation_saves(tmp_path: Path) -> None:
    """The same decoded images, there with values in [-1, 1]; a PNG keeps every level."""
    for ours, theirs in zip(to_pil(images()), to_pixels(images() * 2 - 1), strict=True):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
        ours.save(tmp_path / "image.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), np.asarray(ours))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_levels_are_found_in_single_precision(dtype: torch.dtype) -> None:
    """Whatever the images come in; in half precision 255 times a value would already be rounded."""
    image = images().to(dtype).requires_grad_()
    for ours, expected in zip(to_pil(image), to_pil(image.detach().float()), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_the_score_is_the_scorers_of_those_images(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    scorer, prompts = PickScore(tiny_clip, tokenizer), ["a dot", "a ring", "a dot"]
    metric = ImageMetric(scorer)
    assert isinstance(metric, Metric)
    assert torch.equal(metric(images(), prompts), scorer.score(to_pil(images()), prompts))
    assert not torch.equal(metric(images(), prompts), scorer(images().clamp(0, 1), prompts))


def test_what_the_scorer_refuses_is_refused(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="there are 3 images and 1 prompts"):
        ImageMetric(PickScore(tiny_clip, tokenizer))(images(), ["a dot"])
