"""A Stable Diffusion 1.x, 2.x or XL pipeline's weights under the names of their first release, as in a single file."""

from __future__ import annotations

import re

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

UNET = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
]
RESNET = [
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE = [
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


OPEN_CLIP = [
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn", "attn"),
    (r"^text_projection\.weight", "text_projection"),
]


def original_layout(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    """Everything such a file holds, things that nobody reads included."""
    unet = pipeline.unet.state_dict()
    tensors = {f"model.diffusion_model.{_unet(key, unet)}": value for key, value in unet.items()}
    for key, value in pipeline.vae.state_dict().items():
        name = _renamed(key, VAE)
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if is_projection else value
    is_xl = "text_encoder_2" in pipeline.components
    if pipeline.text_encoder.config.hidden_act == "gelu":  # Stable Diffusion 2.x, whose text encoder is open_clip's
        text = _open_clip(_with_prefix(pipeline.text_encoder.state_dict()))
        tensors |= {f"cond_stage_model.model.{key}": value for key, value in text.items()}
        return {key: value.contiguous().clone() for key, value in tensors.items()}
    prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"{prefix}text_model.{key.removeprefix('text_model.')}"] = value
    length = pipeline.text_encoder.config.max_position_embeddings
    tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(length)[None]
    if is_xl:
        second = _open_clip(pipeline.text_encoder_2.state_dict())
        tensors.update({f"conditioner.embedders.1.model.{key}": value for key, value in second.items()})
    tensors["alphas_cumprod"] = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    return {key: value.contiguous().clone() for key, value in tensors.items()}


def _with_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that transformers gave a text encoder's tensors before version 5.1."""
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}


def _open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder with projection: queries, keys and values are one matrix, the projection multiplies from right."""
    tensors = {"logit_scale": torch.tensor(4.6)}
    for key, value in weights.items():
        name = _renamed(key, OPEN_CLIP)
        if part := re.fullmatch(r"(.*attn)\.q_proj\.(weight|bias)", name):
            parts = [weights[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensors[f"{part[1]}.in_proj_{part[2]}"] = torch.cat(parts)
        elif not re.search(r"attn\.[kv]_proj", name):
            tensors[name] = value.T if name == "text_projection" else value
    return tensors


def _renamed(key: str, rules: list) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _unet(key: str, weights: dict[str, Tensor]) -> str:
    """Blocks are numbered through: the layers of a level, then the change of size."""
    layers = 1 + max(
        int(found[1]) for found in map(re.compile(r"down_blocks\.0\.resnets\.(\d)").match, weights) if found
    )
    each = layers + 1
    part = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)(.*)", key)
    if part:
        side, level, kind, layer, rest = part[1], int(part[2]), part[3], int(part[4]), part[5]
        if side == "down":
            block = each * level + layer + 1
            key = {
                "resnets": f"input_blocks.{block}.0{rest}",
                "attentions": f"input_blocks.{block}.1{rest}",
                "downsamplers": f"input_blocks.{each * (level + 1)}.0.op{rest.removeprefix('.conv')}",
            }[kind]
        else:
            has_attention = any(other.startswith(f"up_blocks.{level}.attentions") for other in weights)
            place = 2 if has_attention else 1  # the upsampler comes after resnet and attention
            key = {
                "resnets": f"output_blocks.{each * level + layer}.0{rest}",
                "attentions": f"output_blocks.{each * level + layer}.1{rest}",
                "upsamplers": f"output_blocks.{each * level + layers}.{place}{rest}",
            }[kind]
        return _renamed(key, RESNET) if kind == "resnets" else key
    key = _renamed(key, UNET)
    return _renamed(key, RESNET) if re.match(r"middle_block\.[02]", key) else key
