"""Loading a base model from a diffusers folder, a hub id or a single .safetensors file, whatever its family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import nn

from stepalign.core.choices import PredictionType
from stepalign.models.base import BaseModel, Family
from stepalign.models.clip import check_tokenizer
from stepalign.models.families import SUPPORTED, family_of_file, family_of_folder, tokenizers_of
from stepalign.models.prediction import check_schedule, settle_schedule
from stepalign.support.hub import check_folder, is_hub_id, out_of_reach, reach_hub
from stepalign.support.tensor_files import variant_of

WANTED = {
    "model": f"Give a diffusers folder (with model_index.json) of {SUPPORTED}, a hub id that can be reached, or a "
    ".safetensors file with --base.config",
    "vae": "Give a diffusers folder of an AutoencoderKL (with its config.json) or a hub id that can be reached",
}
Loaded = TypeVar("Loaded")


def load(
    name: str,
    *,
    config: str | None = None,
    vae: str | None = None,
    prediction_type: PredictionType | None = None,
    resolution: int | tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> BaseModel:
    """Load a base model, frozen and ready to sample.

    `name` is a diffusers folder, a hub id or a `.safetensors` file in Stable Diffusion's original layout; such a file
    holds no tokenizer, so it takes configs and tokenizer from `config`, a diffusers folder or hub id (by default the
    hub repository that diffusers knows the layout by). `vae`, a folder or hub id of a diffusers VAE, replaces the
    model's own. `prediction_type` is what the network predicts where the files do not state it or are wrong.
    `resolution` is the image's side in pixels or its (height, width), by default the one the model was trained at.
    Of a folder's weights the full ones are taken, else those in half precision (`*.fp16.safetensors`).

    Raises ValueError when nothing can be loaded from `name` or `vae`, or the parts do not fit together.
    """
    check_names(name, config=config, vae=vae)
    path = Path(name).expanduser()
    borrowed = [config] if path.is_file() else [name]  # a file's configs are on the hub unless a folder is given
    if not all(other is not None and Path(other).expanduser().is_dir() for other in [*borrowed, vae or "."]):
        reach_hub()
    source = str(path) if path.exists() else name
    schedule: dict[str, object] = {} if prediction_type is None else {"prediction_type": prediction_type}
    if path.is_file():
        family, schedule = _from("model", name, partial(family_of_file, path, config, prediction_type))
    else:
        family = _from("model", name, partial(family_of_folder, source))
    load_vae = partial(_load_vae, name, source, config=config, replacement=vae)
    given = {**family.options, "torch_dtype": dtype, "vae": load_vae(dtype=dtype)}
    if family.honours_force_upcast and given["vae"].config.force_upcast and dtype != torch.float32:
        given["vae"] = load_vae(dtype=torch.float32)  # loaded again: what was rounded to half precision stays rounded
    if path.is_file():
        pipeline = _from("model", name, lambda: family.pipeline.from_single_file(source, config=config, **given))
    else:
        given["unet"] = _from(
            "model", name, partial(read_part, UNet2DConditionModel, source, "unet", torch_dtype=dtype)
        )
        for part, kind in family.text_encoders.items():
            given[part] = _load_text_encoder(name, source, part, kind=kind, dtype=dtype)
        pipeline = _from("model", name, lambda: family.pipeline.from_pretrained(source, **given))
    settle_schedule(pipeline, schedule)
    _check_complete(name, pipeline, family)
    pipeline.to(device)
    for part in ("unet", "vae", *family.text_encoders):
        pipeline.components[part].requires_grad_(False).eval()
    return _model(name, pipeline, family, resolution)


def check_names(name: str, *, config: str | None = None, vae: str | None = None) -> None:
    """Raise ValueError for names that are nothing on this machine and cannot be of the hub, before anything is read."""
    path = Path(name).expanduser()
    if not (path.is_file() or path.is_dir() or is_hub_id(name)):
        raise ValueError(f"model: there is no file or folder {name!r}, and it is not a hub id (owner/name)")
    for field, other in (("config", config), ("vae", vae)):
        if other is not None:
            check_folder(other, field)


def _model(
    name: str, pipeline: DiffusionPipeline, family: Family, resolution: int | tuple[int, int] | None
) -> BaseModel:
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    height, width = _latent_size(pipeline.unet.config.sample_size, resolution, scale)
    size = (height * scale, width * scale)
    return BaseModel(
        pipeline,
        (pipeline.unet.config.in_channels, height, width),
        name,
        encode_text=partial(family.encode_text, pipeline, size),
        negative_row=family.negative(pipeline, size),
        forward=family.forward,
        target_modules=family.target_modules,
        lora_version=family.lora_version(pipeline),
    )


def _load_vae(
    name: str, source: str, *, config: str | None, replacement: str | None, dtype: torch.dtype
) -> AutoencoderKL:
    """The model's own VAE or the one that replaces it."""
    if replacement is not None:
        folder = str(Path(replacement).expanduser())
        vae = _from("vae", replacement, lambda: read_part(AutoencoderKL, folder, None, torch_dtype=dtype))
        _check_weights("vae", replacement, vae, "VAE")
        return vae
    if Path(source).is_file():
        own = {"subfolder": "vae", "torch_dtype": dtype, "config": config}
        return _from("model", name, lambda: AutoencoderKL.from_single_file(source, **own))
    return _from("model", name, lambda: read_part(AutoencoderKL, source, "vae", torch_dtype=dtype))


def read_part(kind: Any, source: str, part: str | None, **given: Any) -> Any:
    """A part of a diffusers folder or hub repository, in the variant that a folder has (`tensor_files.variant_of`)."""
    folder = Path(source) / part if part else Path(source)
    where = {} if part is None else {"subfolder": part}
    variant = variant_of(folder) if folder.is_dir() else None
    return kind.from_pretrained(source, variant=variant, **where, **given)


def _load_text_encoder(name: str, source: str, part: str, *, kind: Any, dtype: torch.dtype) -> nn.Module:
    """A folder's text encoder; what its file lacks transformers would fill with random numbers."""
    given = {"dtype": dtype, "output_loading_info": True}
    encoder, info = _from("model", name, lambda: read_part(kind, source, part, **given))
    _refuse_missing("model", name, sorted(info["missing_keys"]), part)
    return encoder


def _check_complete(name: str, pipeline: DiffusionPipeline, family: Family) -> None:
    """Raise ValueError for faults that the libraries accept, from missing weights to incompatible parts."""
    for part in ("unet", "vae", *family.text_encoders):
        _check_weights("model", name, pipeline.components[part], part)
    for part, tokenizer in zip(family.text_encoders, tokenizers_of(family), strict=True):
        text_config = pipeline.components[part].config
        check_tokenizer(pipeline.components[tokenizer], text_config.vocab_size, f"model: {name}")
        # Everything that pads or cuts asks the tokenizer, and converters drop its length (transformers then says 1e30).
        length = min(pipeline.components[tokenizer].model_max_length, text_config.max_position_embeddings)
        pipeline.components[tokenizer].model_max_length = length
    takes, has = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if takes != has:
        raise ValueError(
            f"model: the UNet of {name!r} takes {takes} channels and latents of the VAE have {has}; give a "
            "text-to-image model (none for inpainting or editing) and a VAE made for it"
        )
    try:
        check_schedule(pipeline)
    except ValueError as error:
        raise ValueError(f"model: {name!r} {error}") from error


def _check_weights(field: str, name: str, module: nn.Module, part: str) -> None:
    """Refuse a module with tensors on the meta device, where diffusers leaves what a file lacks."""
    _refuse_missing(field, name, [key for key, value in module.named_parameters() if value.is_meta], part)


def _refuse_missing(field: str, name: str, missing: list[str], part: str) -> None:
    if missing:
        raise ValueError(
            f"{field}: {name!r} has no weights for {len(missing)} tensors of its {part}: {missing[0]}, ..."
        )


def _latent_size(
    trained_at: int | Sequence[int], resolution: int | tuple[int, int] | None, scale: int
) -> tuple[int, int]:
    """Height and width of the latents; raises ValueError for a resolution that is no multiple of the VAE's scale."""
    wanted = trained_at if resolution is None else resolution
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    if resolution is None:
        return height, width
    if min(height, width) < scale or height % scale or width % scale:
        raise ValueError(f"resolution must be a positive multiple of {scale} for this model, got {resolution}")
    return height // scale, width // scale


def _from(field: str, name: str, load_part: Callable[[], Loaded]) -> Loaded:
    """Run a loader; whatever diffusers or the hub raise becomes one ValueError that names the field and its value."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_part()
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        if not Path(name).expanduser().exists() and out_of_reach():
            reason = out_of_reach()
        raise ValueError(f"{field}: cannot load {name!r}: {reason}. {WANTED[field]}") from error
