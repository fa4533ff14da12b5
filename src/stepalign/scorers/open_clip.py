"""Conversion of OpenAI CLIP and open_clip weights to transformers' CLIPModel: names, and the config from shapes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from stepalign.support.tensor_files import read_tensors

Activation = Literal["gelu", "quick_gelu"]
"""The activation, which no tensor reveals: open_clip's ViT-H/14 has "gelu", OpenAI's models "quick_gelu"."""
VISION_HEAD_WIDTHS = {768: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104}
"""Width of the vision tower -> of one of its heads: ViT-B, L, H, g and bigG."""
TEXT_HEAD_WIDTHS = {512: 64, 768: 64, 1024: 64, 1280: 64}
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold beside the weights."""

TOWERS = {"visual.": "vision_model.", "": "text_model."}
BLOCK = {
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
SINGLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("visual.proj", "text_projection")


def convert_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the layout of open_clip or OpenAI under the names of transformers' CLIPModel, in fp32.

    A prefix `module.` is taken off. Raises ValueError naming every key that is unknown or missing.
    """
    state = _plain(state)
    _check_keys(state)
    converted = {}
    for key, tensor in state.items():
        value = tensor.float()
        if key in SINGLE:
            converted[SINGLE[key]] = value.T.contiguous() if key in TRANSPOSED else value
            continue
        start, number, rest = _block(key)
        prefix = f"{TOWERS[start]}encoder.layers.{number}."
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{prefix}self_attn.{letter}_proj.{kind}"] = part.clone()
        else:
            name, kind = rest.rsplit(".", 1)
            converted[f"{prefix}{BLOCK[name + '.']}{kind}"] = value
    return converted


def open_clip_config(
    state: dict[str, Tensor], *, hidden_act: Activation, heads: tuple[int, int] | None = None
) -> CLIPConfig:
    """The config of such a state dict, read off its shapes.

    `heads` of the vision and the text tower are those of the published models' widths unless given. Raises ValueError
    for a width without a known number of heads, and for shapes that are not those of a square vision transformer.
    """
    state = _plain(state)
    _check_keys(state)
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    num_patches = len(state["visual.positional_embedding"]) - 1
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"visual.positional_embedding has {num_patches} patches, which make no square")
    vocabulary, text_width = state["token_embedding.weight"].shape
    if heads is None:
        vision_heads = _num_heads(vision_width, VISION_HEAD_WIDTHS, "vision")
        heads = vision_heads, _num_heads(text_width, TEXT_HEAD_WIDTHS, "text")
    dimension = state["visual.proj"].shape[1]
    vision = _tower(state, "visual.", vision_width, heads[0]) | {"image_size": side * patch, "patch_size": patch}
    text = _tower(state, "", text_width, heads[1]) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": len(state["positional_embedding"]),
        "eos_token_id": 2,  # has transformers pool at the highest token, as both originals do
    }
    common = {"hidden_act": hidden_act, "projection_dim": dimension}
    return CLIPConfig(text_config=text | common, vision_config=vision | common, projection_dim=dimension)


def load_open_clip(path: Path, *, hidden_act: Activation, heads: tuple[int, int] | None = None) -> CLIPModel:
    """The CLIPModel, in fp32, of a checkpoint's file: a state dict, or a dict that has one under "state_dict".

    Whatever else such a dict holds is not used. Raises ValueError as `read_tensors`, `convert_open_clip` and
    `open_clip_config` do, and for tensors whose shapes do not fit together.
    """
    state = read_tensors(path)
    try:
        config = open_clip_config(state, hidden_act=hidden_act, heads=heads)
        tensors = convert_open_clip(state)
        with torch.device("meta"):
            model = CLIPModel(config)
        model.load_state_dict(tensors, assign=True)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} holds no CLIP in the layout of open_clip: {' '.join(str(error).split())}") from error
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        # Buffers that no checkpoint holds and the meta device left empty.
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
    return model.eval()


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without entries that wrappers and OpenAI's files add."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if len(plain) < len(state):
        raise ValueError("there are tensors twice, with and without the prefix module.")
    return {key: value for key, value in plain.items() if key not in NOT_WEIGHTS}


def _check_keys(state: dict[str, Tensor]) -> None:
    """Refuse a state dict with other keys than two towers of whole blocks have."""
    kinds = [name + kind for name in BLOCK for kind in ("weight", "bias")] + [
        "attn.in_proj_weight",
        "attn.in_proj_bias",
    ]
    expected = set(SINGLE)
    for start in TOWERS:
        for number in range(max(_num_blocks(state, start), 1)):
            expected |= {f"{start}transformer.resblocks.{number}.{kind}" for kind in kinds}
    problems = [f"{key} is missing" for key in sorted(expected - state.keys())]
    problems += [f"{key} is unknown" for key in sorted(state.keys() - expected)]
    if problems:
        raise ValueError("; ".join(problems))


def _block(key: str) -> tuple[str, int, str]:
    """The tower, the block's number and the rest of a key that passed `_check_keys`."""
    found = re.fullmatch(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)", key)
    assert found is not None
    return found[1], int(found[2]), found[3]


def _num_blocks(state: dict[str, Tensor], start: str) -> int:
    numbers = {re.match(rf"{re.escape(start)}transformer\.resblocks\.(\d+)\.", key) for key in state}
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def _tower(state: dict[str, Tensor], start: str, width: int, num_heads: int) -> dict[str, Any]:
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide a tower {width} wide")
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{start}transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _num_blocks(state, start),
        "num_attention_heads": num_heads,
    }


def _num_heads(width: int, head_widths: dict[int, int], tower: str) -> int:
    if width not in head_widths:
        known = ", ".join(map(str, head_widths))
        raise ValueError(f"no published {tower} tower is {width} wide (they are {known}); give heads=(vision, text)")
    return width // head_widths[width]
