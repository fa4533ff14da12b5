"""The miniature's world: captioned 32-pixel images of one shape, rendered at varying quality.

A caption names four attributes, for example "a large red circle on a navy background". How well the image is
made (sharpness, saturation, contrast, grain) is never in the caption: a model that learns this world generates good
and bad images alike, and preferences can teach it to generate the good ones.

Shapes in annotations: b images, 3 channels, h = w = 32 pixels, values in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PIXELS = 32
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = {"small": 0.42, "large": 0.72}
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.00),
    "yellow": (0.95, 0.90, 0.10),
    "green": (0.10, 0.70, 0.15),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.10, 0.25, 0.95),
    "purple": (0.55, 0.10, 0.80),
    "pink": (1.00, 0.35, 0.70),
}
BACKGROUNDS = {
    "white": (0.97, 0.97, 0.97),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.03, 0.03, 0.03),
    "navy": (0.05, 0.10, 0.35),
    "brown": (0.40, 0.22, 0.08),
    "teal": (0.00, 0.40, 0.40),
}
ATTRIBUTES = (("size", len(SIZES)), ("colour", len(COLOURS)), ("shape", len(SHAPES)), ("background", len(BACKGROUNDS)))
NUM_HELD_OUT = 216


@dataclass(frozen=True, slots=True)
class Scenes:
    """Content of b images, as indices into the tables above, and their qualities."""

    size: Int[Tensor, " b"]
    colour: Int[Tensor, " b"]
    shape: Int[Tensor, " b"]
    background: Int[Tensor, " b"]
    centre: Float[Tensor, "b 2"]
    """Offset of the shape from the middle, in half image widths."""
    quality: Float[Tensor, "b 4"]
    """Sharpness, saturation, contrast and cleanness, in [0, 1]; 1 is best."""

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    def attributes(self) -> Int[Tensor, "b 4"]:
        """The captioned attributes, in the order of ATTRIBUTES."""
        return torch.stack([self.size, self.colour, self.shape, self.background], 1)


def caption(attributes: tuple[int, int, int, int] | list[int]) -> str:
    """The caption of (size, colour, shape, background) indices."""
    size, colour, shape, background = attributes
    return f"a {[*SIZES][size]} {[*COLOURS][colour]} {SHAPES[shape]} on a {[*BACKGROUNDS][background]} background"


def _all_attributes() -> list[tuple[int, ...]]:
    return list(product(*(range(count) for _, count in ATTRIBUTES)))


_ATTRIBUTES_OF = {caption(list(attributes)): attributes for attributes in _all_attributes()}


def attributes_of(captions: list[str]) -> Int[Tensor, "b 4"]:
    """The attribute indices of captions of this world.

    Raises ValueError for a caption that is not of this world.
    """
    unknown = [text for text in captions if text not in _ATTRIBUTES_OF]
    if unknown:
        raise ValueError(f"not a caption of the miniature's world: {unknown[0]!r}; one is {caption([0, 0, 0, 0])!r}")
    return torch.tensor([_ATTRIBUTES_OF[text] for text in captions]).reshape(-1, 4)


def split_captions() -> tuple[list[str], list[str]]:
    """All 576 captions, in a fixed random order, as (training, held-out) captions."""
    captions = list(_ATTRIBUTES_OF)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [captions[i] for i in order]
    return shuffled[NUM_HELD_OUT:], shuffled[:NUM_HELD_OUT]


def sample_scenes(attributes: Int[Tensor, "b 4"], generator: torch.Generator) -> Scenes:
    """Scenes with the given attributes, with random positions and qualities.

    The four qualities of an image go together: each is one uniform sample per image plus its own spread.
    """
    num = len(attributes)
    centre = (torch.rand(num, 2, generator=generator) * 2 - 1) * 0.15
    common = torch.rand(num, 1, generator=generator)
    quality = (common + 0.25 * torch.randn(num, 4, generator=generator)).clamp(0, 1)
    size, colour, shape, background = attributes.unbind(1)
    return Scenes(size, colour, shape, background, centre, quality)


def sample_attributes(num: int, generator: torch.Generator) -> Int[Tensor, "b 4"]:
    """Uniform random attributes."""
    columns = [torch.randint(count, (num,), generator=generator) for _, count in ATTRIBUTES]
    return torch.stack(columns, 1)


def coverage(
    shape: Int[Tensor, " b"], radius: Float[Tensor, " b"], centre: Float[Tensor, "b 2"]
) -> Float[Tensor, "b h w"]:
    """The shape's coverage of each pixel, from its signed distance, anti-aliased over one pixel."""
    axis = (torch.arange(PIXELS) + 0.5) * 2 / PIXELS - 1
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    r = radius[:, None, None]
    ax, ay = x.abs(), y.abs()
    distance = torch.sqrt(x**2 + y**2)
    arm = 0.36 * r
    by_shape = [
        distance - r,
        torch.maximum(ax, ay) - 0.86 * r,
        torch.maximum(ax * math.cos(math.pi / 6) - y * 0.5 - 0.5 * r, y - 0.62 * r),
        (ax + ay - 1.15 * r) / math.sqrt(2),
        torch.minimum(torch.maximum(ax - r, ay - arm), torch.maximum(ay - r, ax - arm)),
        (distance - 0.76 * r).abs() - 0.26 * r,
    ]
    signed = torch.zeros(len(shape), PIXELS, PIXELS)
    for index, values in enumerate(by_shape):
        signed = torch.where((shape == index)[:, None, None], values, signed)
    return (0.5 - signed * PIXELS / 2).clamp(0, 1)


def gaussian_blur(images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Each image blurred with its own sigma in pixels, edges repeated."""
    num, channels, height, width = images.shape
    reach = 6
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None].clamp_min(1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, num * channels, height, width)
    padded = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=num * channels)
    return F.conv2d(rows, kernel[:, None, :, None], groups=num * channels).reshape(images.shape)


def degrade_colour(
    rgb: Float[Tensor, "b 3 *rest"], saturation: Float[Tensor, " b"], contrast: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 *rest"]:
    """Colours pulled towards their own grey (saturation) and then towards middle grey (contrast); 1 keeps them."""
    shape = (-1,) + (1,) * (rgb.ndim - 1)
    grey = rgb.mean(1, keepdim=True)
    saturated = grey + (rgb - grey) * saturation.reshape(shape)
    return 0.5 + (saturated - 0.5) * contrast.reshape(shape)


def render(scenes: Scenes, generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """The images of scenes; the generator decides the grain only."""
    sharpness, saturation, contrast, cleanness = scenes.quality.unbind(1)
    radius = torch.tensor([*SIZES.values()])[scenes.size]
    mask = coverage(scenes.shape, radius, scenes.centre)[:, None]
    colour = torch.tensor([*COLOURS.values()])[scenes.colour][:, :, None, None]
    background = torch.tensor([*BACKGROUNDS.values()])[scenes.background][:, :, None, None]
    image = background + (colour - background) * mask
    image = degrade_colour(image, 0.35 + 0.65 * saturation, 0.45 + 0.55 * contrast)
    image = gaussian_blur(image, 0.3 + 1.7 * (1 - sharpness))
    grain = torch.randn(len(scenes), 1, PIXELS, PIXELS, generator=generator)
    grain = gaussian_blur(grain, torch.ones(len(scenes))) * 3.5
    return (image + 0.07 * (1 - cleanness)[:, None, None, None] * grain).clamp(0, 1)


def sample_pairs(
    captions: list[str], generator: torch.Generator, *, change: float = 0.35
) -> tuple[Scenes, Scenes, Float[Tensor, " b"]]:
    """Two scenes per caption and the annotator's label for the first: 1 preferred, 0 not, .5 undecided.

    With probability `change` each attribute group of a scene is resampled, so that images do not always show
    the caption. The annotator is generic, as Pick-a-Pic's are: it weighs the share of attributes shown against the
    mean quality, adds logistic noise of its own and calls small differences a tie. It knows the scenes'
    parameters and uses no oracle.
    """
    wanted = attributes_of(captions)

    def one() -> tuple[Scenes, Tensor]:
        resample = torch.rand(len(captions), 1, generator=generator) < change
        which = torch.rand(len(captions), 4, generator=generator) < 0.5
        shown = torch.where(resample & which, sample_attributes(len(captions), generator), wanted)
        scenes = sample_scenes(shown, generator)
        return scenes, 4 * (shown == wanted).float().mean(1) + 4 * scenes.quality.mean(1)

    first, first_utility = one()
    second, second_utility = one()
    uniform = torch.rand(len(captions), generator=generator).clamp(1e-6, 1 - 1e-6)
    difference = first_utility - second_utility + 0.3 * torch.logit(uniform)
    label = torch.where(difference.abs() < 0.15, 0.5, (difference > 0).float())
    return first, second, label
