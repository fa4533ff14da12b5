"""What makes a scorer's numbers repeatable: which weights, prepared how, computed by what."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from stepalign.identity import Identity, files_digest, tensors_digest, values_digest
from stepalign.protocols import ScorerRecord

LIBRARIES = ("stepalign", "torch", "transformers", "pillow")


def scorer_record(
    name: str,
    *,
    weights: str,
    files: list[Path],
    preprocessing: str,
    scale: str,
    needs_prompt: bool = True,
    libraries: tuple[str, ...] = (),
    tensors: dict[str, Tensor] | None = None,
    parts: Identity | None = None,
) -> ScorerRecord:
    """The record of a scorer; `weights` is the name it was loaded by, of which a local path keeps its last part.

    `parts` are the digests of what was loaded: weights, configs, tokenizer. Weights that came from no file are known by
    their `tensors`; with neither it raises ValueError. `libraries` are those that decide the number beside `LIBRARIES`.
    """
    if not files and not tensors:
        raise ValueError(f"the record of {name} needs the files or the tensors of its weights, got neither")
    source = Path(weights).expanduser()
    sha256 = files_digest(files) if files else tensors_digest(tensors or {})
    return ScorerRecord(
        name=name,
        weights=source.resolve().name if source.exists() else weights,
        sha256=sha256,
        preprocessing=preprocessing,
        scale=scale,
        needs_prompt=needs_prompt,
        libraries={library: version(library) for library in (*LIBRARIES, *libraries)},
        content=values_digest(parts) if parts else sha256,
    )
