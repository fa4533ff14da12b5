"""Identity of a loaded base model: digests of every part that decides its images."""

from __future__ import annotations

from diffusers import DDIMScheduler
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stepalign.models.adapters import NETWORKS
from stepalign.models.base import BaseModel
from stepalign.support.digests import (
    Identity,
    config_digest,
    module_digest,
    tensors_digest,
    tokenizer_digest,
    values_digest,
)

SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
)
"""Fields of a scheduler's config that decide the noise schedule of a DDIM sampler."""


def base_identity(model: BaseModel) -> Identity:
    """Digests of networks, configs, tokenizers and noise schedule, with precision and resolution.

    Call it before adapters are put on the networks, which rename their tensors.
    """
    pipeline, (height, width) = model.pipeline, model.image_size
    found = {
        "precision": str(pipeline.unet.dtype).removeprefix("torch."),
        "resolution": f"{height}x{width}",
        "unet.weights": module_digest(pipeline.unet, "UNet"),
        "unet.config": config_digest(pipeline.unet.config, type(pipeline.unet)),
        "vae.weights": module_digest(pipeline.vae, "VAE"),
        "vae.config": config_digest(pipeline.vae.config, type(pipeline.vae)),
    }
    for name, part in sorted(pipeline.components.items()):
        if name.startswith("text_encoder") and part is not None:
            found |= {f"{name}.weights": module_digest(part, name), f"{name}.config": config_digest(part.config)}
        if isinstance(part, PreTrainedTokenizerBase):
            found[name] = tokenizer_digest(part)
    schedule = DDIMScheduler.from_config(pipeline.scheduler.config).config
    found["scheduler"] = values_digest({name: schedule[name] for name in SCHEDULE})
    found["empty prompt"] = "encoded" if model.negative_row is None else "zeros"
    return found


def adapters_identity(model: BaseModel, num_adapters: int) -> Identity:
    """Digests of the LoRA adapters that `load_adapters` put on a model, in their order: tensors and scalings."""
    found = {}
    for index in range(num_adapters):
        name = f"stepalign_{index}"
        tensors: dict[str, Tensor] = {}
        scalings: dict[str, float] = {}
        for part in NETWORKS:
            network = model.pipeline.components.get(part)
            if network is None:
                continue
            tensors |= {f"{part}.{key}": value for key, value in network.named_parameters() if name in key.split(".")}
            layers = ((key, layer) for key, layer in network.named_modules() if isinstance(layer, LoraLayer))
            scalings |= {f"{part}.{key}": layer.scaling[name] for key, layer in layers if name in layer.scaling}
        weights = tensors_digest({key.replace(name, "adapter"): value for key, value in tensors.items()})
        found[f"adapters.{index}"] = values_digest([weights, scalings])
    return found
