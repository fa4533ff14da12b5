"""Align text-to-image diffusion models with preferences, step by step: SPO, GradSPO and what surrounds them.

Importing this package loads neither diffusers nor transformers; the names below do when first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DDIM": "sampler",
    "GRADSPO": "objectives.stepwise",
    "ImageJudge": "judges.image",
    "PickScore": "metrics.pickscore",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "SPO": "objectives.stepwise",
    "StepAwareJudge": "judges.spm",
    "StepAwarePreferenceModel": "judges.spm",
    "Stepwise": "objectives.stepwise",
    "Trainer": "train",
    "Training": "train",
    "change": "recipes",
    "load_recipe": "recipes",
    "run": "job",
}
__all__ = [
    "DDIM",
    "GRADSPO",
    "RECIPES",
    "SPO",
    "ImageJudge",
    "PickScore",
    "Recipe",
    "StepAwareJudge",
    "StepAwarePreferenceModel",
    "Stepwise",
    "Trainer",
    "Training",
    "change",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepalign' has no attribute {name!r}")
    return getattr(import_module(f"stepalign.{_HOMES[name]}"), name)
