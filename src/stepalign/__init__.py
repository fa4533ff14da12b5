"""Align text-to-image diffusion models with preferences, step by step: SPO, GradSPO and what surrounds them.

Importing this package loads neither diffusers nor transformers; the names below do when first used.
"""

from importlib import import_module
from typing import Any

from stepalign.support.reproducibility import set_mkl_mode

set_mkl_mode()  # before anything loads torch

_HOMES = {
    "DDIM": "core.sampler",
    "GRADSPO": "objectives.settings",
    "ImageJudge": "judges.image",
    "JUDGE_RECIPES": "runs.judge_recipes",
    "JudgeRecipe": "runs.judge_recipes",
    "PickScore": "scorers.pickscore",
    "RECIPES": "runs.recipes",
    "Recipe": "runs.recipes",
    "SPO": "objectives.settings",
    "StepAwareJudge": "judges.step_aware",
    "StepAwarePreferenceModel": "judges.spm",
    "Stepwise": "objectives.settings",
    "Trainer": "training.trainer",
    "Training": "training.settings",
    "change": "support.config",
    "load_judge_recipe": "runs.judge_recipes",
    "load_recipe": "runs.recipes",
    "run": "runs.job",
    "run_judge": "runs.judge_job",
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
