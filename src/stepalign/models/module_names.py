"""The names that LoRA files use for a network's linear and convolutional modules."""

from __future__ import annotations

import re

from torch import nn

UNET = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
)
"""Names in diffusers and in Stable Diffusion's first code, beside the numbered blocks."""
RESNET = (
    (r"\.conv1$", ".in_layers.2"),
    (r"\.conv2$", ".out_layers.3"),
    (r"\.time_emb_proj$", ".emb_layers.1"),
    (r"\.conv_shortcut$", ".skip_connection"),
)
EARLY_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""Early diffusers' names of a text encoder's projections."""
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(.*)")


def spellings(network: nn.Module, *, is_unet: bool) -> dict[str, str]:
    """Every spelling of the network's linear and convolutional modules -> the module's name.

    Beside the name itself: with underscores for dots (kohya), as Stable Diffusion's first code numbers the blocks, as
    early diffusers' attention processors, and with or without `text_model.`, which transformers' versions differ in.
    """
    modules = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    layers = _layers_per_block(modules)
    found: dict[str, str] = {}
    for name in modules:
        others = _of_unet(name, layers) if is_unet else _of_text_encoder(name)
        for spelling in (name, *others):
            for written in (spelling, spelling.replace(".", "_")):
                taken = found.setdefault(written, name)
                assert taken == name, f"{written} is {taken} and {name}"
    return found


def _of_unet(name: str, layers: dict[str, int]) -> list[str]:
    projection = re.fullmatch(r"(.*\.attn\d)\.(to_q|to_k|to_v|to_out)(\.0)?", name)
    early = [f"{projection[1]}.{projection[2]}", f"{projection[1]}.processor.{projection[2]}"] if projection else []
    return [*early, _original(name, layers)]


def _of_text_encoder(name: str) -> list[str]:
    plain = name.removeprefix("text_model.")
    names = [plain, f"text_model.{plain}"]
    for now, early in EARLY_TEXT.items():
        names += [f"{other.removesuffix(now)}{early}" for other in names if other.endswith(f"self_attn.{now}")]
    return names


def _layers_per_block(modules: list[str]) -> dict[str, int]:
    """The number of layers of every numbered block, by the block's name."""
    layers: dict[str, int] = {}
    for name in modules:
        if (block := BLOCK.match(name)) and block[3] == "resnets":
            key = f"{block[1]}_blocks.{block[2]}"
            layers[key] = max(layers.get(key, 0), int(block[4]) + 1)
        if (block := BLOCK.match(name)) and block[3] == "attentions":
            layers[f"{block[1]}_blocks.{block[2]}.attentions"] = 1
    return layers


def _original(name: str, layers: dict[str, int]) -> str:
    """A UNet module's name in Stable Diffusion's first code, which counts layers through: input_blocks.4.1. ..."""
    block = BLOCK.fullmatch(name)
    if block is None:
        for pattern, replacement in UNET:
            name = re.sub(pattern, replacement, name)
        return _resnet(name) if re.match(r"middle_block\.[02]", name) else name
    side, level, kind, layer, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    before = [layers.get(f"{side}_blocks.{other}", 0) for other in range(level)]
    if side == "down":
        first = 1 + sum(before) + level  # every level ends with a change of size
        if kind == "downsamplers":
            return f"input_blocks.{first + layers[f'down_blocks.{level}']}.0.op{rest.removeprefix('.conv')}"
        number = f"input_blocks.{first + layer}"
    elif kind == "upsamplers":
        last = sum(before) + layers[f"up_blocks.{level}"] - 1
        return f"output_blocks.{last}.{2 if f'up_blocks.{level}.attentions' in layers else 1}{rest}"
    else:
        number = f"output_blocks.{sum(before) + layer}"
    return _resnet(f"{number}.0{rest}") if kind == "resnets" else f"{number}.1{rest}"


def _resnet(name: str) -> str:
    for pattern, replacement in RESNET:
        name = re.sub(pattern, replacement, name)
    return name
