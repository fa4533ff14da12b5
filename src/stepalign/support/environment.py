"""What a result was computed with: versions of the libraries, the device, and the time it took."""

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
    """Seconds and device of a summary; older versions' have them at the top."""
    return summary.get("timing", summary)


def versions() -> dict[str, str]:
    """Of stepalign and the libraries that decide numbers."""
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()
