"""Diversity of the images of one prompt, from features of any network.

Alignment can reduce a model to nearly the same image for every seed: generate k >= 2 per prompt, from the same seeds
before and after, and compare. Means over prompts can be paired like scores.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def pairwise_distance(features: Float[Tensor, "n k e"]) -> Float[Tensor, " n"]:
    """The mean of 1 - cos over the k (k - 1)/2 pairs of each prompt's images, in float64: 0 for copies."""
    cosines = _cosines(features)
    k = cosines.shape[1]
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (k * (k - 1))


def vendi_score(features: Float[Tensor, "n k e"]) -> Float[Tensor, " n"]:
    """The Vendi score of each prompt: its effective number of images, in float64; 1 for copies, k for orthogonal
    features.

    exp(-sum l ln l) over the eigenvalues l of the matrix of cosines divided by k (Friedman and Dieng 2022).
    """
    cosines = _cosines(features)
    shares = torch.linalg.eigvalsh(cosines / cosines.shape[1]).clamp(min=0)
    return torch.special.entr(shares).sum(1).exp()


def _cosines(features: Float[Tensor, "n k e"]) -> Float[Tensor, "n k k"]:
    """The cosine of every pair of a prompt's images; raises ValueError for features of length zero."""
    n, k, _ = features.shape
    if n == 0 or k < 2:
        raise ValueError(f"diversity needs prompts with at least two images each, got {n} prompts with {k}")
    lengths = features.double().norm(dim=2, keepdim=True)
    bad = (~(lengths.isfinite() & (lengths > 0))).nonzero()
    if len(bad):
        prompt, image = bad[0, :2].tolist()
        raise ValueError(
            f"the features of image {image} of prompt {prompt} are all zero or no finite numbers; {len(bad)} of "
            f"{n * k} are"
        )
    unit = features.double() / lengths
    return unit @ unit.mT
