"""LoRA adapters on a loaded base model."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stepalign.models.base import BaseModel
from stepalign.models.lora_files import LORA_FILES, choose_lora, read_lora, settings_file
from stepalign.models.lora_layouts import LoraUpdate, check_lora, lora_updates
from stepalign.support.digests import file_digest, files_digest
from stepalign.support.errors import first_line
from stepalign.support.hub import is_hub_id, out_of_reach, reach_hub, split_hub_file

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
SCALE = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter's updates and the scale it acts at."""

    name: str
    updates: list[LoraUpdate]
    scale: float


def split_scale(entry: str) -> tuple[str, float]:
    """A path or hub id and its scale, of "PATH" or "PATH:SCALE"; a file or folder of exactly that name has scale 1.

    Only a number behind the last colon counts, so that other colons stay part of the path.
    """
    found = SCALE.fullmatch(entry)
    if found is None or Path(entry).expanduser().exists():
        return entry, 1.0
    return found[1], float(found[2])


def find_adapter(name: str) -> Path:
    """The file of an adapter: a file, a folder, owner/name or owner/name/file on the hub.

    In a folder or repository it is `pytorch_lora_weights.safetensors`, PEFT's `adapter_model.safetensors`, the only
    .safetensors file, or one of the first two as .bin. Raises ValueError when there is none, or several candidates.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path / choose_lora(name, [file.name for file in path.iterdir() if file.is_file()])
    if not path.exists():
        path = _from_hub(name)
    if path.suffix not in (".safetensors", ".bin"):
        raise ValueError(
            f"adapters: {name!r} is no .safetensors or .bin file; a {path.suffix or 'file without suffix'} may hold "
            "programs and whole checkpoints: convert it to .safetensors"
        )
    return path


def check_adapter(name: str) -> Path:
    """The file of an adapter, checked to be a LoRA in a known layout; needs no model.

    Raises ValueError as `find_adapter` does, and for a damaged or unsupported file, with its kind.
    """
    file = find_adapter(name)
    _read(name, file)
    return file


def adapter_digest(name: str) -> str:
    """The digest of an adapter: its file and PEFT's settings beside it."""
    file = check_adapter(name)
    settings = settings_file(file)
    return file_digest(file) if settings is None else files_digest([file, settings])


def load_adapters(model: BaseModel, adapters: list[tuple[str, float]]) -> list[Path]:
    """Put LoRA adapters, names with scales, on a model's networks, and return their files.

    A name is as `find_adapter` takes it; its file is in a layout of `lora_layouts`, for the UNet and, if it has any,
    the text encoders. The networks then predict with W + sum of scale (alpha / rank) B A; an adapter of scale 0 is
    checked like every other and has no effect. Call it once, before any prompt is encoded.

    Raises ValueError unless every tensor of every file matches a module, before anything is changed.
    """
    networks = {part: model.pipeline.components[part] for part in NETWORKS if part in model.pipeline.components}
    files = [find_adapter(name) for name, _ in adapters]
    loaded = []
    for index, ((name, scale), file) in enumerate(zip(adapters, files, strict=True)):
        tensors, config = _read(name, file)
        try:
            loaded.append(_Adapter(f"stepalign_{index}", lora_updates(tensors, config, networks), scale))
        except ValueError as error:
            raise ValueError(f"adapters: {name!r} does not fit {model.name!r}: {first_line(error)}") from error
    for part, network in networks.items():
        _put_on(network, part, [adapter for adapter in loaded if adapter.scale != 0])
    model.clear_cache()
    return files


def _read(name: str, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of an adapter's file, checked to be a LoRA's."""
    try:
        tensors, config = read_lora(file)
    except ValueError as error:
        raise ValueError(f"adapters: {name!r} is damaged: {first_line(error)}") from error
    try:
        check_lora(tensors, config)
    except ValueError as error:
        raise ValueError(f"adapters: {name!r} {first_line(error)}") from error
    return tensors, config


def _put_on(network: nn.Module, part: str, adapters: list[_Adapter]) -> None:
    """Put the adapters' updates of one network on it, frozen and active."""
    for adapter in adapters:
        updates = [update for update in adapter.updates if update.part == part]
        if updates:
            _inject(network, adapter.name, updates, adapter.scale)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([adapter.name for adapter in adapters], inference_mode=True)
    network.requires_grad_(False).eval()


def _inject(network: nn.Module, name: str, updates: list[LoraUpdate], scale: float) -> None:
    """Wrap the updates' modules in peft's layers and fill these with factors and scales.

    Modules, ranks and scales are set one by one: the loaders of diffusers and peft depend on their version, and are
    silently wrong in some (ranks that differ within a file, alphas of kohya's layout).
    """
    modules = "|".join(re.escape(update.module) for update in updates)
    config = LoraConfig(r=1, lora_alpha=1, target_modules=f"({modules})", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
        inject_adapter_in_model(config, network, adapter_name=name, low_cpu_mem_usage=True)
    for update in updates:
        layer = network.get_submodule(update.module)
        assert isinstance(layer, LoraLayer), f"{update.module} was not wrapped"
        for factors, tensor in ((layer.lora_A, update.down), (layer.lora_B, update.up)):
            factors[name].weight = nn.Parameter(tensor.to(layer.weight.device), requires_grad=False)
        layer.r[name] = len(update.down)
        layer.lora_alpha[name] = update.scale * len(update.down)
        layer.scaling[name] = scale * update.scale
    _check_strength(network, name, updates, scale)


@torch.no_grad()
def _check_strength(network: nn.Module, name: str, updates: list[LoraUpdate], scale: float) -> None:
    """Raise ValueError unless peft changes the smallest module by scale (alpha / rank) B A."""
    update = min(updates, key=lambda found: found.down.numel() + found.up.numel())
    expected = scale * update.scale * (update.up.flatten(1) @ update.down.flatten(1))
    layer: Any = network.get_submodule(update.module)
    changed = layer.get_delta_weight(name).float().cpu().flatten(1)
    if not torch.allclose(changed, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())):
        raise ValueError(f"adapters: the installed peft gives {update.module} another strength than its file does")


def _from_hub(name: str) -> Path:
    repository, file = split_hub_file(name) or (name, "")
    if not is_hub_id(repository):
        raise ValueError(f"adapters: there is no file or folder {name!r}, and it is not a hub id (owner/name)")
    reach_hub()
    try:
        if file:
            return Path(hf_hub_download(repository, file))
        try:
            return Path(hf_hub_download(repository, LORA_FILES[0]))
        except EntryNotFoundError:
            top = [path for path in list_repo_files(repository) if "/" not in path]
            return Path(hf_hub_download(repository, choose_lora(name, top)))
    except (OSError, ValueError) as error:  # of the hub, whose errors are these
        reason = out_of_reach() or first_line(error)
        raise ValueError(f"adapters: {name!r} is no file or folder here, and on the hub: {reason}") from error
