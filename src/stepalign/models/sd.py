"""Stable Diffusion 1.x and 2.x from a diffusers folder, a hub id or a single .safetensors file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from stepalign.batch import Conditioning
from stepalign.clip import check_tokenizer
from stepalign.sampler import NoiseSchedule

ENCODE_BATCH = 64


@dataclass(slots=True)
class StableDiffusion:
    """A loaded base model: what a policy, a judge and a sampler need of it."""

    pipeline: DiffusionPipeline
    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents sampled."""
    name: str
    num_encoded: int = 0
    """Prompts run through the text encoder so far; each distinct prompt runs once."""
    _tokens: dict[str, Float[Tensor, "l d"]] = field(default_factory=dict)

    @property
    def network(self) -> torch.nn.Module:
        """The UNet."""
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory when training through the UNet."""
        self.pipeline.unet.enable_gradient_checkpointing()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Text embeddings of prompts, cached in host memory per distinct prompt."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._tokens]
        for start in range(0, len(new), ENCODE_BATCH):
            chunk = new[start : start + ENCODE_BATCH]
            tokenizer = self.pipeline.tokenizer
            ids = tokenizer(
                chunk, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            states = self.pipeline.text_encoder(ids.to(self.device)).last_hidden_state
            self._tokens.update(zip(chunk, states.cpu(), strict=True))
        self.num_encoded += len(new)
        return Conditioning(torch.stack([self._tokens[prompt] for prompt in prompts]).to(self.device))

    def negative(self) -> Conditioning:
        """What guidance points away from: the encoded empty prompt, one row."""
        return self.encode([""])

    def decode(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """Latents to images with values in [-1, 1], not clamped, float32."""
        vae = self.pipeline.vae
        shift = vae.config.shift_factor or 0.0
        return vae.decode((x_0 / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float()

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "b 3 hh ww"]) -> Float[Tensor, "b c h w"]:
        """Images with values in [-1, 1] to latents: the mode of the VAE's posterior."""
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

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
        """Write `pytorch_lora_weights.safetensors`, loadable by `pipe.load_lora_weights(folder)`."""
        self.pipeline.save_lora_weights(str(folder), unet_lora_layers=weights, safe_serialization=True)


def load(
    name: str,
    *,
    config: str | None = None,
    resolution: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> StableDiffusion:
    """Load a base model, frozen and ready to sample.

    `name` is a diffusers folder, a hub id or a `.safetensors` file in Stable Diffusion's original layout; such a file
    holds no tokenizer, so it takes configs and tokenizer from `config`, a diffusers folder or hub id (by default the
    hub repository that diffusers knows the layout by). `resolution` is the picture's side in pixels, by default the
    one the model was trained at.

    Raises ValueError when nothing can be loaded from `name`.
    """
    path = Path(name).expanduser()
    if path.is_file():
        pipeline = _from(name, lambda: _load_file(path, config, dtype))
    elif path.is_dir() or _is_hub_id(name):
        pipeline = _from(name, lambda: _load_folder(str(path) if path.is_dir() else name, dtype))
    else:
        raise ValueError(f"model: there is no file or folder {name!r}, and it is not a hub id (owner/name)")
    _check_complete(name, pipeline)
    pipeline.to(device)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    vae_scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    if resolution is not None and (resolution < vae_scale or resolution % vae_scale):
        raise ValueError(f"resolution must be a positive multiple of {vae_scale} for this model, got {resolution}")
    side = pipeline.unet.config.sample_size if resolution is None else resolution // vae_scale
    return StableDiffusion(pipeline, (pipeline.unet.config.in_channels, side, side), name)


def _check_complete(name: str, pipeline: DiffusionPipeline) -> None:
    """Refuse what the libraries let pass: weights left on the meta device, a tokenizer without words."""
    for part in ("unet", "vae", "text_encoder"):
        missing = [key for key, value in pipeline.components[part].named_parameters() if value.is_meta]
        if missing:
            raise ValueError(
                f"model: {name!r} has no weights for {len(missing)} tensors of its {part}: {missing[0]}, ..."
            )
    check_tokenizer(pipeline.tokenizer, pipeline.text_encoder.config.vocab_size, f"model: {name}")


def _load_folder(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        name, torch_dtype=dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _load_file(path: Path, config: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    return StableDiffusionPipeline.from_single_file(
        str(path), config=config, torch_dtype=dtype, safety_checker=None, feature_extractor=None
    )


def _from(name: str, load_pipeline: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """Run a loader; whatever diffusers or the hub raise becomes one ValueError that names the model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_pipeline()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model: cannot load {name!r} as a Stable Diffusion pipeline: {reason}. Give a diffusers folder (with "
            "model_index.json), a hub id that can be reached, or a .safetensors file with --base.config"
        ) from error


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))
