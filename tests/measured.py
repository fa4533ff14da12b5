"""A measurement of held-out prompts that some processes share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from worlds import BrightnessJudge, encode, make_sampler

from stepalign.core.protocols import Denoiser
from stepalign.runs.recipes import load_recipe
from stepalign.support.config import change
from stepalign.support.parallel import processes
from stepalign.training.held_out_scores import Generated

PROMPTS = ["a cat", "a dog", "a house by the sea", "a tree", "two boats"]
CASES = [(5, 3), (3, 5), (1, 1), (2, 0)]
"""How many prompts are measured and how many pictures kept; with two processes the third leaves one without any."""
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

    def parts(self) -> Any:
        model = {
            "encode": self.encode,
            "decode": lambda x_0: 2 * torch.tanh(x_0),
            "latent_shape": SHAPE,
            "device": torch.device("cpu"),
        }
        return SimpleNamespace(
            policy=self,
            sampler=make_sampler(4),
            judge=BrightnessJudge(),
            model=SimpleNamespace(**model),
            metrics={"length": lambda images, prompts: images.mean((1, 2, 3)) + torch.tensor([*map(len, prompts)])},
            held_out=PROMPTS,
        )


def found() -> list[dict[str, Any]]:
    """What every case measures."""
    from stepalign.runs.held_out import measure

    recipe = change(load_recipe("gradspo-sd15"), {"seed": 3, "evaluation": {"batch_size": 1}})
    results = []
    for num_prompts, num_kept in CASES:
        world, ticks = World([]), []
        generated: Generated = measure(
            recipe, world.parts(), "policy", prompts=PROMPTS[:num_prompts], num_kept=num_kept, tick=ticks.append
        )
        results.append({"scores": generated.scores, "images": generated.images, "asked": world.asked, "ticks": ticks})
    return results


def found_together(num: int, folder: Path) -> list[list[dict[str, Any]]]:
    """The same by some processes; what each of them has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in range(num)
    ]
    try:
        assert [process.wait(120) for process in started] == [0] * num
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(num)]


def main(folder: Path) -> None:
    """What each of those processes runs."""
    torch.set_num_threads(1)
    parts = ModuleType("stepalign.runs.assemble")
    parts.Parts = object
    sys.modules["stepalign.runs.assemble"] = parts  # the real one loads diffusers: seconds, for a name in an annotation
    torch.save(found(), folder / f"{processes().process_index}.pt")
    processes().wait_for_everyone()
    os._exit(0)  # gloo's threads now and then abort an ordinary end


if __name__ == "__main__":
    main(Path(sys.argv[1]))
