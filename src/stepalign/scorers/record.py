"""The record of a scorer, which makes its numbers repeatable: weights, preprocessing, libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepalign.core.protocols import ScorerRecord
from stepalign.support.digests import Identity, files_digest, tensors_digest, values_digest

LIBRARIES = ("stepalign", "torch", "transformers", "pillow")
DECISIVE = ("preprocessing", "scale", "needs_prompt")
"""Fields of a record, beside those of the weights, that decide the scores."""


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
    """The record of a scorer; `weights` is the name it was loaded by; of a local path the last part is kept.

    `parts` are the digests of what was loaded: weights, configs, tokenizer. Weights that came from no file are
    identified by their `tensors`; with neither it raises ValueError. `libraries` decide the score beside `LIBRARIES`.
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


def read_record(values: Mapping[str, Any]) -> ScorerRecord:
    """A record from plain values; fields of other versions are left out. Raises ValueError naming what is missing."""
    known = {field.name: values[field.name] for field in fields(ScorerRecord) if field.name in values}
    missing = [field.name for field in fields(ScorerRecord) if field.default is MISSING and field.name not in known]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return ScorerRecord(**known)


def record_differences(ours: ScorerRecord, theirs: ScorerRecord) -> list[str]:
    """The fields in which two scorers differ; scores of different scorers cannot be compared.

    Weights, config and tokenizer are compared as loaded; by their files where an older record holds no more.
    """
    weights = "content" if ours.content and theirs.content else "sha256"
    here, there = asdict(ours), asdict(theirs)
    return [field for field in (weights, *DECISIVE) if here[field] != there[field]]


def precision_words(dtype: torch.dtype) -> str:
    """The precision of the towers for a record, where it is not fp32."""
    return "" if dtype == torch.float32 else f"; towers in {str(dtype).removeprefix('torch.')}"
