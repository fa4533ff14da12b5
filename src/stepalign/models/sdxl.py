"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the image size as conditioning."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from stepalign.core.batch import Conditioning
from stepalign.models.base import Family, token_ids


def time_ids(size: tuple[int, int]) -> Float[Tensor, "1 6"]:
    """Original size, crop and target size: of an uncropped image of this (height, width)."""
    return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def encode_text(pipeline: DiffusionPipeline, size: tuple[int, int], prompts: list[str]) -> Conditioning:
    """Both encoders' penultimate hidden states side by side, pooled: the second's projected embedding."""
    small, large = (
        encoder(token_ids(tokenizer, prompts).to(encoder.device), output_hidden_states=True)
        for encoder, tokenizer in (
            (pipeline.text_encoder, pipeline.tokenizer),
            (pipeline.text_encoder_2, pipeline.tokenizer_2),
        )
    )
    tokens = torch.cat([small.hidden_states[-2], large.hidden_states[-2]], dim=-1)
    return Conditioning(tokens, large.text_embeds, time_ids(size).repeat(len(prompts), 1).to(tokens.device))


def negative(pipeline: DiffusionPipeline, size: tuple[int, int]) -> Conditioning | None:
    """Zeros where the model was trained to have them for an empty prompt, else None."""
    if not pipeline.config.force_zeros_for_empty_prompt:
        return None
    small, large = pipeline.text_encoder.config, pipeline.text_encoder_2.config
    tokens = torch.zeros(1, pipeline.tokenizer.model_max_length, small.hidden_size + large.hidden_size)
    dtype = pipeline.text_encoder_2.dtype
    return Conditioning(tokens.to(dtype), torch.zeros(1, large.projection_dim, dtype=dtype), time_ids(size))


FAMILY = Family(
    name="Stable Diffusion XL",
    pipeline=StableDiffusionXLPipeline,
    class_names="StableDiffusionXL",
    file_keys="conditioner.embedders.",
    text_encoders={"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection},
    encode_text=encode_text,
    negative=negative,
    honours_force_upcast=True,
    lora_version=lambda pipeline: {"ss_base_model_version": "sdxl_base_v1-0"},
)
