"""Strict JSON: numbers that are not finite, which JSON does not have, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON of nested dicts, lists and tuples of plain values; NaN and infinities become null."""
    return json.dumps(_strict(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def flatten(values: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The values of nested mappings by their path."""
    rows: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows |= {(key, *path): inner for path, inner in flatten(value).items()}
        else:
            rows[(key,)] = value
    return rows


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
