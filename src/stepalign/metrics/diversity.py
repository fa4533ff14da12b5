"""How different the pictures of one prompt are, by features of any network.

Alignment can make a model draw one picture again and again: draw k >= 2 per prompt, from the same seeds before and
after, and compare. Means over prompts can be paired like scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from stepalign.clip import resolve_folder
from stepalign.identity import network_identity
from stepalign.metrics.aesthetic import precision_words
from stepalign.metrics.pictures import (
    MARGINS,
    clip_pixels,
    describe_preparation,
    normalised,
    resize_and_crop,
)
from stepalign.metrics.record import scorer_record
from stepalign.metrics.weights import load_clip_vision, load_strictly, model_type
from stepalign.protocols import ScorerRecord
from stepalign.tensor_files import weight_files

DINOV2_RESIZED, DINOV2_SIZE = 256, 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@runtime_checkable
class Extract(Protocol):
    """Pictures of any size and mode to a feature vector each."""

    def __call__(self, images: list[Image.Image]) -> Float[Tensor, "b e"]: ...


@dataclass(frozen=True, slots=True)
class Preparation:
    """How pictures become pixels for a network."""

    words: str
    """For the record."""
    pixels: Callable[[list[Image.Image]], Float[Tensor, "b 3 h w"]]


def pairwise_distance(features: Float[Tensor, "n k e"]) -> Float[Tensor, " n"]:
    """The mean of 1 - cos over the k (k - 1)/2 pairs of each prompt's pictures, in float64: 0 for copies."""
    cosines = _cosines(features)
    k = cosines.shape[1]
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (k * (k - 1))


def vendi_score(features: Float[Tensor, "n k e"]) -> Float[Tensor, " n"]:
    """How many different pictures each prompt has, in effect, in float64: 1 for copies, k for orthogonal features.

    exp(-sum l ln l) over the eigenvalues l of the matrix of cosines divided by k (Friedman and Dieng 2022).
    """
    cosines = _cosines(features)
    shares = torch.linalg.eigvalsh(cosines / cosines.shape[1]).clamp(min=0)
    return torch.special.entr(shares).sum(1).exp()


def prompt_features(groups: list[list[Image.Image]], extract: Extract) -> Float[Tensor, "n k e"]:
    """The features of each prompt's pictures; raises ValueError unless all prompts have equally many, two or more."""
    if not groups:
        raise ValueError("there are no prompts with pictures")
    sizes = sorted({len(group) for group in groups})
    if len(sizes) > 1 or sizes[0] < 2:
        raise ValueError(
            f"every prompt needs the same number of pictures, at least 2; they have {' or '.join(map(str, sizes))}"
        )
    return torch.stack([extract(group) for group in groups])


class ImageFeatures:
    """The features that a CLIP or a DINOv2 has of pictures: image embeddings, or the [CLS] token; not normalised."""

    def __init__(
        self, network: CLIPVisionModelWithProjection | Dinov2Model, preparation: Preparation, *, record: ScorerRecord
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.preparation = preparation
        self.record = record

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        preparation: Preparation | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ImageFeatures:
        """Load a folder or hub repository with a CLIP ("openai/clip-vit-large-patch14") or a DINOv2
        ("facebook/dinov2-base"); pictures are prepared as the network's authors did unless said otherwise.

        Raises ValueError for models of other types and weights that are missing.
        """
        folder = resolve_folder(name)
        kind = model_type(folder)
        if kind in ("clip", "clip_vision_model"):
            network = load_clip_vision(folder)
            usual = clip_preparation(network.config.image_size)
        elif kind == "dinov2":
            network = load_strictly(Dinov2Model, folder, other_parts=("classifier.",))
            usual = DINOV2_PREPARATION
        else:
            raise ValueError(f"{folder} holds a model of type {kind!r}; features come from 'clip' or 'dinov2'")
        preparation = preparation or usual
        record = scorer_record(
            f"{kind.removesuffix('_vision_model')}-features",
            weights=name,
            files=weight_files(folder),
            preprocessing=preparation.words + precision_words(dtype),
            scale="features",
            needs_prompt=False,
            parts=network_identity("network", network, network.config),
        )
        return cls(network.to(device, dtype), preparation, record=record)

    @torch.no_grad()
    def extract(self, images: list[Image.Image]) -> Float[Tensor, "b e"]:
        """One fp32 vector per picture, on the CPU."""
        pixels = self.preparation.pixels(images).to(self.network.device, self.network.dtype)
        found = self.network(pixel_values=pixels)
        features = found.last_hidden_state[:, 0] if self.network.config.model_type == "dinov2" else found.image_embeds
        return features.float().cpu()


def clip_preparation(size: int) -> Preparation:
    """As OpenAI's CLIP has it."""
    words = describe_preparation(size, "torchvision")
    return Preparation(words, lambda images: clip_pixels(images, size, "torchvision"))


def dinov2_pixels(images: list[Image.Image]) -> Float[Tensor, "b 3 224 224"]:
    """Pictures as DINOv2 was evaluated on them, with torchvision's rounding: `DINOV2_PREPARATION` says how."""
    cropped = [resize_and_crop(image, DINOV2_RESIZED, DINOV2_SIZE, "torchvision") for image in images]
    return normalised(cropped, IMAGENET_MEAN, IMAGENET_STD)


DINOV2_PREPARATION = Preparation(
    f"RGB, PIL bicubic to {DINOV2_RESIZED} on the short side, centre crop of {DINOV2_SIZE} ({MARGINS['torchvision']}), "
    "ImageNet mean and std",
    dinov2_pixels,
)


def _cosines(features: Float[Tensor, "n k e"]) -> Float[Tensor, "n k k"]:
    """Those of every pair of a prompt's pictures; raises ValueError where there is no direction to compare."""
    n, k, _ = features.shape
    if n == 0 or k < 2:
        raise ValueError(f"diversity needs prompts with at least two pictures each, got {n} prompts with {k}")
    lengths = features.double().norm(dim=2, keepdim=True)
    bad = (~(lengths.isfinite() & (lengths > 0))).nonzero()
    if len(bad):
        prompt, picture = bad[0, :2].tolist()
        raise ValueError(
            f"the features of picture {picture} of prompt {prompt} are all zero or no finite numbers; {len(bad)} of "
            f"{n * k} are"
        )
    unit = features.double() / lengths
    return unit @ unit.mT
