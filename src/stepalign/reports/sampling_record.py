"""Sampling settings of evaluated images, as plain values and in words beside every table of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sampling_record(
    *, num_steps: int, eta: float, guidance_scale: float, seed: int, resolution: tuple[int, int]
) -> dict[str, Any]:
    """The settings without which a score cannot be compared; `resolution` is height and width in pixels."""
    return {
        "num_steps": num_steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "resolution": list(resolution),
    }


def sampling_of_generation(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same from generation.json, as far as known; empty without it."""
    settings = _mapping((record or {}).get("settings"))
    base = _mapping(settings.get("base"))
    found = {name: settings.get(name) for name in ("num_steps", "eta", "seed")}
    found = {name: value for name, value in found.items() if isinstance(value, int | float)}
    if isinstance(guidance := base.get("guidance_scale"), int | float):
        found["guidance_scale"] = guidance
    sides = (record or {}).get("resolution") or base.get("resolution")
    if isinstance(sides, list) and len(sides) in (1, 2) and all(isinstance(side, int) for side in sides):
        found["resolution"] = sides
    return found


def sampling_words(sampling: Mapping[str, Any]) -> str:
    """The settings in words, "20 steps, eta 0, guidance 5, seed 0, 512 × 512 pixels"; unknown ones are left out."""
    parts = []
    if "num_steps" in sampling:
        parts.append(f"{sampling['num_steps']} steps")
    for name, word in (("eta", "eta"), ("guidance_scale", "guidance"), ("seed", "seed")):
        if name in sampling:
            value = sampling[name]
            parts.append(f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}")
    if "resolution" in sampling:
        sides = sampling["resolution"]
        parts.append(f"{sides[-1]} × {sides[0]} pixels")
    return ", ".join(parts)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
