"""Stable Diffusion 1.x and 2.x: one text encoder, guidance away from the empty prompt."""

from __future__ import annotations

from diffusers import DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTextModel

from stepalign.core.batch import Conditioning
from stepalign.models.base import Family, token_ids


def encode_text(pipeline: DiffusionPipeline, size: tuple[int, int], prompts: list[str]) -> Conditioning:
    """The text encoder's last hidden states; the image size is not used."""
    ids = token_ids(pipeline.tokenizer, prompts).to(pipeline.text_encoder.device)
    return Conditioning(pipeline.text_encoder(ids).last_hidden_state)


def lora_version(pipeline: DiffusionPipeline) -> dict[str, str]:
    """Kohya's metadata for Stable Diffusion 2.x, whose text encoder is 1024 wide, or 1.x."""
    if pipeline.unet.config.cross_attention_dim == 1024:
        return {"ss_v2": "True"}
    return {"ss_base_model_version": "sd_v1"}


FAMILY = Family(
    name="Stable Diffusion 1.x and 2.x",
    pipeline=StableDiffusionPipeline,
    class_names="StableDiffusion(?!XL|3)",
    file_keys="cond_stage_model.",
    text_encoders={"text_encoder": CLIPTextModel},
    encode_text=encode_text,
    negative=lambda pipeline, size: None,
    honours_force_upcast=False,
    lora_version=lora_version,
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
