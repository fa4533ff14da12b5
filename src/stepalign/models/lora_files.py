"""LoRA files: finding one in a folder, reading tensors and settings, and writing the two files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from stepalign.support.files import replacing
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.tensor_files import read_header, read_tensors

LORA_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""File names of adapters by priority: diffusers' before PEFT's, pickled ones last."""
KOHYA_FILE = "kohya.safetensors"
"""A run's adapter under the names that ComfyUI and A1111 read."""
PEFT_CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps ranks and alphas in a safetensors file."""


def choose_lora(name: str, files: list[str]) -> str:
    """The adapter among the files of a folder or repository; raises ValueError for none and for several."""
    there = sorted(file for file in files if file.endswith((".safetensors", ".bin")))
    safetensors = [file for file in there if file.endswith(".safetensors")]
    for file in LORA_FILES[:2]:
        if file in there:
            return file
    if len(safetensors) == 1:
        return safetensors[0]
    for file in LORA_FILES[2:]:
        if file in there and not safetensors:
            return file
    if not safetensors:
        raise ValueError(f"adapters: {name!r} has no {LORA_FILES[0]}; of a run give the folder adapter/")
    raise ValueError(f"adapters: {name!r} has several .safetensors files; give one: {', '.join(safetensors)}")


def read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of an adapter's file: diffusers' metadata, else the adapter_config.json beside PEFT's file.

    Raises ValueError for a damaged file.
    """
    tensors = read_tensors(file)
    if file.suffix == ".safetensors" and (text := read_header(file)[1].get(METADATA)):
        return tensors, _settings(text, f"the {METADATA} of {file}")
    config = settings_file(file)
    return tensors, {} if config is None else _settings(read_text(config, "settings"), str(config))


def settings_file(file: Path) -> Path | None:
    """The adapter_config.json beside an adapter's file, if it is PEFT's."""
    config = file.with_name(PEFT_CONFIG)
    return config if file.name.startswith("adapter_model.") and config.is_file() else None


def write_lora(folder: Path, weights: dict[str, Tensor], *, version: dict[str, str]) -> None:
    """Write a UNet's LoRA, with alpha = rank, in diffusers' and kohya's layouts, each file atomically.

    `weights` are named as in peft (MODULE.lora_A.weight); `version`, kohya's metadata, names the base model. It has
    one entry: safetensors writes several in an order that differs from process to process.
    """
    assert len(version) == 1
    tensors = {f"unet.{key}": value.detach().cpu().contiguous() for key, value in weights.items()}
    with replacing(folder / LORA_FILES[0]) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    kohya = {key: value.contiguous() for key, value in convert_state_dict_to_kohya(tensors).items()}
    kohya |= {key: value.to(torch.float32) for key, value in kohya.items() if key.endswith(".alpha")}
    with replacing(folder / KOHYA_FILE) as temporary:
        save_file(kohya, temporary, metadata=version)


def _settings(text: str, where: str) -> dict[str, Any]:
    found = parse_json(text, where)
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no table of settings")
    return found
