"""Features of images by a CLIP or a DINOv2, for diversity and drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from stepalign.core.protocols import ScorerRecord
from stepalign.models.clip import resolve_folder
from stepalign.scorers.preparation import MARGINS, clip_pixels, describe_preparation, normalised, resize_and_crop
from stepalign.scorers.record import precision_words, scorer_record
from stepalign.scorers.weights import load_clip_vision, load_strictly, model_type
from stepalign.support.digests import network_identity
from stepalign.support.tensor_files import weight_files

DINOV2_RESIZED, DINOV2_SIZE = 256, 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images become pixels for a network."""

    words: str
    """For the record."""
    pixels: Callable[[list[Image.Image]], Float[Tensor, "b 3 h w"]]


class ImageFeatures:
    """Image features of a CLIP (image embeddings) or a DINOv2 (the [CLS] token); not normalised."""

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
        ("facebook/dinov2-base"); images are prepared as the network's authors did unless said otherwise.

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
        """One fp32 vector per image, on the CPU."""
        pixels = self.preparation.pixels(images).to(self.network.device, self.network.dtype)
        found = self.network(pixel_values=pixels)
        features = found.last_hidden_state[:, 0] if self.network.config.model_type == "dinov2" else found.image_embeds
        return features.float().cpu()


def clip_preparation(size: int) -> Preparation:
    """OpenAI's CLIP preprocessing."""
    words = describe_preparation(size, "torchvision")
    return Preparation(words, lambda images: clip_pixels(images, size, "torchvision"))


def dinov2_pixels(images: list[Image.Image]) -> Float[Tensor, "b 3 224 224"]:
    """Images as DINOv2 was evaluated on them, with torchvision's rounding: see `DINOV2_PREPARATION`."""
    cropped = [resize_and_crop(image, DINOV2_RESIZED, DINOV2_SIZE, "torchvision") for image in images]
    return normalised(cropped, IMAGENET_MEAN, IMAGENET_STD)


DINOV2_PREPARATION = Preparation(
    f"RGB, PIL bicubic to {DINOV2_RESIZED} on the short side, centre crop of {DINOV2_SIZE} ({MARGINS['torchvision']}), "
    "ImageNet mean and std",
    dinov2_pixels,
)
