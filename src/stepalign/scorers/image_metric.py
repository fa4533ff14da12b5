"""Any scorer of finished images as a metric of image tensors.

The numbers are those of `stepalign evaluate`; without gradients.
"""

from __future__ import annotations

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.core.protocols import Scorer


class ImageMetric:
    """A scorer as a metric of tensors, which become 8-bit images first, as they would be saved."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        return self.scorer.score(to_pil(images), prompts)


def to_pil(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit images, clamped and rounded as diffusers does."""
    levels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(image) for image in levels.numpy()]
