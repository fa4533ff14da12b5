"""A CLIP model under the names of open_clip, and what open_clip's network does with them, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def open_clip_layout(model: CLIPModel) -> dict[str, Tensor]:
    """The weights of a CLIPModel as open_clip saves them."""
    weights = dict(model.state_dict())
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    state = {
        "visual.class_embedding": weights[vision + "class_embedding"],
        "visual.conv1.weight": weights[vision + "patch_embedding.weight"],
        "visual.positional_embedding": weights[vision + "position_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
        "token_embedding.weight": weights[text + "token_embedding.weight"],
        "positional_embedding": weights[text + "position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "logit_scale": weights["logit_scale"],
    }
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = weights[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = weights[f"vision_model.post_layernorm.{kind}"]
        state[f"ln_final.{kind}"] = weights[f"text_model.final_layer_norm.{kind}"]
        for start, tower in (("visual.", model.vision_model), ("", model.text_model)):
            for number, layer in enumerate(tower.encoder.layers):
                block, parts = f"{start}transformer.resblocks.{number}.", layer.state_dict()
                attention = [parts[f"self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                state[f"{block}attn.in_proj_{kind}"] = torch.cat(attention)
                for name, other in BLOCK.items():
                    state[f"{block}{name}.{kind}"] = parts[f"{other}.{kind}"]
    return state


def random_state(
    *, vision: int = 16, text: int = 12, num_layers: int = 2, patch: int = 4, side: int = 3, vocabulary: int = 50
) -> dict[str, Tensor]:
    """Random weights in open_clip's layout, larger than at the start of training, so that every one matters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    state = {
        "visual.class_embedding": draw(vision),
        "visual.conv1.weight": draw(vision, 3, patch, patch),
        "visual.positional_embedding": draw(side**2 + 1, vision),
        "visual.proj": draw(vision, 8),
        "token_embedding.weight": draw(vocabulary, text),
        "positional_embedding": draw(7, text),
        "text_projection": draw(text, 8),
        "logit_scale": torch.tensor(2.5),
    }
    for name, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        state |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    for start, width in (("visual.", vision), ("", text)):
        shapes = {"attn.out_proj": (width, width), "mlp.c_fc": (20, width), "mlp.c_proj": (width, 20)}
        for number in range(num_layers):
            block = f"{start}transformer.resblocks.{number}."
            state |= {
                f"{block}attn.in_proj_weight": draw(3 * width, width),
                f"{block}attn.in_proj_bias": draw(3 * width),
            }
            for name, shape in shapes.items():
                state |= {f"{block}{name}.weight": draw(*shape), f"{block}{name}.bias": draw(shape[0])}
            for name in ("ln_1", "ln_2"):
                state |= {f"{block}{name}.weight": 1 + draw(width), f"{block}{name}.bias": draw(width)}
    return state


def logits_per_text(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, *, heads: tuple[int, int]) -> Tensor:
    """exp(logit_scale) cos(text, image) as open_clip's CLIP with GELU computes it, with torch's own attention."""
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=state["visual.conv1.weight"].shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = _blocks(state, "visual.", _norm(state, "visual.ln_pre", x), heads[0], mask=None)
    image = _norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]

    length = ids.shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][:length]
    x = _norm(state, "ln_final", _blocks(state, "", x, heads[1], mask=causal))
    text = x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]
    return state["logit_scale"].exp() * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _blocks(state: dict[str, Tensor], start: str, x: Tensor, heads: int, *, mask: Tensor | None) -> Tensor:
    number = 0
    while f"{start}transformer.resblocks.{number}.ln_1.weight" in state:
        block = f"{start}transformer.resblocks.{number}."
        y = _norm(state, f"{block}ln_1", x).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            y,
            y,
            y,
            y.shape[-1],
            heads,
            state[f"{block}attn.in_proj_weight"],
            state[f"{block}attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            state[f"{block}attn.out_proj.weight"],
            state[f"{block}attn.out_proj.bias"],
            training=False,
            need_weights=False,
            attn_mask=mask,
        )
        x = x + attended.transpose(0, 1)
        hidden = F.gelu(_linear(state, f"{block}mlp.c_fc", _norm(state, f"{block}ln_2", x)))
        x = x + _linear(state, f"{block}mlp.c_proj", hidden)
        number += 1
    return x
