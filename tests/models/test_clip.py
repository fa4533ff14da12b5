"""How decoded images become what CLIP's vision tower takes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.models.clip import (
    CLIP_MEAN,
    CLIP_STD,
    Rounding,
    crop_start,
    preprocess,
    preprocess_decoded,
    resized_size,
    resolve_folder,
    tokenize,
)


def undone(processed: Tensor) -> Tensor:
    """Without CLIP's mean and std."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return processed * std + mean


def some_images(b: int, height: int, width: int) -> Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(0))


def prepared(images: Tensor, size: int) -> Tensor:
    return preprocess(images, size, rounding="torchvision")


def test_every_channel_has_clips_mean_and_std() -> None:
    """(.5 - .4815)/.2686 = .0690, (.5 - .4578)/.2613 = .1614, (.5 - .4082)/.2758 = .3328."""
    processed = prepared(torch.full((1, 3, 4, 4), 0.5), 4)
    assert processed[0, :, 0, 0].tolist() == pytest.approx([0.0690, 0.1614, 0.3328], abs=1e-4)


def test_values_are_clamped_before_and_after_resizing() -> None:
    """Columns 3, 3, -2, -2 become 1, 1, 0, 0 first; what bicubic overshoots by then is clamped away."""
    images = torch.tensor([3.0, 3.0, -2.0, -2.0]).repeat(2).expand(1, 3, 8, 8)
    resized = F.interpolate(images.clamp(0, 1), size=(5, 5), mode="bicubic", align_corners=False)
    assert resized.max() > 1.01
    torch.testing.assert_close(undone(prepared(images, 5)), resized.clamp(0, 1), rtol=0, atol=1e-6)


def test_halving_weighs_four_pixels_of_each_line_bicubically() -> None:
    """Centres fall midway between pixels: weights -.09375, .59375, .59375, -.09375 (a = -.75), without antialiasing.

    Output column j sees columns 2j - 1 to 2j + 2, so a bright column 5 is the third that 2 sees and the first of 3's.
    The others are at .1, so that nothing is clamped.
    """
    images = torch.full((1, 3, 16, 16), 0.1)
    images[..., 5] = 0.9
    row = undone(prepared(images, 8))[0, 0, 4]
    assert row.tolist() == pytest.approx([0.1, 0.1, 0.1 + 0.8 * 0.59375, 0.1 - 0.8 * 0.09375, *4 * [0.1]], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (8, 13), (13, 8)])
@pytest.mark.parametrize(("rounding", "start"), [("torchvision", 2), ("transformers", 2), ("spo", 2)])
def test_an_oblong_image_keeps_its_middle(height: int, width: int, rounding: Rounding, start: int) -> None:
    """Of 12 columns the 8 from 2 on; of 13 also those from 2 on, since half of 5 is nearer to the even 2."""
    images = some_images(1, height, width)
    kept = slice(start, start + 8)
    expected = images[:, :, kept] if height > width else images[:, :, :, kept]
    torch.testing.assert_close(undone(preprocess(images, 8, rounding=rounding)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 11), (11, 8)])
@pytest.mark.parametrize(("rounding", "start"), [("torchvision", 2), ("transformers", 1), ("spo", 2)])
def test_a_margin_of_three_is_halved_to_one_or_two(height: int, width: int, rounding: Rounding, start: int) -> None:
    """round(1.5) = 2, 3 // 2 = 1."""
    images = some_images(1, height, width)
    kept = slice(start, start + 8)
    expected = images[:, :, kept] if height > width else images[:, :, :, kept]
    torch.testing.assert_close(undone(preprocess(images, 8, rounding=rounding)), expected, rtol=0, atol=1e-6)


def test_gradients_flow_to_what_is_seen_and_not_clamped() -> None:
    images = some_images(1, 8, 12).requires_grad_()
    prepared(images, 8).square().sum().backward()
    assert (images.grad[..., 2:10] != 0).all()
    assert not images.grad[..., :2].any()
    assert not images.grad[..., 10:].any()


def test_half_precision_images_are_processed_in_fp32() -> None:
    images = some_images(1, 10, 10).half()
    torch.testing.assert_close(prepared(images, 8), prepared(images.float(), 8), rtol=0, atol=0)


def test_long_prompts_are_cut_at_the_text_towers_length(tokenizer: CLIPTokenizer, tiny_clip: CLIPModel) -> None:
    length = tiny_clip.config.text_config.max_position_embeddings
    ids = tokenize(tokenizer, tiny_clip.config, ["a red ring " * 50, "a dot"])
    assert ids.shape == (2, length)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_a_name_that_is_neither_folder_nor_repository_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        resolve_folder("not a name")


# Both of SPO's released programs, on decoded images around [-1, 1]


def released_training(images: Tensor, size: int) -> Tensor:
    """Of square images, in SPO's training of its judge, before mean and std."""
    pixels = (images / 2 + 0.5).clamp(0, 1).float()
    return F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def released_scorer(images: Tensor, size: int) -> Tensor:
    """Of SPO's judge while a policy trains, before mean and std; the VAE is in fp16 there."""
    images = images.half()
    scale = size / min(images.shape[-2:])
    new_size = int(images.shape[-2] * scale + 0.5), int(images.shape[-1] * scale + 0.5)
    resized = F.interpolate(images, size=new_size, mode="bicubic", align_corners=False)
    top, left = (round((extent - size) / 2.0) for extent in new_size)  # torchvision's CenterCrop
    return (resized[:, :, top : top + size, left : left + size] / 2 + 0.5).clamp(0, 1).float()


@pytest.mark.parametrize("side", [5, 8, 11, 16, 21, 64])
def test_clamping_first_is_the_released_training(side: int) -> None:
    images = normal(2, 3, side, side, dtype=torch.float32)
    pixels = undone(preprocess_decoded(images, 8))
    torch.testing.assert_close(pixels, released_training(images, 8), rtol=0, atol=1e-6)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 32), (33, 20), (9, 6), (5, 7), (832 // 8, 1216 // 8)])
def test_resizing_first_is_the_released_scorer(height: int, width: int) -> None:
    images = normal(2, 3, height, width, dtype=torch.float32)
    pixels = undone(preprocess_decoded(images, 8, order="resize-first"))
    torch.testing.assert_close(pixels, released_scorer(images, 8), rtol=0, atol=1e-6)


def test_resizing_first_works_on_decoded_values_and_clamps_what_resizing_makes() -> None:
    """A column of 5 in -1 is 3 in 0 after /2 + .5: 3 · .59375 = 1.78 becomes 1 and 3 · -.09375 becomes 0."""
    images = torch.full((1, 3, 16, 16), -1.0)
    images[..., 5] = 5
    first, second = (
        undone(preprocess_decoded(images, 8, order=order))[0, 0, 4] for order in ("resize-first", "clamp-first")
    )
    assert first.tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=1e-6)
    assert second.tolist() == pytest.approx([0, 0, 0.59375, 0, 0, 0, 0, 0], abs=1e-6)


# Sizes and crops, by the formulas of the programs


SIDES = (1, 3, 64, 223, 224, 225, 300, 448, 511, 512, 640, 683, 768, 832, 896, 1000, 1024, 1152, 1216, 1536)


@pytest.mark.parametrize("size", [8, 224, 336])
def test_torchvision_and_transformers_truncate_the_long_side(size: int) -> None:
    """`new_short, new_long = size, int(size * long / short)`, in both."""
    for height, width in itertools.product(SIDES, SIDES):
        short, long = (width, height) if width <= height else (height, width)
        new_short, new_long = size, int(size * long / short)
        expected = (new_long, new_short) if width <= height else (new_short, new_long)
        assert resized_size(height, width, size, "torchvision") == expected
        assert resized_size(height, width, size, "transformers") == expected


@pytest.mark.parametrize("size", [8, 224, 336])
def test_spos_scorer_rounds_the_long_side(size: int) -> None:
    for height, width in itertools.product(SIDES, SIDES):
        scale = size / min(height, width)
        expected = int(height * scale + 0.5), int(width * scale + 0.5)
        assert resized_size(height, width, size, "spo") == expected
        assert min(expected) == size


@pytest.mark.parametrize("extent", range(224, 240))
def test_half_an_odd_margin_is_rounded_to_even_or_floored(extent: int) -> None:
    """torchvision's `int(round((image_height - crop_height) / 2.0))` and transformers' `(height - crop) // 2`."""
    assert crop_start(extent, 224, "torchvision") == round((extent - 224) / 2.0)
    assert crop_start(extent, 224, "spo") == round((extent - 224) / 2.0)
    assert crop_start(extent, 224, "transformers") == (extent - 224) // 2
