"""What makes a scorer's numbers repeatable: which weights, prepared how, computed by what."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from stepalign.protocols import ScorerRecord

LIBRARIES = ("stepalign", "torch", "transformers", "pillow")
CHUNK = 1 << 22


def scorer_record(
    name: str,
    *,
    weights: str,
    files: list[Path],
    preprocessing: str,
    scale: str,
    needs_prompt: bool = True,
    tensors: dict[str, Tensor] | None = None,
) -> ScorerRecord:
    """The record of a scorer; `weights` is the name it was loaded by, of which a local path keeps its last part.

    Weights that came from no file are known by their `tensors`; with neither it raises ValueError.
    """
    if not files and not tensors:
        raise ValueError(f"the record of {name} needs the files or the tensors of its weights, got neither")
    source = Path(weights).expanduser()
    return ScorerRecord(
        name=name,
        weights=source.resolve().name if source.exists() else weights,
        sha256=files_sha256(files) if files else tensors_sha256(tensors or {}),
        preprocessing=preprocessing,
        scale=scale,
        needs_prompt=needs_prompt,
        libraries={library: version(library) for library in LIBRARIES},
    )


def files_sha256(files: list[Path]) -> str:
    """The SHA-256 of a file; of several, that of theirs in the order of their names.

    A single file's is what `sha256sum` prints and a hub shows.
    """
    digests = []
    for path in sorted(files, key=lambda path: path.name):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of tensors, their names, types and shapes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
