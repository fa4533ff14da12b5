"""A measurement of held-out prompts that some processes share."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from worlds import BrightnessJudge, encode, make_sampler

from stepalign.core.protocols import Denoiser
from stepalign.runs.assemble import Parts
from stepalign.runs.held_out import measure
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.support.config import change
from stepalign.training.held_out_scores import Generated

PROMPTS = ["a cat", "a dog", "a house by the sea", "a tree", "two boats"]
CASES = [(5, 3), (3, 5), (1, 1), (2, 0)]
"""How many prompts are measured and how many images kept; with two processes the third leaves one without any."""
SHAPE = (3, 4, 4)


@dataclass
class World:
    """Parts of a run whose samples are the noise they start from, a little moved by the role and the prompt."""

    asked: list[list[str]]
    """The prompts of every batch."""

    def denoiser(self, role: str) -> Denoiser:
        shift = {"policy": 0.1, "ema": 0.2, "reference": 0.0}[role]
        return lambda x_t, t, cond: 0.1 * x_t + shift + 0.01 * cond.tokens[:, :, :1, None].float()

    def encode(self, prompts: list[str]) -> Any:
        self.asked.append(prompts)
        return encode(prompts)

    def parts(self, recipe: Recipe | None = None) -> Parts:
        model = {
            "encode": self.encode,
            "decode": lambda x_0: 2 * torch.tanh(x_0),
            "latent_shape": SHAPE,
            "device": torch.device("cpu"),
        }
        given = {
            "recipe": recipe,
            "policy": self,
            "sampler": make_sampler(4),
            "judge": BrightnessJudge(),
            "model": SimpleNamespace(**model),
            "metrics": {"length": lambda images, prompts: images.mean((1, 2, 3)) + torch.tensor([*map(len, prompts)])},
            "held_out": PROMPTS,
        }
        parts = object.__new__(Parts)  # whose fields are of no type that it would take
        for name, value in given.items():
            object.__setattr__(parts, name, value)
        return parts


def measure_cases() -> list[dict[str, Any]]:
    """What every case measures."""
    recipe = change(load_recipe("gradspo-sd15"), {"seed": 3, "evaluation": {"batch_size": 1}})
    results = []
    for num_prompts, num_kept in CASES:
        world, ticks = World([]), []
        generated: Generated = measure(
            world.parts(recipe), "policy", prompts=PROMPTS[:num_prompts], num_kept=num_kept, tick=ticks.append
        )
        results.append({"scores": generated.scores, "images": generated.images, "asked": world.asked, "ticks": ticks})
    return results
