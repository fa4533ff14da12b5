"""ImageReward's released layout in small, and its architecture written out by hand from the papers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

VISION_WIDTH, VISION_HEADS, TEXT_WIDTH, TEXT_HEADS, LAYERS = 16, 2, 12, 3, 2
VIT, BERT = "blip.visual_encoder.", "blip.text_encoder."


def linear(name: str, wide: int, narrow: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (narrow, wide), f"{name}.bias": (narrow,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def released_shapes(
    *, v: int = VISION_WIDTH, t: int = TEXT_WIDTH, layers: int = LAYERS, patch: int = 8, side: int = 4, tokens: int = 17
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released file, as its authors' modules name them; smaller."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{VIT}cls_token": (1, 1, v),
        f"{VIT}pos_embed": (1, side**2 + 1, v),
        f"{VIT}patch_embed.proj.weight": (v, 3, patch, patch),
        f"{VIT}patch_embed.proj.bias": (v,),
        **norm(f"{VIT}norm", v),
        f"{BERT}embeddings.position_ids": (1, 512),
        f"{BERT}embeddings.word_embeddings.weight": (tokens, t),
        f"{BERT}embeddings.position_embeddings.weight": (512, t),
        **norm(f"{BERT}embeddings.LayerNorm", t),
        **linear("blip.vision_proj", v, 5),
        **linear("blip.text_proj", t, 5),
    }
    for layer in range(layers):
        block = f"{VIT}blocks.{layer}."
        shapes |= norm(f"{block}norm1", v) | norm(f"{block}norm2", v)
        shapes |= linear(f"{block}attn.qkv", v, 3 * v) | linear(f"{block}attn.proj", v, v)
        shapes |= linear(f"{block}mlp.fc1", v, 4 * v) | linear(f"{block}mlp.fc2", 4 * v, v)
        block = f"{BERT}encoder.layer.{layer}."
        for kind, seen in (("attention", t), ("crossattention", v)):
            shapes |= linear(f"{block}{kind}.self.query", t, t)
            shapes |= linear(f"{block}{kind}.self.key", seen, t) | linear(f"{block}{kind}.self.value", seen, t)
            shapes |= linear(f"{block}{kind}.output.dense", t, t) | norm(f"{block}{kind}.output.LayerNorm", t)
        shapes |= linear(f"{block}intermediate.dense", t, 4 * t) | linear(f"{block}output.dense", 4 * t, t)
        shapes |= norm(f"{block}output.LayerNorm", t)
    sizes = (t, 1024, 128, 64, 16, 1)
    for index, wide, narrow in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        shapes |= linear(f"mlp.layers.{index}", wide, narrow)
    return shapes


def random_weights() -> dict[str, Tensor]:
    """A tiny model that tells images and prompts apart: weights that keep lengths, norms and biases off neutral."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in released_shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("position_ids"):
            values = torch.arange(512)[None]
        elif "orm" in name.split(".")[-2]:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            values = 0.3 * values
        elif "embed" not in name and "cls_token" not in name:
            values = values / math.sqrt(math.prod(shape[1:]))
        weights[name] = values
    return weights


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention "l e", each head on its own slice of the width."""
    parts = []
    for one in range(heads):
        own = slice(one * q.shape[1] // heads, (one + 1) * q.shape[1] // heads)
        weight = (q[:, own] @ k[:, own].T / math.sqrt(q.shape[1] / heads)).softmax(1)
        parts.append(weight @ v[:, own])
    return torch.cat(parts, 1)


class ByHand:
    """The reward of one image and one prompt in float64, from the papers: ViT before-norm, BERT after-norm."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: value.double() for name, value in weights.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def patches(self, pixels: Tensor) -> Tensor:
        kernel = self.weights[f"{VIT}patch_embed.proj.weight"]
        size = kernel.shape[-1]
        rows = [
            (pixels[:, top : top + size, left : left + size] * kernel).sum((1, 2, 3))
            for top in range(0, pixels.shape[1], size)
            for left in range(0, pixels.shape[2], size)
        ]
        x = torch.stack(rows) + self.weights[f"{VIT}patch_embed.proj.bias"]
        x = torch.cat([self.weights[f"{VIT}cls_token"][0], x]) + self.weights[f"{VIT}pos_embed"][0]
        for layer in range(LAYERS):
            block = f"{VIT}blocks.{layer}."
            q, k, v = self.linear(f"{block}attn.qkv", self.norm(f"{block}norm1", x, 1e-6)).split(VISION_WIDTH, dim=1)
            x = x + self.linear(f"{block}attn.proj", attended(q, k, v, VISION_HEADS))
            hidden = self.linear(f"{block}mlp.fc1", self.norm(f"{block}norm2", x, 1e-6))
            x = x + self.linear(f"{block}mlp.fc2", F.gelu(hidden))
        return self.norm(f"{VIT}norm", x, 1e-6)

    def attention(self, name: str, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (self.linear(f"{name}.self.{part}", y) for part, y in (("query", x), ("key", seen), ("value", seen)))
        read = self.linear(f"{name}.output.dense", attended(q, k, v, TEXT_HEADS))
        return self.norm(f"{name}.output.LayerNorm", x + read, 1e-12)

    def read(self, ids: list[int], patches: Tensor) -> Tensor:
        x = self.weights[f"{BERT}embeddings.word_embeddings.weight"][ids]
        x = x + self.weights[f"{BERT}embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{BERT}embeddings.LayerNorm", x, 1e-12)
        for layer in range(LAYERS):
            block = f"{BERT}encoder.layer.{layer}."
            x = self.attention(f"{block}attention", x, x)
            x = self.attention(f"{block}crossattention", x, patches)
            hidden = F.gelu(self.linear(f"{block}intermediate.dense", x))
            x = self.norm(f"{block}output.LayerNorm", x + self.linear(f"{block}output.dense", hidden), 1e-12)
        return x[0]

    def score(self, pixels: Tensor, ids: list[int]) -> float:
        x = self.read(ids, self.patches(pixels.double()))
        for index in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{index}", x)
        return (x.item() - 0.16717362830052426) / 1.0333394966054072
