"""Strict loading of weights from local paths and the hub: none initialised at random, none ignored silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from stepalign.support.errors import first_line
from stepalign.support.hub import ask_hub, not_on_hub, split_hub_file
from stepalign.support.parsing import parse_json, read_text
from stepalign.support.tensor_files import variant_of

SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
CLIP_TEXT = ("text_model.", "text_projection.", "logit_scale")
"""Tensors of a whole CLIP beside its vision tower."""


def weights_file(name: str, *, filename: str) -> Path:
    """A file of weights: a local one, that of a local folder, or one of a hub repository.

    A folder with several gives the one named `filename`, and so does "owner/repository";
    "owner/repository/file.pth" names another. Raises ValueError when there is none, or several and none so named.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        chosen = [file for file in found if file.name == filename] or found
        if len(chosen) != 1:
            there = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path} should have one file of weights, or one named {filename}; it has {there}")
        return chosen[0]
    repository, inside = split_hub_file(name) or (name, filename)
    ask_hub(repository, "file or folder")
    try:
        return Path(hf_hub_download(repository, inside))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(not_on_hub(f"{repository}/{inside}", "file")) from error


def check_weights(weights: dict[str, Tensor], shapes: dict[str, torch.Size], *, what: str) -> None:
    """Refuse weights that are not exactly those expected: raises ValueError naming every missing or unknown one."""
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    for problem, keys in (("no weights for", missing), ("weights that are not part of it,", unknown)):
        if keys:
            raise ValueError(f"{what} has {problem} {', '.join(keys)}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"{what}: {name} should be {tuple(shape)}, it is {tuple(weights[name].shape)}")


def model_type(folder: Path) -> str:
    """The `model_type` in the config of a transformers folder; raises ValueError when there is none."""
    try:
        kind = parse_json(read_text(folder / "config.json", "config"), str(folder / "config.json"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} has no config.json with a model_type") from error
    return str(kind)


def load_clip_vision(folder: Path) -> CLIPVisionModelWithProjection:
    """The vision tower of a CLIP model with its projection, alone in its folder or with the rest; in fp32."""
    kind = model_type(folder)
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{folder} holds a model of type {kind!r}, not a CLIP")
    config = CLIPVisionConfig.from_pretrained(folder)
    if kind == "clip":
        config.projection_dim = CLIPConfig.from_pretrained(folder).projection_dim
    return load_strictly(CLIPVisionModelWithProjection, folder, config=config, other_parts=CLIP_TEXT)


def load_strictly(kind: Any, folder: Path, *, config: Any = None, other_parts: tuple[str, ...] = ()) -> Any:
    """A model of a transformers class in fp32; raises ValueError naming weights that are missing or unknown.

    `other_parts` are prefixes of tensors that may be present and are not used.
    """
    try:
        given = {"config": config, "dtype": torch.float32, "variant": variant_of(folder)}
        model, found = kind.from_pretrained(folder, output_loading_info=True, **given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no {kind.__name__} that fits its config: {first_line(error)}") from error
    unknown = [key for key in found["unexpected_keys"] if "position_ids" not in key and not key.startswith(other_parts)]
    for problem, keys in (("no weights for", found["missing_keys"]), ("unknown weights,", unknown)):
        if keys:
            raise ValueError(f"{folder} as a {kind.__name__} has {problem} {', '.join(sorted(keys))}")
    return model
