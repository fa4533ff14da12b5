"""PickScore (Kirstain et al., arXiv 2305.01569): a CLIP fine-tuned on human preferences.

score = exp(logit_scale) cos(image, text), CLIPModel's `logits_per_text`; PickScore_v1 gives 20 to 23. Some
published tables print the bare cosine, a hundredth of it.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.core.protocols import ScorerRecord
from stepalign.models.clip import Rounding, preprocess
from stepalign.scorers.clip_features import IN_MEMORY, ClipFeatures, Source, load_clip_folder
from stepalign.scorers.preparation import check_pairs, checked_scores, clip_pixels, describe_preparation

PICKSCORE = "yuvalkirstain/PickScore_v1"
ROUNDING: Rounding = "transformers"
"""PickScore is published with transformers' image processor."""


class PickScore:
    """A CLIP-like scorer; each distinct prompt is embedded once.

    Called with images in tensors it is a reward with gradients; `score` prepares images as published numbers did.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, *, source: Source = IN_MEMORY) -> None:
        self.clip = ClipFeatures(model, tokenizer, name="PickScore", cleaned=False, source=source)
        self.model = self.clip.model
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, name: str = PICKSCORE, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> PickScore:
        """Load a folder or hub repository with a CLIP model and its tokenizer; the scale and the scores stay fp32.

        Raises ValueError when weights are missing or not CLIP's.
        """
        model, tokenizer, source = load_clip_folder(name, device=device, dtype=dtype)
        return cls(model, tokenizer, source=source)

    @cached_property
    def record(self) -> ScorerRecord:
        """Weights and preprocessing behind the scores; the first access reads the weight files."""
        preprocessing = describe_preparation(self.clip.image_size, ROUNDING)
        return self.clip.record("pickscore", preprocessing=preprocessing, scale="exp(logit_scale) cos")

    @property
    def num_texts(self) -> int:
        """Number of prompts embedded so far."""
        return self.clip.num_texts

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return self.clip.num_cut(prompts)

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images in [0, 1]; gradients flow to the images."""
        check_pairs(len(images), prompts)
        return self._scaled(preprocess(images, self.clip.image_size, rounding=ROUNDING), prompts)

    @torch.no_grad()
    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores of images, resized by PIL: `logits_per_text` of each pair, in fp32 on the CPU."""
        check_pairs(len(images), prompts)
        return checked_scores(self._scaled(clip_pixels(images, self.clip.image_size, ROUNDING), prompts), "pickscore")

    def _scaled(self, pixels: Float[Tensor, "b 3 s s"], prompts: list[str]) -> Float[Tensor, " b"]:
        scores: Tensor = self.model.logit_scale.float().exp() * self.clip.cosines(pixels, prompts)
        return scores
