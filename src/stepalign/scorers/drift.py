"""Distances between two sets of images: KID and CMMD, maximum mean discrepancies between features.

The distance from the base model's images is drift, from photographs quality; state which. Neither needs prompts or
pairs. KID (Binkowski et al., arXiv 1801.01401) replaces FID where images are few and is usually taken of
Inception features; CMMD (Jayasumana et al., arXiv 2401.09603) is taken of CLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.models.clip import CLIP_MEAN, CLIP_STD
from stepalign.scorers.features import ImageFeatures, Preparation
from stepalign.scorers.preparation import as_tensor

CMMD_NETWORK, CMMD_SIZE = "openai/clip-vit-large-patch14-336", 336
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
BLOCK = 2048
"""Rows of a kernel matrix computed at once: blocks of 32 MB in float64."""


@runtime_checkable
class Kernel(Protocol):
    """The kernel between every row of one matrix and every row of another."""

    def __call__(self, x: Float[Tensor, "m e"], y: Float[Tensor, "n e"]) -> Float[Tensor, "m n"]: ...


@dataclass(frozen=True, slots=True)
class KID:
    """The mean over random subsets of both sets, and their standard deviation, which is not the mean's error."""

    mean: float
    std: float


def polynomial_kernel(x: Float[Tensor, "m e"], y: Float[Tensor, "n e"]) -> Float[Tensor, "m n"]:
    """(x.y / e + 1)^3, KID's."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Float[Tensor, "m e"], y: Float[Tensor, "n e"]) -> Float[Tensor, "m n"]:
    """exp(-|x - y|² / (2 sigma²)) with sigma = 10, CMMD's."""
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared.clamp(min=0) / (2 * CMMD_SIGMA**2)).exp()


def mmd_squared(
    x: Float[Tensor, "m e"], y: Float[Tensor, "n _"], kernel: Kernel, *, biased: bool, block: int = BLOCK
) -> float:
    """The squared maximum mean discrepancy of two sets (Gretton et al. 2012), in float64.

    Equation 5, the biased estimate, counts every row's kernel with itself, is never negative, and is 0 between a set
    and itself. Equation 3, the unbiased one, leaves these out, can be negative, and is 0 on average between two samples
    of one distribution. No more than `block` rows are compared with as many at a time.
    """
    _check(x, y, at_least=1 if biased else 2)
    x, y = x.double(), y.double()
    within = [
        _kernel_sum(one, one, kernel, block) / len(one) ** 2
        if biased
        else (_kernel_sum(one, one, kernel, block) - _self_sum(one, kernel, block)) / (len(one) * (len(one) - 1))
        for one in (x, y)
    ]
    return sum(within) - 2 * _kernel_sum(x, y, kernel, block) / (len(x) * len(y))


def kid(
    x: Float[Tensor, "m e"], y: Float[Tensor, "n _"], *, subset_size: int = 1000, num_subsets: int = 100, seed: int = 0
) -> KID:
    """The kernel inception distance: `mmd_squared`, unbiased, over subsets sampled without replacement; not scaled.

    The means of runs with one `subset_size` compare. Raises ValueError when it is larger than either set.
    """
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size must be from 2 to {min(len(x), len(y))}, the smaller set; got {subset_size}")
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be at least 1, got {num_subsets}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        first, second = (one[rng.choice(len(one), subset_size, replace=False)] for one in (x, y))
        values.append(mmd_squared(first, second, polynomial_kernel, biased=False))
    return KID(float(np.mean(values)), float(np.std(values)))


def cmmd(x: Float[Tensor, "m e"], y: Float[Tensor, "n _"]) -> float:
    """CMMD of image embeddings, which it normalises: 1000 times the biased `mmd_squared` of a Gaussian kernel."""
    _check(x, y, at_least=1)
    first, second = (F.normalize(one.double(), dim=1) for one in (x, y))
    return CMMD_SCALE * mmd_squared(first, second, gaussian_kernel, biased=True)


def cmmd_features(
    name: str = CMMD_NETWORK,
    *,
    antialias: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageFeatures:
    """The network of CMMD's embeddings; its images are prepared by `cmmd_pixels`."""
    preparation = Preparation(
        f"RGB, bicubic {'with' if antialias else 'without'} antialias to {CMMD_SIZE} by {CMMD_SIZE} as a tensor, no "
        "crop, CLIP mean and std",
        lambda images: cmmd_pixels(images, antialias=antialias),
    )
    return ImageFeatures.from_pretrained(name, preparation=preparation, device=device, dtype=dtype)


def cmmd_pixels(
    images: list[Image.Image], size: int = CMMD_SIZE, *, antialias: bool = True
) -> Float[Tensor, "b 3 s s"]:
    """Whole images squeezed into a square, in floating point; values that overshoot [0, 1] are kept.

    With `antialias` they are resized as in the authors' code (jax.image.resize), without it as in its PyTorch port,
    sayakpaul/cmmd-pytorch; the distances differ.
    """
    resized = [
        F.interpolate(as_tensor(image)[None], (size, size), mode="bicubic", align_corners=False, antialias=antialias)
        for image in images
    ]
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (torch.cat(resized) - mean) / std


def _kernel_sum(x: Float[Tensor, "m e"], y: Float[Tensor, "n e"], kernel: Kernel, block: int) -> float:
    return sum(float(kernel(one, other).sum()) for one in x.split(block) for other in y.split(block))


def _self_sum(x: Float[Tensor, "m e"], kernel: Kernel, block: int) -> float:
    """The mean of every row's kernel with itself."""
    return sum(float(kernel(one, one).diagonal().sum()) for one in x.split(block))


def _check(x: Float[Tensor, "m e"], y: Float[Tensor, "n _"], *, at_least: int) -> None:
    """Refuse sets that are too small, of two widths, or not finite."""
    for name, one in (("first", x), ("second", y)):
        if len(one) < at_least:
            raise ValueError(f"the {name} set has {len(one)} images, it needs at least {at_least}")
        if not one.isfinite().all():
            raise ValueError(f"the {name} set has features that are no finite numbers")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the sets have features {x.shape[1]} and {y.shape[1]} wide; they must come from one network")
