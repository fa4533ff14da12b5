"""Weight files: finding the files of a folder, and reading their tensors by name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

PRECISIONS = ("fp32", "bf16", "fp16")
"""Variants that differ in rounding only, in order of preference."""
NAMES = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model(?!.*bin$))"
    r"(?:\.(?P<variant>[\w-]+?))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<late>\w+))?\.(?P<kind>safetensors|bin)"
)
"""File names of weights in diffusers and transformers: model.safetensors, model.fp16.safetensors,
model.fp16-00001-of-00002.safetensors, and early model-00001-of-00002.fp16.safetensors."""


def variant_of(folder: Path) -> str | None:
    """The variant of a folder's weights to load: None for the full ones, which are preferred.

    Raises ValueError for several variants without full weights, none of which is a precision.
    """
    variants = {found["variant"] or found["late"] for found in _named(folder).values()}
    if not variants or None in variants:
        return None
    chosen = next((name for name in PRECISIONS if name in variants), None)
    if chosen is None and len(variants) > 1:
        raise ValueError(f"{folder} has weights in several variants and none without: {', '.join(sorted(variants))}")
    return chosen or variants.pop()


def weight_files(folder: Path) -> list[Path]:
    """The sorted weight files of a folder, shards included; empty where there are none.

    They are the files that diffusers and transformers read with `variant=variant_of(folder)`: safetensors before
    pickled ones.
    """
    variant = variant_of(folder)
    found = {path: match for path, match in _named(folder).items() if (match["variant"] or match["late"]) == variant}
    for kind in ("safetensors", "bin"):
        files = {path: match for path, match in found.items() if match["kind"] == kind}
        if files:
            whole = [path for path, match in files.items() if match["shard"] is None]
            return sorted(whole or files)
    return []


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's weights, from all shards; raises ValueError where one is missing or damaged."""
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} has no weights: no model.safetensors, nor a variant of it")
    num = max(int(number) for file in files for number in re.findall(r"-of-(\d+)", file.name) or ["1"])
    if num != len(files):
        raise ValueError(f"{folder} has {len(files)} of the {num} files that its weights were saved in")
    return {key: tensor for file in files for key, tensor in read_tensors(file).items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickled dict of tensors by name, mapped into memory.

    No code in a file is run. A dict under "state_dict" is taken as the tensors. Raises ValueError for a missing or
    damaged file, and for one with code or other objects beside its tensors.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torch maps the files it has written since 1.6; older ones have to be read.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of a dozen kinds; some of torch's messages advise to run the file's code
        raise ValueError(f"{path} is damaged, or holds more than tensors ({type(error).__name__})") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        raise ValueError(f'{path} is no dict of tensors by name, nor has one under "state_dict"')
    return dict(entries)


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the tensors of a safetensors file, and its metadata, without its tensors.

    Raises ValueError for a missing or damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()), dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own exception, and OSError
        raise ValueError(f"{path} is damaged or no safetensors file ({type(error).__name__})") from error


def _named(folder: Path) -> dict[Path, re.Match[str]]:
    """A folder's files with names of weights."""
    found = {path: NAMES.fullmatch(path.name) for path in folder.iterdir() if path.is_file()}
    return {path: match for path, match in found.items() if match is not None}
