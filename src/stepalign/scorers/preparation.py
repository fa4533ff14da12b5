"""Image preprocessing of the scorers, exactly as for the published numbers; images of any mode."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.models.clip import CLIP_MEAN, CLIP_STD, Rounding, crop_start, resized_size
from stepalign.support.images import as_rgb

MARGINS: dict[Rounding, str] = {
    "torchvision": "odd margins halved to even, as torchvision does",
    "transformers": "odd margins halved down, as transformers does",
}
"""The centre crop, for a record."""


def as_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An image in fp32 with values in [0, 1], made RGB by `as_rgb`."""
    return torch.from_numpy(np.array(as_rgb(image))).movedim(2, 0).float() / 255


def check_pairs(num_images: int, prompts: list[str]) -> None:
    """Raise ValueError for an empty list, and unless there is one prompt per image."""
    if num_images == 0:
        raise ValueError("there are no images to score")
    if num_images != len(prompts):
        raise ValueError(f"there are {num_images} images and {len(prompts)} prompts; give one prompt per image")


def checked_scores(scores: Float[Tensor, " b"], name: str) -> Float[Tensor, " b"]:
    """A scorer's numbers in fp32 on the CPU; raises ValueError for scores that are not finite."""
    scores = scores.detach().float().cpu()
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} gave {len(bad)} of {len(scores)} images no finite score, first image {bad[0]} of its batch; "
            "its weights are damaged, or their precision is too low"
        )
    return scores


def describe_preparation(size: int, rounding: Rounding) -> str:
    """The preprocessing of `clip_pixels` in words, for a record."""
    return f"RGB, PIL bicubic to {size} on the short side, centre crop ({MARGINS[rounding]}), CLIP mean and std"


def clip_pixels(images: list[Image.Image], size: int, rounding: Rounding) -> Float[Tensor, "b 3 s s"]:
    """Images as CLIP's vision tower takes them, with PIL, as in the papers: see `describe_preparation`."""
    return normalised([resize_and_crop(image, size, size, rounding) for image in images], CLIP_MEAN, CLIP_STD)


def resize_and_crop(image: Image.Image, short_side: int, size: int, rounding: Rounding) -> Image.Image:
    """The middle of an image resized to `short_side` on its short side, made RGB by `as_rgb`; a square of `size`."""
    rgb = as_rgb(image)  # first, since it can turn it
    rows, columns = resized_size(rgb.height, rgb.width, short_side, rounding)
    top, left = (crop_start(extent, size, rounding) for extent in (rows, columns))
    resized = rgb.resize((columns, rows), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def normalised(
    images: list[Image.Image], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "b 3 s s"]:
    """Images of one size in fp32, in [0, 1], normalised by a mean and a standard deviation per channel."""
    shift, scale = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (torch.stack([as_tensor(image) for image in images]) - shift) / scale
