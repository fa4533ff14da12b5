"""Random models of a few hundred thousand parameters in the structure of the real ones, as folders; 64 pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stepalign.miniature.base import MAX_TOKENS

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tiny_vae(**options: Any) -> AutoencoderKL:
    """An 8x VAE."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def text_config(tokenizer: CLIPTokenizer, *, hidden_size: int, **options: Any) -> CLIPTextConfig:
    """A text encoder for a tokenizer, of heads 8 wide."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_attention_heads=hidden_size // 8,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def padding_with_exclamation_marks(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """What Stable Diffusion 2.x and the second encoder of SDXL do."""
    other = copy.deepcopy(tokenizer)
    other.pad_token = "!"
    return other


def sd_unet(*, layers: int = 1, **options: Any) -> UNet2DConditionModel:
    """Four levels, the deepest without attention; the real ones have two layers per level."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=16,
        norm_num_groups=8,
        **options,
    )


def save_sd(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """Stable Diffusion 1.x: a PNDM config."""
    torch.manual_seed(0)
    return _save_sd(
        folder,
        unet=sd_unet(attention_head_dim=2),
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(
            text_config(tokenizer, hidden_size=16, num_hidden_layers=2, hidden_act="quick_gelu")
        ),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    )


def save_sd2(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """Stable Diffusion 2.x: v-prediction, heads per level, open_clip's activation, other padding."""
    torch.manual_seed(3)
    tokenizer = padding_with_exclamation_marks(tokenizer)
    return _save_sd(
        folder,
        unet=sd_unet(attention_head_dim=[1, 2, 4, 4], use_linear_projection=True),
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer, hidden_size=16, num_hidden_layers=3, hidden_act="gelu")),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            **BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
    )


def _save_sd(folder: Path, **parts: Any) -> Path:
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **unused).save_pretrained(folder)
    return folder


def sdxl_unet(*, layers: int = 1) -> UNet2DConditionModel:
    """Three levels, the first without attention; sizes as a condition."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        norm_num_groups=8,
    )


def save_sdxl(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """SDXL: two text encoders, an Euler config."""
    torch.manual_seed(1)
    unet = sdxl_unet()
    tokenizer_2 = padding_with_exclamation_marks(tokenizer)
    small = text_config(tokenizer, hidden_size=16, num_hidden_layers=3, hidden_act="quick_gelu")
    large = text_config(tokenizer_2, hidden_size=24, num_hidden_layers=3, hidden_act="gelu", projection_dim=20)
    scheduler = {**BETAS, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(small),
        text_encoder_2=CLIPTextModelWithProjection(large),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(scheduler),
    ).save_pretrained(folder)
    return folder
