"""Images of any mode, as the networks of scorers take them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn import an_image
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepalign.models.clip import CLIP_MEAN, CLIP_STD, Rounding, preprocess
from stepalign.scorers.preparation import as_tensor, check_pairs, checked_scores, clip_pixels


def translucent() -> Image.Image:
    """Two colours of a palette, the second half transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\xff\x80"
    return image


def test_a_tensor_has_channels_first_and_values_to_one() -> None:
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 15)
    tensor = as_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 2, 3), torch.float32)
    assert tensor[1, 1, 2].item() == pytest.approx(16 * 15 / 255)
    assert as_tensor(Image.new("L", (1, 1), 255)).tolist() == [[[1.0]]] * 3


SIZES = [(8, 8), (16, 24), (24, 16), (9, 30), (5, 6), (31, 12), (3, 4), (11, 8), (8, 11), (104, 152), (152, 104)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clips_pixels_are_a_resize_a_crop_and_a_scale_with_torchvisions_rounding(height: int, width: int) -> None:
    """Short side to 8, the long side truncated, half the margin rounded to even; in whole levels, as PIL resizes."""
    image = an_image(height, width)
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(8 * long / short)
    rows, columns = (new_long, 8) if width <= height else (8, new_long)
    small = image.resize((columns, rows), Image.Resampling.BICUBIC)
    top, left = round((rows - 8) / 2.0), round((columns - 8) / 2.0)
    cropped = np.array(small.crop((left, top, left + 8, top + 8)), dtype=np.float64) / 255
    expected = torch.from_numpy((cropped - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1)
    torch.testing.assert_close(clip_pixels([image], 8, "torchvision")[0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pickscores_pixels_are_those_of_transformers_processor(height: int, width: int) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    expected = processor([an_image(height, width)], return_tensors="pt").pixel_values
    actual = clip_pixels([an_image(height, width)], 8, "transformers")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 11), (11, 8), (8, 13), (15, 8)])
@pytest.mark.parametrize("rounding", ["torchvision", "transformers"])
def test_tensors_and_images_are_cropped_alike(height: int, width: int, rounding: Rounding) -> None:
    image = an_image(height, width)
    tensor = preprocess(as_tensor(image)[None], 8, rounding=rounding)
    torch.testing.assert_close(clip_pixels([image], 8, rounding), tensor, rtol=0, atol=1e-6)


def test_images_of_several_sizes_and_modes_make_one_batch() -> None:
    some_images = [an_image(8, 30), an_image(40, 20).convert("L"), translucent()]
    pixels = clip_pixels(some_images, 8, "torchvision")
    assert (pixels.shape, pixels.dtype) == ((3, 3, 8, 8), torch.float32)
    for image, row in zip(some_images, pixels, strict=True):
        assert torch.equal(clip_pixels([image], 8, "torchvision")[0], row)


def test_pairs_that_do_not_fit_are_refused() -> None:
    check_pairs(2, ["a", "a"])
    with pytest.raises(ValueError, match="there are no images"):
        check_pairs(0, [])
    with pytest.raises(ValueError, match="there are 1 images and 2 prompts"):
        check_pairs(1, ["a", "b"])


def test_scores_come_back_in_fp32_on_the_cpu_without_a_graph() -> None:
    scores = checked_scores(torch.ones(2, dtype=torch.float64, requires_grad=True) * 2, "one")
    assert (scores.tolist(), scores.dtype, scores.requires_grad) == ([2, 2], torch.float32, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_counted_and_named(value: float) -> None:
    with pytest.raises(ValueError, match="one gave 2 of 4 images no finite score, first image 1 of its batch"):
        checked_scores(torch.tensor([1.0, value, 2.0, value]), "one")
