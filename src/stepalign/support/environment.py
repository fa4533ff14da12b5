"""Environment of a result: library versions, device and timing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypedDict

import torch

from stepalign.support.reproducibility import processor

PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate")


class Timing(TypedDict):
    """The part of a summary that another run of the same recipe does not repeat."""

    seconds: float
    training_seconds: float
    device: str


def timing(*, seconds: float, training_seconds: float, device: torch.device) -> Timing:
    """Rounded seconds and the device's name."""
    return Timing(seconds=round(seconds, 1), training_seconds=round(training_seconds, 1), device=device_name(device))


def timing_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Seconds and device of a summary; older summaries have them at the top level."""
    return summary.get("timing", summary)


def versions() -> dict[str, str]:
    """Versions of stepalign and of the libraries that decide results."""
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """The device's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()
