"""Align text-to-image diffusion models with preferences, step by step: SPO, GradSPO and what surrounds them.

Importing this package loads neither diffusers nor transformers; the names below do when first used.
"""

from importlib import import_module
from typing import Any

from stepalign.reproducibility import set_mkl_mode

set_mkl_mode()  # before anything loads torch

_HOMES = {
    "DDIM": "sampler",
    "GRADSPO": "objectives.stepwise",
    "ImageJudge": "judges.image",
    "JUDGE_RECIPES": "judge_recipes",
    "JudgeRecipe": "judge_recipes",
    "PickScore": "metrics.pickscore",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "SPO": "objectives.stepwise",
    "StepAwareJudge": "judges.spm",
    "StepAwarePreferenceModel": "judges.spm",
    "Stepwise": "objectives.stepwise",
    "Trainer": "train",
    "Training": "train_settings",
    "change": "config",
    "load_judge_recipe": "judge_recipes",
    "load_recipe": "recipes",
    "run": "job",
    "run_judge": "judge_job",
}
__all__ = [
    "DDIM",
    "GRADSPO",
    "JUDGE_RECIPES",
    "RECIPES",
    "SPO",
    "ImageJudge",
    "JudgeRecipe",
    "PickScore",
    "Recipe",
    "StepAwareJudge",
    "StepAwarePreferenceModel",
    "Stepwise",
    "Trainer",
    "Training",
    "change",
    "load_judge_recipe",
    "load_recipe",
    "run",
    "run_judge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepalign' has no attribute {name!r}")
    return getattr(import_module(f"stepalign.{_HOMES[name]}"), name)
