"""PickScore (Kirstain et al., arXiv 2305.01569): a CLIP fine-tuned on human preferences.

score = exp(logit_scale) cos(image, text), what CLIPModel calls `logits_per_text`; PickScore_v1 gives 20 to 23.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign.clip import check_tokenizer, load_clip, preprocess, resolve_folder, tokenize


class PickScore:
    """A CLIP-like scorer of images in tensors; each distinct prompt is embedded once."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "PickScore")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.num_texts = 0
        self._text: dict[str, Float[Tensor, " e"]] = {}

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> PickScore:
        """Load a folder or hub repository with a CLIP model and its tokenizer; the scale and the scores stay fp32.

        Raises ValueError when weights are missing or not CLIP's.
        """
        folder = resolve_folder(name)
        model = load_clip(folder)
        scale = model.logit_scale.data
        model.to(device, dtype)
        model.logit_scale.data = scale.to(device)
        return cls(model, CLIPTokenizer.from_pretrained(folder))

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        self._embed([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text])
        pixels = preprocess(images, self.model.config.vision_config.image_size)
        image = F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
        text = torch.stack([self._text[prompt] for prompt in prompts])
        return self.model.logit_scale.float().exp() * (image * text).sum(-1)

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> None:
        if prompts:
            ids = tokenize(self.tokenizer, self.model.config, prompts).to(self.model.device)
            features = F.normalize(self.model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)
            self._text.update(zip(prompts, features, strict=True))
            self.num_texts += len(prompts)
