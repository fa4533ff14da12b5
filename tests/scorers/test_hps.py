"""HPS v2.0 and v2.1: letter-boxed images, cleaned prompts, 100 cos."""

from __future__ import annotations

import ftfy
import numpy as np
import pytest
import torch
from conftest import normal
from drawn import an_image
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.models.clip import CLIP_MEAN, CLIP_STD, tokenize
from stepalign.scorers.hps import HPS, letter_box

PROMPTS = ["a red ring", "a dot", "a red ring"]


def undone(pixels: Tensor) -> Tensor:
    """Without CLIP's mean and std."""
    mean, std = (torch.tensor(value, dtype=pixels.dtype)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return pixels * std + mean


def images(b: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scorer(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> HPS:
    return HPS(tiny_clip, tokenizer, version="v2.1")


# The letter-box


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(4, 8, 2, 0), (8, 4, 0, 2), (8, 5, 0, 1), (5, 8, 1, 0), (8, 8, 0, 0)],
)
def test_an_image_of_the_right_long_side_gets_black_bars_and_keeps_its_pixels(
    height: int, width: int, top: int, left: int
) -> None:
    """Of 3 rows to fill, 1 goes above and 2 below. The bars are 0 before CLIP's mean and std."""
    given = images(2, height, width) + 0.1
    boxed = undone(letter_box(given, 8, antialias=True))
    assert boxed.shape == (2, 3, 8, 8)
    inside = boxed[:, :, top : top + height, left : left + width]
    torch.testing.assert_close(inside, given, rtol=0, atol=1e-6)
    outside = boxed.clone()
    outside[:, :, top : top + height, left : left + width] = 0
    assert outside.abs().max() < 1e-6
    assert (inside > 0.05).all()


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(32, 64, 4, 8), (64, 27, 8, 3), (3, 6, 4, 8), (7, 9, 6, 8)]
)
def test_the_long_side_decides_and_sizes_are_rounded(height: int, width: int, rows: int, columns: int) -> None:
    """27 of 64 columns become 27/8 = 3.4, so 3; 7 rows of 9 become 56/9 = 6.2, so 6."""
    boxed = undone(letter_box(torch.ones(1, 3, height, width), 8, antialias=True))[0, 0]
    assert int((boxed[4] > 0.5).sum()) == columns
    assert int((boxed[:, 4] > 0.5).sum()) == rows


def test_nothing_of_an_image_is_cut_off() -> None:
    """A column at each end of a wide image is seen; a centre crop would lose both."""
    given = torch.zeros(1, 3, 16, 64)
    given[..., :4], given[..., -4:] = 1, 1
    row = undone(letter_box(given, 16, antialias=True))[0, 0, 8]
    assert row[0] > 0.8
    assert row[-1] > 0.8
    assert row[4:12].abs().max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(1, 900), (900, 1)])
def test_an_image_too_narrow_to_halve_keeps_a_line(height: int, width: int) -> None:
    boxed = undone(letter_box(torch.ones(1, 3, height, width), 8, antialias=True))
    assert boxed.sum().item() == pytest.approx(3 * 8, abs=1e-4)


def test_without_antialias_four_pixels_of_each_line_count() -> None:
    """Centres fall midway: weights -.09375, .59375, .59375, -.09375 (a = -.75), as torchvision before 0.17."""
    given = torch.zeros(1, 3, 16, 16)
    given[..., 5] = 1
    row = undone(letter_box(given, 8, antialias=False))[0, 0, 4]
    assert row.tolist() == pytest.approx([0, 0, 0.59375, -0.09375, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(40, 24, 16, 10), (24, 40, 10, 16), (30, 30, 16, 16)])
def test_with_antialias_it_is_pils_bicubic_on_numbers(height: int, width: int, rows: int, columns: int) -> None:
    given = images(1, height, width)
    boxed = undone(letter_box(given, 16, antialias=True))[0]
    top, left = (16 - rows) // 2, (16 - columns) // 2
    for channel in range(3):
        expected = Image.fromarray(given[0, channel].numpy()).resize((columns, rows), Image.Resampling.BICUBIC)
        inside = boxed[channel, top : top + rows, left : left + columns]
        torch.testing.assert_close(inside, torch.from_numpy(np.array(expected)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
def test_what_bicubic_overshoots_stays(antialias: bool) -> None:
    given = torch.zeros(1, 3, 20, 20)
    given[..., 10:] = 1
    boxed = undone(letter_box(given, 8, antialias=antialias))
    assert boxed.max() > 1.01
    assert boxed.min() < -0.01


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (3, 4), (6, 4)])
def test_the_letter_box_has_the_right_derivative(antialias: bool, height: int, width: int) -> None:
    given = normal(1, 3, height, width).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: letter_box(x, 6, antialias=antialias), given)


# The score


def test_the_score_is_a_hundred_cosines(scorer: HPS, tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    some_images = [an_image(40, 48), an_image(20, 64, seed=1), an_image(32, 32, seed=2)]
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in some_images]
    pixels = torch.cat([letter_box(tensor, 32, antialias=True) for tensor in tensors])
    with torch.no_grad():
        found = tiny_clip(input_ids=tokenize(tokenizer, tiny_clip.config, PROMPTS), pixel_values=pixels)
    expected = 100 * (found.image_embeds * found.text_embeds).sum(-1)
    scores = scorer.score(some_images, PROMPTS)
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_images_and_their_tensors_score_alike(scorer: HPS) -> None:
    """Unlike other scorers' rewards, this one prepares tensors as it prepares images."""
    one, other = an_image(50, 30), an_image(50, 30, seed=1)
    tensors = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in (one, other)])
    torch.testing.assert_close(scorer(tensors, PROMPTS[:2]), scorer.score([one, other], PROMPTS[:2]), rtol=0, atol=1e-4)


def test_antialias_changes_scores_and_is_recorded(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    with_it, without = (HPS(tiny_clip, tokenizer, version="v2.0", antialias=flag) for flag in (True, False))
    some_images = [an_image(96, 96), an_image(96, 96, seed=1)]
    difference = with_it.score(some_images, PROMPTS[:2]) - without.score(some_images, PROMPTS[:2])
    assert difference.abs().max() > 1e-3
    assert "with antialias to 32 on the long side" in with_it.record.preprocessing
    assert "without antialias" in without.record.preprocessing


def test_the_score_has_the_right_derivative(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    model = CLIPModel(tiny_clip.config)
    model.load_state_dict(tiny_clip.state_dict())
    scorer = HPS(model.double(), tokenizer, version="v2.0")
    given, direction = images(1, 9, 12).double().requires_grad_(), normal(1, 3, 9, 12)
    assert torch.autograd.gradcheck(
        lambda x: scorer(given + x * direction, ["a dot"]), torch.zeros((), dtype=torch.float64, requires_grad=True)
    )


# Prompts


def test_prompts_are_cleaned_and_the_record_says_by_what(scorer: HPS) -> None:
    """One text to HPS: it is embedded once."""
    prompts = ["\u201cA cat\u201d", '"a  cat"', "&amp;quot;a cat&amp;quot;"]
    scores = scorer.score([an_image(8, 8)] * 3, prompts)
    assert scorer.clip.num_texts == 1
    assert scores[0] == scores[1] == scores[2]
    assert "mended by ftfy" in scorer.record.preprocessing
    assert scorer.record.libraries["ftfy"] == ftfy.__version__
