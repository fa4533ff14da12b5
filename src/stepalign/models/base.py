"""Interface of base models, and the definition of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.core.batch import Conditioning, cat
from stepalign.core.sampler import DDIM, NoiseSchedule
from stepalign.models.clip import num_cut
from stepalign.models.forward import Forward, unet_forward
from stepalign.models.lora_files import write_lora
from stepalign.support.finite import NotFinite, check_finite

ENCODE_BATCH = 64
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LARGEST_LATENT = 1e3
"""Latents are of size 1; beyond this it is not the VAE that is at fault when it overflows."""
GROWN = (
    "the predictions behind them grew without bound: lower training.learning_rate of the adapter, or check the model"
)


@dataclass(frozen=True, slots=True)
class Family:
    """The definition of a model family; `load` does the rest."""

    name: str
    pipeline: Any
    """The diffusers class of the pipeline."""
    class_names: str
    """A regular expression: how `_class_name` begins in the model_index.json of its folders."""
    file_keys: str
    """How the text encoders' tensors begin in a single file of the original layout, and in no other family's."""
    text_encoders: Mapping[str, Any]
    """The pipeline's text encoders and their transformers classes; `text_encoder_2` has the `tokenizer_2`."""
    encode_text: Callable[[DiffusionPipeline, tuple[int, int], list[str]], Conditioning]
    """(pipeline, (height, width) in pixels, prompts) -> a row of conditioning per prompt."""
    negative: Callable[[DiffusionPipeline, tuple[int, int]], Conditioning | None]
    """(pipeline, (height, width) in pixels) -> the negative conditioning of guidance, None for the encoded empty
    prompt."""
    honours_force_upcast: bool
    """Whether a VAE whose config says `force_upcast` stays in float32 when the model is in half precision."""
    lora_version: Callable[[DiffusionPipeline], Mapping[str, str]]
    """(pipeline) -> the metadata by which A1111 knows which models a kohya LoRA is for."""
    forward: Forward = unet_forward
    """The network's forward pass."""
    target_modules: tuple[str, ...] = ATTENTION_PROJECTIONS
    """Names of the network's layers that adapters train."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments to the pipeline's loaders."""


@dataclass(slots=True)
class BaseModel:
    """A loaded base model with the parts that a policy, a judge and a sampler need."""

    pipeline: DiffusionPipeline
    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents sampled."""
    name: str
    encode_text: Callable[[list[str]], Conditioning]
    """The text encoders: a row of conditioning per prompt."""
    negative_row: Conditioning | None = None
    """The negative conditioning of guidance; None for the encoded empty prompt."""
    forward: Forward = unet_forward
    """The network's forward pass, without guidance."""
    target_modules: tuple[str, ...] = ATTENTION_PROJECTIONS
    """Names of the network's layers that adapters train."""
    lora_version: Mapping[str, str] = field(default_factory=dict)
    """Metadata of a kohya LoRA of this model."""
    num_encoded: int = field(default=0, init=False)
    """Prompts run through the text encoders so far; each distinct prompt runs once until it is forgotten."""
    _rows: dict[str, Conditioning] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> torch.nn.Module:
        """The UNet."""
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of images in pixels."""
        scale = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * scale, self.latent_shape[2] * scale

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory when training through the UNet."""
        self.pipeline.unet.enable_gradient_checkpointing()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning on prompts, a row each, cached in host memory per distinct prompt."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        for start in range(0, len(new), ENCODE_BATCH):
            chunk = new[start : start + ENCODE_BATCH]
            rows = self.encode_text(chunk).map(Tensor.cpu)
            self._rows.update({prompt: rows[i : i + 1] for i, prompt in enumerate(chunk)})
        self.num_encoded += len(new)
        return cat([self._rows[prompt] for prompt in prompts]).map(lambda value: value.to(self.device))

    def clear_cache(self) -> None:
        """Drop the cached prompts."""
        self._rows.clear()

    def negative(self) -> Conditioning:
        """The negative conditioning of guidance, one row."""
        if self.negative_row is None:
            return self.encode([""])
        return self.negative_row.map(lambda value: value.to(self.device))

    def decode(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Latents to images with values in [-1, 1], not clamped, float32."""
        vae = self.pipeline.vae
        shift = vae.config.shift_factor or 0.0
        images = vae.decode((x_0 / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float()
        if not images.isfinite().all():
            check_finite(x_0, "the latents to decode", GROWN)
            if (size := x_0.abs().max().item()) > LARGEST_LATENT:
                raise NotFinite(f"the latents to decode reach {size:.3g}, and the VAE overflows; {GROWN}")
            check_finite(images, "the images decoded by the VAE", self._vae_remedy())
        return images

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "b 3 hh ww"]) -> Float[Tensor, "b c h w"]:
        """Images with values in [-1, 1] to latents: the mode of the VAE's posterior."""
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode().float()
        check_finite(latents, "the latents that the VAE encodes images to", self._vae_remedy())
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def _vae_remedy(self) -> str:
        """The remedy where the VAE's output is not finite."""
        if self.pipeline.vae.dtype == torch.float16:
            return (
                "fp16 overflows in SDXL's first VAE: give --base.vae madebyollin/sdxl-vae-fp16-fix, or "
                "--base.precision bf16 or fp32"
            )
        return "the VAE's files are damaged: name another with --base.vae"

    def sampler(self, num_steps: int, *, eta: float = 1.0) -> DDIM:
        """DDIM on the model's own noise schedule; eta = 1 is ancestral sampling, 0 deterministic."""
        return DDIM(self.schedule(num_steps), eta=eta)

    def schedule(self, num_steps: int) -> NoiseSchedule:
        """The model's own noise schedule on a grid of DDIM steps."""
        scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps)
        return NoiseSchedule(
            alphas_cumprod=scheduler.alphas_cumprod.double(),
            final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
            prediction_type=scheduler.config.prediction_type,
            timesteps=tuple(scheduler.timesteps.tolist()),
        )

    def save_adapter(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write `pytorch_lora_weights.safetensors`, loadable by `pipe.load_lora_weights(folder)`, and beside it
        `kohya.safetensors`, the same adapter for ComfyUI and A1111."""
        write_lora(folder, weights, version=dict(self.lora_version))


def text_readers(pipeline: DiffusionPipeline) -> dict[str, Callable[[list[str]], int]]:
    """A pipeline's text encoders by name, SDXL's two, each as the number of given prompts that it cuts."""

    def reader(tokenizer: CLIPTokenizer) -> Callable[[list[str]], int]:
        return lambda prompts: num_cut(tokenizer, prompts, tokenizer.model_max_length)

    tokenizers = {name: part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part}
    return {name.replace("tokenizer", "text_encoder"): reader(part) for name, part in tokenizers.items()}


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "b l"]:
    """Prompts as a text encoder of a base model takes them: all padded or cut to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
