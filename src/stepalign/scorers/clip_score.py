"""CLIPScore (Hessel et al., arXiv 2104.08718): image-text agreement by CLIP's cosine.

score = 100 max(cos(image, text), 0), torchmetrics' definition; the paper's own is 2.5 max(cos, 0). Images and prompts
are prepared as OpenAI's program prepares them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.models.clip import preprocess
from stepalign.scorers.clip_features import IN_MEMORY, ClipFeatures, Source, load_clip_folder
from stepalign.scorers.preparation import check_pairs, checked_scores, clip_pixels, describe_preparation

CLIP_SCORE = "openai/clip-vit-large-patch14"


class CLIPScore:
    """CLIP as a scorer; each distinct prompt is embedded once.

    Called with images in tensors it is a reward, whose gradient is zero where the cosine is negative; `score` prepares
    images as published numbers did.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, source: Source = IN_MEMORY) -> None:
        self.clip = ClipFeatures(model, tokenizer, name="CLIPScore", cleaned=True, source=source)
        preprocessing = describe_preparation(self.clip.image_size, "torchvision")
        self.record = self.clip.record("clip-score", preprocessing=preprocessing, scale="100 max(cos, 0)")

    @classmethod
    def from_pretrained(
        cls, name: str = CLIP_SCORE, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> CLIPScore:
        """Load a folder or hub repository with a CLIP model and its tokenizer; the scores stay fp32.

        Raises ValueError when weights are missing or not CLIP's.
        """
        model, tokenizer, source = load_clip_folder(name, device=device, dtype=dtype)
        return cls(model, tokenizer, source=source)

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return self.clip.num_cut(prompts)

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1]; gradients flow to the images."""
        check_pairs(len(images), prompts)
        return 100 * self.clip.cosines(preprocess(images, self.clip.image_size, rounding="torchvision"), prompts).clamp(
            min=0
        )

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images, resized by PIL, in fp32 on the CPU."""
        check_pairs(len(images), prompts)
        cosines = self.clip.cosines(clip_pixels(images, self.clip.image_size, "torchvision"), prompts)
        return checked_scores(100 * cosines.clamp(min=0), "clip-score")
