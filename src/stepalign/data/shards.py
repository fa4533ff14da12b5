"""Shards: safetensors files of rows with plain columns and a checksum in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepalign.support.digests import tensors_digest, text_digest
from stepalign.support.files import replacing


def read_rows(places: list[tuple[Path, int]], names: list[str]) -> dict[str, Tensor]:
    """Rows of tensors from files, in order; names that are missing in the files are left out."""
    by_file: dict[Path, list[int]] = {}
    for position, (path, _) in enumerate(places):
        by_file.setdefault(path, []).append(position)
    found: list[dict[str, Tensor]] = [{} for _ in places]
    for path, positions in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                present = [name for name in names if name in set(file.keys())]
                for position in positions:
                    row = places[position][1]
                    found[position] = {name: file.get_slice(name)[row : row + 1] for name in present}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"data.cache: {path} cannot be read any more; run again to make it anew") from error
    return {name: torch.cat([row[name] for row in found]) for name in found[0]}


def save_shard(path: Path, tensors: dict[str, Tensor], columns: dict[str, Any]) -> None:
    """Write tensors by row, and plain columns beside them, atomically."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    values = columns | {"sha256": _digest(contiguous, columns)}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"columns": json.dumps(values)})


def shard_columns(path: Path) -> dict[str, Any]:
    """The plain columns of a shard."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["columns"])


def shard_path(folder: Path, kind: str, shard: int) -> Path:
    """The path of a shard by its number."""
    return folder / f"{kind}-{shard:06d}.safetensors"


def shards_of(folder: Path, kind: str) -> list[Path]:
    """The existing shards of a kind, in order."""
    return sorted(folder.glob(f"{kind}-*.safetensors"))


def is_whole(path: Path) -> bool:
    """Whether a shard exists and matches its checksum."""
    try:
        with safe_open(path, framework="pt") as file:
            columns = json.loads(file.metadata()["columns"])
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        return columns.pop("sha256") == _digest(tensors, columns)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _digest(tensors: dict[str, Tensor], columns: dict[str, Any]) -> str:
    return text_digest([tensors_digest(tensors), json.dumps(columns)])
