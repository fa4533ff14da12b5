"""How decoded images become what CLIP's vision tower takes."""

from __future__ import annotations

import pytest
import torch
from conftest import normal
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.clip import CLIP_MEAN, CLIP_STD, preprocess, resolve_folder, tokenize


def undone(processed: Tensor) -> Tensor:
    """Without CLIP's mean and std."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return processed * std + mean


def pictures(b: int, height: int, width: int) -> Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_every_channel_has_clips_mean_and_std() -> None:
    """(.5 - .4815)/.2686 = .0690, (.5 - .4578)/.2613 = .1614, (.5 - .4082)/.2758 = .3328."""
    processed = preprocess(torch.full((1, 3, 4, 4), 0.5), 4)
    assert processed[0, :, 0, 0].tolist() == pytest.approx([0.0690, 0.1614, 0.3328], abs=1e-4)


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    images = pictures(2, 8, 8)
    torch.testing.assert_close(undone(preprocess(images, 8)), images, rtol=0, atol=1e-6)


def test_values_are_clamped_before_resizing() -> None:
    """Columns 3, 3, -2, -2 become 1, 1, 0, 0 first; resized first, the overshoot would be clamped afterwards."""
    images = torch.tensor([3.0, 3.0, -2.0, -2.0]).repeat(2).expand(1, 3, 8, 8)
    processed = preprocess(images, 5)
    torch.testing.assert_close(processed, preprocess(images.clamp(0, 1), 5), rtol=0, atol=0)
    assert undone(processed).max() > 1.01


def test_halving_weighs_four_pixels_of_each_line_bicubically() -> None:
    """Centres fall midway between pixels: weights -.09375, .59375, .59375, -.09375 (a = -.75), without antialiasing.

    Output column j sees columns 2j - 1 to 2j + 2, so a bright column 5 is the third that 2 sees and the first of 3's.
    """
    images = torch.zeros(1, 3, 16, 16)
    images[..., 5] = 1
    row = undone(preprocess(images, 8))[0, 0, 4]
    assert row.tolist() == pytest.approx([0, 0, 0.59375, -0.09375, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (8, 13), (13, 8)])
def test_an_oblong_image_keeps_its_middle(height: int, width: int) -> None:
    """Of 12 columns the 8 from 2 on; of 13 also those from 2 on."""
    images = pictures(1, height, width)
    kept = images[:, :, 2:10] if height > width else images[:, :, :, 2:10]
    torch.testing.assert_close(undone(preprocess(images, 8)), kept, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (20, 33), (9, 6)])
def test_an_oblong_image_is_resized_by_its_short_side(height: int, width: int) -> None:
    """A ramp along the long side stays centred: the middle of the picture is the middle of the result."""
    long = torch.linspace(0, 1, max(height, width))
    images = (long if width > height else long[:, None]).expand(1, 3, height, width)
    processed = undone(preprocess(images, 8))
    assert processed.shape == (1, 3, 8, 8)
    assert processed.mean().item() == pytest.approx(0.5, abs=0.05)
    share = min(height, width) / max(height, width)
    spread = (processed[0, 0, 7, 7] - processed[0, 0, 0, 0]).item()
    assert spread == pytest.approx(share * 7 / 8, abs=0.1)


def test_gradients_flow_to_what_is_seen_and_not_clamped() -> None:
    images = pictures(1, 8, 12).requires_grad_()
    preprocess(images, 8).square().sum().backward()
    assert (images.grad[..., 2:10] != 0).all()
    assert not images.grad[..., :2].any()
    assert not images.grad[..., 10:].any()


def test_half_precision_images_are_processed_in_fp32() -> None:
    images = pictures(1, 10, 10).half()
    torch.testing.assert_close(preprocess(images, 8), preprocess(images.float(), 8), rtol=0, atol=0)


def test_long_prompts_are_cut_at_the_text_towers_length(tokenizer: CLIPTokenizer, tiny_clip: CLIPModel) -> None:
    length = tiny_clip.config.text_config.max_position_embeddings
    ids = tokenize(tokenizer, tiny_clip.config, ["a red ring " * 50, "a dot"])
    assert ids.shape == (2, length)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_a_text_feature_does_not_depend_on_the_prompts_beside_it(
    tokenizer: CLIPTokenizer, tiny_clip: CLIPModel
) -> None:
    prompts = ["a dot", "two blue squares on a green background"]
    with torch.no_grad():
        together, alone = (
            tiny_clip.get_text_features(input_ids=tokenize(tokenizer, tiny_clip.config, given)).pooler_output
            for given in (prompts, prompts[:1])
        )
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-6)


def test_a_name_that_is_neither_folder_nor_repository_is_refused() -> None:
    with pytest.raises(ValueError, match="no local folder"):
        resolve_folder("not a name")


def test_extreme_values_do_not_reach_the_tower() -> None:
    bounds = preprocess(100 * normal(1, 3, 8, 8, dtype=torch.float32), 8)
    assert undone(bounds).min() >= -1e-6
    assert undone(bounds).max() <= 1 + 1e-6


# The order of SPO's released scorer


def test_resizing_first_clamps_what_resizing_makes() -> None:
    """A column of 3 beside 0: 3 · .59375 = 1.78 becomes 1 and 3 · -.09375 becomes 0; clamped first it is 1 before."""
    images = torch.zeros(1, 3, 16, 16)
    images[..., 5] = 3
    first, second = (undone(preprocess(images, 8, order=order))[0, 0, 4] for order in ("resize-first", "clamp-first"))
    assert first.tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=1e-6)
    assert second.tolist() == pytest.approx([0, 0, 0.59375, -0.09375, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 32), (20, 33), (9, 6)])
def test_both_orders_agree_closely_where_nothing_is_clamped(height: int, width: int) -> None:
    """As far as fp16 allows: 2^-11 of a value, and a few of its roundings in resizing."""
    images = 0.35 + 0.3 * pictures(2, height, width)
    one, other = (preprocess(images, 8, order=order) for order in ("clamp-first", "resize-first"))
    assert one.dtype == other.dtype == torch.float32
    torch.testing.assert_close(undone(other), undone(one), rtol=0, atol=2e-3)


def test_both_orders_differ_where_values_leave_the_range() -> None:
    images = normal(2, 3, 16, 16, dtype=torch.float32)
    difference = preprocess(images, 8) - preprocess(images, 8, order="resize-first")
    assert difference.abs().mean() > 0.1


def test_resizing_first_works_in_fp16_and_clamping_in_fp32() -> None:
    images = 2 * pictures(1, 8, 8) - 0.5
    expected = images.half().float().clamp(0, 1)
    assert not torch.equal(expected, images.clamp(0, 1))
    torch.testing.assert_close(undone(preprocess(images, 8, order="resize-first")), expected, rtol=0, atol=1e-6)
