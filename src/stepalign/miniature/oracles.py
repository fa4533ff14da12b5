"""The miniature's held-out oracles: image quality and caption agreement, measured on pixels by fixed rules.

Neither takes part in any training. They are metrics: `(images, prompts) -> scores`, larger is better, in [0, 1].
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepalign.miniature import world

Images = Float[Tensor, "b 3 32 32"]


def aesthetic(images: Images, prompts: list[str]) -> Float[Tensor, " b"]:
    """Image quality, independent of content: the mean of saturation, contrast, sharpness and cleanness.

    Saturation is the chroma of the 5 % most colourful pixels; contrast the widest span of a colour channel;
    sharpness the steepest 3 % of gradients relative to that span; cleanness falls with the median local deviation.
    Each is scaled so that a perfectly rendered image measures about 1, and cut to [0, 1].
    """
    images = images.float()
    flat = images.flatten(2)
    chroma = (flat.amax(1) - flat.amin(1)).topk(51, dim=1).values.mean(1)
    span = flat.quantile(0.98, dim=2) - flat.quantile(0.02, dim=2)
    widest, channel = span.max(1)
    plane = images[torch.arange(len(images)), channel]
    dx = plane[:, 1:-1, 2:] - plane[:, 1:-1, :-2]
    dy = plane[:, 2:, 1:-1] - plane[:, :-2, 1:-1]
    slope = (torch.sqrt(dx**2 + dy**2) / 2).flatten(1).topk(27, dim=1).values.mean(1)
    grey = images.mean(1, keepdim=True)
    spread = (F.avg_pool2d(grey**2, 3, 1) - F.avg_pool2d(grey, 3, 1) ** 2).clamp_min(0).sqrt()
    grain = spread.flatten(1).median(1).values
    parts = torch.stack([chroma / 0.8, widest / 0.85, slope / widest.clamp_min(0.05) / 0.45, 1 - grain / 0.04])
    return parts.clamp(0, 1).mean(0)


def alignment(images: Images, prompts: list[str]) -> Float[Tensor, " b"]:
    """The share of the prompt's four attributes (size, colour, shape, background) that the image shows."""
    return (recognise(images) == world.attributes_of(prompts).to(images.device)).float().mean(1)


def recognise(images: Images) -> Int[Tensor, "b 4"]:
    """The recognised attributes of an image, in the order of `world.ATTRIBUTES`.

    The background is the median of the border, the shape's colour the mean of what differs most from it; both are
    named by the nearest colour under any degradation the world can apply. Size and shape are those of the best
    correlated template over positions and blurs.
    """
    images = images.float().cpu()
    border = torch.cat([images[:, :, :2].flatten(2), images[:, :, -2:].flatten(2)], 2)
    border = torch.cat([border, images[:, :, :, :2].flatten(2), images[:, :, :, -2:].flatten(2)], 2)
    background = border.median(2).values
    distance = (images - background[:, :, None, None]).norm(dim=1).flatten(1)
    core = (distance >= distance.quantile(0.96, dim=1, keepdim=True)).float()[:, None]
    colour = (images.flatten(2) * core).sum(2) / core.sum(2)
    size, shape = _match_templates(distance)
    return torch.stack([size, _name(colour, world.COLOURS), shape, _name(background, world.BACKGROUNDS)], 1)


def _name(rgb: Float[Tensor, "b 3"], table: dict[str, tuple[float, float, float]]) -> Int[Tensor, " b"]:
    saturations = torch.linspace(0.35, 1, 6)
    contrasts = torch.linspace(0.45, 1, 6)
    grid = torch.cartesian_prod(torch.arange(len(table)), torch.arange(6), torch.arange(6))
    pure = torch.tensor([*table.values()])[grid[:, 0]]
    degraded = world.degrade_colour(pure, saturations[grid[:, 1]], contrasts[grid[:, 2]])
    return grid[torch.cdist(rgb, degraded).argmin(1), 0]


def _match_templates(distance: Float[Tensor, "b n"]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    sizes, shapes = range(len(world.SIZES)), range(len(world.SHAPES))
    offsets = (-0.15, -0.075, 0.0, 0.075, 0.15)
    kinds = list(product(sizes, shapes, offsets, offsets, (0.5, 1.2, 2.0)))
    size, shape, dx, dy, blur = (torch.tensor(column) for column in zip(*kinds, strict=True))
    radius = torch.tensor([*world.SIZES.values()])[size]
    templates = world.coverage(shape, radius, torch.stack([dx, dy], 1))[:, None]
    templates = world.gaussian_blur(templates, blur).flatten(1)
    best = (_standardise(distance) @ _standardise(templates).T).argmax(1)
    return size[best], shape[best]


def _standardise(rows: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    centred = rows - rows.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
