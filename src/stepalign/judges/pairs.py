"""A judge's scores of image pairs, on a frozen base model's predictions at a noise level."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.core.batch import Conditioning
from stepalign.core.protocols import Decode, Denoiser
from stepalign.core.sampler import NoiseSchedule
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.models.clip import check_tokenizer, num_cut, preprocess_decoded, tokenize


@dataclass(frozen=True, slots=True)
class FrozenBase:
    """The base model that the judge looks through."""

    denoise: Denoiser
    """Guided; no gradient passes through it."""
    decode: Decode
    schedule: NoiseSchedule

    @torch.no_grad()
    def estimates(
        self,
        latents: Float[Tensor, "b n c h w"],
        cond: Conditioning,
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b n 3 hh ww"]:
        """The decoded x̂0 of n samples per prompt, all n in one batch, under one timestep and one noise."""
        b, n = latents.shape[:2]
        flat_t = t.repeat_interleave(n)
        x_t = self.schedule.add_noise(latents.flatten(0, 1), noise.repeat_interleave(n, 0), flat_t)
        prediction = self.denoise(x_t, flat_t, cond.tile(n))
        return self.decode(self.schedule.predict_x0(prediction, x_t, flat_t)).unflatten(0, (b, n))


class JudgeScorer:
    """A judge's scores of pairs seen through a base model, with or without gradients."""

    def __init__(
        self,
        model: StepAwarePreferenceModel,
        tokenizer: CLIPTokenizer,
        base: FrozenBase,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        check_tokenizer(tokenizer, model.config.text_config.vocab_size, "the judge")
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.precision = precision
        self.device = model.logit_scale.device
        self.calls: Counter[str] = Counter()
        """Work done: texts and images through the judge, samples through the base model's denoiser and decoder."""

    def num_cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        return num_cut(self.tokenizer, prompts, self.model.config.text_config.max_position_embeddings)

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training."""
        self.model.enable_gradient_checkpointing()

    def text_features(self, prompts: list[str]) -> Float[Tensor, "b e"]:
        """Unit embeddings of prompts."""
        self.calls["judge_texts"] += len(prompts)
        ids = tokenize(self.tokenizer, self.model.config, prompts).to(self.device)
        with self._autocast():
            return self.model.text_features(ids)

    def scores(
        self,
        latents: Float[Tensor, "b 2 c h w"],
        cond: Conditioning,
        text: Float[Tensor, "b e"],
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b 2"]:
        """The judge's scores of both images of each pair at the pair's timestep and under its noise."""
        self.calls["base_samples"] += 2 * len(latents)
        self.calls["judge_images"] += 2 * len(latents)
        estimates = self.base.estimates(
            latents.to(self.device), cond.map(lambda value: value.to(self.device)), t, noise
        )
        size, order = self.model.config.vision_config.image_size, self.model.preprocessing
        pixels = preprocess_decoded(estimates.flatten(0, 1), size, order=order)
        with self._autocast():
            features = self.model.image_features(pixels, t.repeat_interleave(2))
        return self.model.score(features, text.repeat_interleave(2, 0)).unflatten(0, (-1, 2))

    def drain_counters(self) -> dict[str, int]:
        """The work done since the last call."""
        calls = dict(self.calls)
        self.calls.clear()
        return calls

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def agreement(scores: Float[Tensor, "b 2"], label: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 where the judge orders a pair as its label does, 0 where it does not, .5 for equal scores, nan for a tie."""
    right = ((scores[:, 0] - scores[:, 1]).sign() * (label - 0.5).sign() + 1) / 2
    return torch.where(label == 0.5, torch.nan, right)
