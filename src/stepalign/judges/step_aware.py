"""The step-aware preference model as a judge: scores of the decoded x̂0 at the candidates' own timestep."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.core.choices import Preprocessing
from stepalign.core.protocols import Decode
from stepalign.judges.decoding import decoded_gradients, decoded_scores
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.models.clip import check_tokenizer, num_cut, preprocess_decoded, tokenize
from stepalign.support.finite import check_finite, precision_remedy


class StepAwareJudge:
    """Judges the decoded x̂0 with an SPM at the candidates' own timestep; each distinct prompt is embedded once."""

    def __init__(
        self,
        model: StepAwarePreferenceModel,
        tokenizer: CLIPTokenizer,
        decode: Decode,
        *,
        max_batch: int | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "the judge")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.decode = decode
        self.max_batch = max_batch
        """Images decoded and judged at once; None for all."""
        self.preprocessing: Preprocessing = preprocessing or model.preprocessing
        """The one the model was trained with unless another is asked for."""
        self.num_texts = 0
        self._text: dict[str, Float[Tensor, " e"]] = {}

    def __call__(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_0: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        prompts: list[str],
    ) -> Float[Tensor, " b"]:
        self._embed([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text])
        scores = decoded_scores(self._score, self.decode, x_0, t, prompts, max_batch=self.max_batch)
        precision = self.model.visual_projection.weight.dtype
        remedy = precision_remedy(precision, "judge.precision", otherwise="the judge's files are damaged")
        check_finite(scores, f"the judge's scores at timestep {int(t[0])}" if len(t) else "the judge's scores", remedy)
        return scores

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return num_cut(self.tokenizer, prompts, self.model.config.text_config.max_position_embeddings)

    def gradient(
        self, x_0: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], prompts: list[str]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
        """The scores of clean samples and their gradients with respect to them."""
        self._embed([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text])
        return decoded_gradients(self._score, self.decode, x_0, t, prompts, max_batch=self.max_batch)

    def _score(
        self, images: Float[Tensor, "b 3 hh ww"], t: Int[Tensor, " b"], prompts: list[str]
    ) -> Float[Tensor, " b"]:
        pixels = preprocess_decoded(images, self.model.config.vision_config.image_size, order=self.preprocessing)
        text = torch.stack([self._text[prompt] for prompt in prompts])
        return self.model.score(self.model.image_features(pixels, t), text)

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> None:
        if not prompts:
            return
        ids = tokenize(self.tokenizer, self.model.config, prompts).to(self.model.logit_scale.device)
        self._text.update(zip(prompts, self.model.text_features(ids), strict=True))
        self.num_texts += len(prompts)
