"""Random LoRAs in every layout, and what a model is to predict with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import normal
from safetensors.torch import save_file
from torch import Tensor

from stepalign.core.batch import Conditioning
from stepalign.models.base import BaseModel
from stepalign.models.policy import GuidedNetwork

FILE = "pytorch_lora_weights.safetensors"
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KINDS = {"unet": ("to_q", "to_k", "to_v", "to_out.0"), "text_encoder": TEXT, "text_encoder_2": TEXT}
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
Factors = dict[str, tuple[Tensor, Tensor]]
"""A and B by part and module, as in "unet.mid_block. ... .to_q"."""


def factors(model: BaseModel, *parts: str, ranks: tuple[int, ...] = (2,), seed: int = 0) -> Factors:
    """Random ones for projections of some networks, every eighth of the UNet's, the ranks taking turns."""
    generator, made = torch.Generator().manual_seed(seed), Factors()
    for part in parts:
        found = [found for found in model.pipeline.components[part].named_modules() if found[0].endswith(KINDS[part])]
        for name, module in found[::8] if part == "unet" else found:
            rank = ranks[len(made) % len(ranks)]
            down, up = (0.2 * torch.randn(size, rank, generator=generator) for size in module.weight.T.shape)
            made[f"{part}.{name}"] = down.T.contiguous(), up
    return made


def diffusers_layout(made: Factors) -> dict[str, Tensor]:
    return {
        f"{key}.{name}.weight": value
        for key, pair in made.items()
        for name, value in zip(("lora_A", "lora_B"), pair, strict=True)
    }


def kohya_layout(made: Factors, alpha_of: Callable[[int], float]) -> dict[str, Tensor]:
    """With an alpha for each module, by its number."""
    tensors = {}
    for number, (key, (down, up)) in enumerate(made.items()):
        part, _, name = key.partition(".")
        if part != "unet" and not name.startswith("text_model."):
            name = f"text_model.{name}"
        module = KOHYA[part] + name.replace(".", "_")
        tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        tensors[f"{module}.alpha"] = torch.tensor(alpha_of(number))
    return tensors


def written(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({key: value.clone() for key, value in tensors.items()}, path)
    return str(path)


def merged(base: BaseModel, made: Factors, scale_of: Callable[[int], float]) -> BaseModel:
    """A copy of the model with W + scale B A in place of every W, the scale by the module's number."""
    model = copy.deepcopy(base)
    model.clear_cache()
    for number, (key, (down, up)) in enumerate(made.items()):
        part, _, name = key.partition(".")
        layer = model.pipeline.components[part].get_submodule(name)
        layer.weight.data += scale_of(number) * up @ down
    return model


@torch.no_grad()
def predicted(model: BaseModel, cond: Conditioning | None = None) -> Tensor:
    """A guided prediction for one prompt; the text encoders have their part in it unless `cond` is given."""
    x_t, t = normal(1, *model.latent_shape, dtype=torch.float32), torch.tensor([500])
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=2.0)
    return guided(x_t, t, model.encode(["two boats"]) if cond is None else cond)


def assert_predicts_as(model: BaseModel, expected: BaseModel) -> None:
    torch.testing.assert_close(predicted(model), predicted(expected), rtol=1e-4, atol=1e-4)
