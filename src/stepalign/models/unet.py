"""Replacement of a model's UNet by a fine-tuned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from stepalign.models.base import BaseModel
from stepalign.models.quiet import quiet
from stepalign.support.errors import first_line
from stepalign.support.hub import check_folder, out_of_reach, reach_hub
from stepalign.support.tensor_files import variant_of

NOT_OF_THE_NETWORK = ("sample_size", "upcast_attention")
"""Fields of a UNet's config without effect on its output for latents of a given size."""


def replace_unet(model: BaseModel, name: str) -> None:
    """Replace a model's UNet by a fine-tuned one, before adapters are loaded.

    `name` is a folder or hub id with a UNet's config.json, at its top or under unet/. Raises ValueError when none can
    be loaded whole, or when its config is not the one of the UNet it replaces.
    """
    own = model.pipeline.unet
    unet, info = _from_unet(name, own.dtype)
    theirs, ours = _architecture(unet.config), _architecture(own.config)
    different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if different:
        key = different[0]
        raise ValueError(
            f"unet: {name!r} is not for {model.name!r}: its {key} is {unet.config.get(key)}, the model's "
            f"{own.config.get(key)}"
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            words = problem.replace("_keys", "")
            raise ValueError(
                f"unet: {name!r} has {len(info[problem])} {words} tensors: {sorted(info[problem])[0]}, ..."
            )
    model.pipeline.register_modules(unet=unet.to(own.device).requires_grad_(False).eval())


def _from_unet(name: str, dtype: torch.dtype) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """The UNet of a folder or hub id, and diffusers' report on its weights."""
    path = Path(name).expanduser()
    subfolders: list[str | None] = ["unet", None]
    check_folder(name, "unet")
    if path.is_dir():
        subfolders = ["unet"] if (path / "unet").is_dir() else [None]
    else:
        reach_hub()
    source = str(path) if path.is_dir() else name
    reason = ""
    for subfolder in subfolders:
        try:
            with quiet():
                return _read_unet(source, subfolder, dtype)
        except Exception as error:  # for a damaged folder diffusers raises exceptions of many kinds
            reason = reason or (not path.exists() and out_of_reach()) or first_line(error).rstrip(".")
    raise ValueError(f"unet: cannot load {name!r}: {reason}. Give a folder with a UNet2DConditionModel's config.json")


def _read_unet(source: str, subfolder: str | None, dtype: torch.dtype) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    config = UNet2DConditionModel.load_config(source, subfolder=subfolder)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"its config.json is of {config.get('_class_name')}")
    folder = Path(source) / (subfolder or "")
    variant = variant_of(folder) if folder.is_dir() else None
    loaded: tuple[UNet2DConditionModel, dict[str, Any]] = UNet2DConditionModel.from_pretrained(
        source, subfolder=subfolder, variant=variant, torch_dtype=dtype, output_loading_info=True
    )
    return loaded


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """A UNet's config in canonical form: without irrelevant fields, one value for equal lists, None for disabled
    ones."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            items = [plain(item) for item in value]
            return items[0] if items and all(item == items[0] for item in items) else items
        return value or None

    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in NOT_OF_THE_NETWORK}
    return {key: plain(value) for key, value in kept.items()}
