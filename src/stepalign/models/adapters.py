"""Other weights for a loaded base model: LoRA adapters on its networks, or a whole fine-tuned UNet."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from stepalign.clip import first_line
from stepalign.models.base import BaseModel

WEIGHTS = "pytorch_lora_weights.safetensors"
NETWORKS = ("unet", "text_encoder", "text_encoder_2")
LAYOUTS = "those of diffusers (unet. ..., text_encoder. ...) and of kohya (lora_unet_..., lora_te_...)"
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
PREFIXES = tuple(f"{name}." for name in NETWORKS) + KOHYA
"""How the tensors of an adapter may begin."""
SCALE = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
NOT_OF_THE_NETWORK = ("sample_size", "upcast_attention")
"""Fields of a UNet's config that change nothing it computes from latents of a given size."""


def split_scale(entry: str) -> tuple[str, float]:
    """A path or hub id and its scale, of "PATH" or "PATH:SCALE"; a file or folder of that very name has the scale 1.

    Only a number behind the last colon counts, so that other colons stay part of the path.
    """
    found = SCALE.fullmatch(entry)
    if found is None or Path(entry).expanduser().exists():
        return entry, 1.0
    return found[1], float(found[2])


def find_adapter(name: str) -> Path:
    """The .safetensors file of an adapter: a file, a folder, owner/name or owner/name/file on the hub.

    Of a folder or repository it is `pytorch_lora_weights.safetensors`, or the only .safetensors file. Raises ValueError
    when there is none, or which one is not clear.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path / _choose(name, [file.name for file in path.glob("*.safetensors")])
    if not path.exists():
        path = _from_hub(name)
    if path.suffix != ".safetensors":
        raise ValueError(f"adapters: {name!r} is no .safetensors file; a pickled one can hold programs: convert it")
    return path


def load_adapters(model: BaseModel, adapters: list[tuple[str, float]]) -> list[Path]:
    """Put LoRA adapters, names with scales, on a model's networks, and return their files.

    A name is as `find_adapter` takes it; its file is in the layout of diffusers or kohya, for the UNet and, if it has
    any, the text encoders. The networks then predict with W + sum of scale (alpha / rank) B A; an adapter of scale 0 is
    checked like every other and has no part in it. Call it once, before any prompt is encoded.

    Raises ValueError unless every tensor of every file has found its place.
    """
    files = [find_adapter(name) for name, _ in adapters]
    for index, ((name, _), file) in enumerate(zip(adapters, files, strict=True)):
        with _quiet():
            _load(model, name, file, f"stepalign_{index}")
    active = {f"stepalign_{index}": scale for index, (_, scale) in enumerate(adapters) if scale != 0}
    if active:
        model.pipeline.set_adapters(list(active), list(active.values()))
    elif adapters:
        model.pipeline.disable_lora()
    for network in _networks(model):
        network.requires_grad_(False).eval()
    model.forget()
    return files


def replace_unet(model: BaseModel, name: str) -> None:
    """Put a fine-tuned UNet in the place of a model's own, before adapters are loaded.

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


def _load(model: BaseModel, name: str, file: Path, adapter_name: str) -> None:
    """Load one file under a name of its own and check that nothing of it was left out."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapters: {name!r} is damaged: {first_line(error)}") from error
    strange = [key for key in tensors if not key.startswith(PREFIXES) or "dora_scale" in key]
    if strange or not tensors:
        what = f"holds {strange[0]}" if strange else "holds nothing"
        raise ValueError(f"adapters: {name!r} {what}; the LoRA layouts that can be read are {LAYOUTS}")
    problem = f"adapters: {name!r} does not fit {model.name!r}"
    try:
        kohya = all(key.startswith(KOHYA) for key in tensors)
        weights = _without_alphas(tensors) if kohya else tensors
        model.pipeline.load_lora_weights(weights if kohya else str(file), adapter_name=adapter_name)
    except Exception as error:  # of diffusers, peft or transformers, each with kinds of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{problem}: {reason[:300]}") from error
    loaded = _adapter_of(model, adapter_name)
    _check_taken(weights, loaded, problem)
    for _, value in loaded:
        value.data = value.data.float()  # as adapters are trained


def _without_alphas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file in kohya's layout with alpha / rank multiplied into each module's B.

    Where alphas differ within a file, diffusers gives some of them to other modules.
    """
    weights = {}
    for key, tensor in tensors.items():
        alpha = tensors.get(f"{key.split('.')[0]}.alpha")
        if alpha is not None and key.endswith(".lora_up.weight"):
            weights[key] = tensor.float() * (alpha.item() / tensor.shape[1])
        elif not key.endswith(".alpha"):
            weights[key] = tensor.float()
    return weights


def _adapter_of(model: BaseModel, adapter_name: str) -> list[tuple[str, Tensor]]:
    """The parameters that the networks hold under an adapter's name."""
    return [
        (key, value)
        for network in _networks(model)
        for key, value in network.named_parameters()
        if adapter_name in key.split(".")
    ]


def _check_taken(weights: dict[str, Tensor], loaded: list[tuple[str, Tensor]], problem: str) -> None:
    """Raise ValueError unless the loaded parameters are the file's tensors, value by value.

    The libraries only warn of tensors that have no place, and draw at random what is missing.
    """
    unfilled = [key for key, value in loaded if value.is_meta]
    if unfilled:
        raise ValueError(f"{problem}: it has no weights for {unfilled[0]}")
    places: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for _, value in loaded:
        places[_likeness(value)].append(value.detach().cpu())
    dtypes = {value.dtype for _, value in loaded}
    lost = [key for key, tensor in weights.items() if not any(_take(places, tensor.to(dtype)) for dtype in dtypes)]
    if lost:
        raise ValueError(f"{problem}: {len(lost)} of its {len(weights)} tensors have no place in it: {lost[0]}, ...")
    if len(loaded) > len(weights):
        raise ValueError(f"{problem}: it has {len(weights)} tensors, and its layers take {len(loaded)}")


def _take(places: dict[tuple[Any, ...], list[Tensor]], tensor: Tensor) -> bool:
    """Whether a place holds just this tensor; it is then taken."""
    found = places.get(_likeness(tensor), [])
    for index, value in enumerate(found):
        if torch.equal(value, tensor):
            found.pop(index)
            return True
    return False


def _likeness(tensor: Tensor) -> tuple[Any, ...]:
    """What equal tensors share and others rarely do."""
    return tensor.shape, tensor.dtype, tensor.flatten()[0].item() if tensor.numel() else None


def _networks(model: BaseModel) -> list[nn.Module]:
    return [model.pipeline.components[part] for part in NETWORKS if part in model.pipeline.components]


def _from_hub(name: str) -> Path:
    parts = name.split("/")
    if len(parts) < 2 or not all(parts) or name.startswith((".", "~")):
        raise ValueError(f"adapters: there is no file or folder {name!r}, and it is not a hub id (owner/name)")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if file:
            return Path(hf_hub_download(repository, file))
        try:
            return Path(hf_hub_download(repository, WEIGHTS))
        except EntryNotFoundError:
            top = [path for path in list_repo_files(repository) if path.endswith(".safetensors") and "/" not in path]
            return Path(hf_hub_download(repository, _choose(name, top)))
    except (OSError, ValueError) as error:  # of the hub, whose errors are these
        raise ValueError(
            f"adapters: {name!r} is no file or folder here, and on the hub: {first_line(error)}"
        ) from error


def _choose(name: str, files: list[str]) -> str:
    """The adapter among the .safetensors files of a folder or repository."""
    if WEIGHTS in files:
        return WEIGHTS
    if len(files) == 1:
        return files[0]
    if not files:
        raise ValueError(f"adapters: {name!r} has no {WEIGHTS}; of a run give the folder adapter/")
    raise ValueError(f"adapters: {name!r} has several .safetensors files; give one: {', '.join(sorted(files))}")


def _from_unet(name: str, dtype: torch.dtype) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """The UNet of a folder or hub id, and what diffusers found amiss with its weights."""
    path = Path(name).expanduser()
    subfolders: list[str | None] = ["unet", None]
    if path.is_dir():
        subfolders = ["unet"] if (path / "unet").is_dir() else [None]
    elif path.exists() or len(name.split("/")) != 2 or name.startswith((".", "~", "/")):
        raise ValueError(f"unet: there is no folder {name!r}, and it is not a hub id (owner/name)")
    source = str(path) if path.is_dir() else name
    reason = ""
    for subfolder in subfolders:
        try:
            with _quiet():
                return _read_unet(source, subfolder, dtype)
        except Exception as error:  # a damaged folder has diffusers raise nearly anything
            reason = reason or first_line(error).rstrip(".")
    raise ValueError(f"unet: cannot load {name!r}: {reason}. Give a folder with a UNet2DConditionModel's config.json")


def _read_unet(source: str, subfolder: str | None, dtype: torch.dtype) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    config = UNet2DConditionModel.load_config(source, subfolder=subfolder)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"its config.json is of {config.get('_class_name')}")
    loaded: tuple[UNet2DConditionModel, dict[str, Any]] = UNet2DConditionModel.from_pretrained(
        source, subfolder=subfolder, torch_dtype=dtype, output_loading_info=True
    )
    return loaded


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """A UNet's config without what does not matter, one value for a list of equal ones, None for what is off."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            items = [plain(item) for item in value]
            return items[0] if items and all(item == items[0] for item in items) else items
        return value or None

    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in NOT_OF_THE_NETWORK}
    return {key: plain(value) for key, value in kept.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries from printing and warning; what matters of it is checked."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
