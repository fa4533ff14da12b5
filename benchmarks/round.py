"""What a round of GradSPO costs: seconds by phase, peak memory, work done.

    python benchmarks/round.py [--size miniature|sd15|sdxl] [--prompts N] [--output FILE.json]

"miniature" is the recipe gradspo-miniature as it is. "sd15" and "sdxl" are gradspo-sd15 at 512 and gradspo-sdxl at 1024
pixels with random weights in the real architectures, a ViT-H/14 judge included; they want a GPU, of 24 and 80 GB.
Phases: "predict", the network while sampling; "decode"; "judge" without decoding; "objective", the forward passes of
training; "rest", backward passes, the optimizer and bookkeeping. The first of two rounds warms up and is left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from judge import stable_diffusion_vae
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign import miniature
from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.protocols import Decode, Metrics, Objective, Policy, Sampler
from stepalign.core.sampler import DDIM, NoiseSchedule
from stepalign.judges.counted import CountedJudge
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.spm_files import vit_h_config
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.miniature.base import make_scheduler
from stepalign.models.policy import GuidedNetwork, LoraPolicy
from stepalign.runs.assemble import assemble, make_trainer
from stepalign.runs.recipes import RECIPES, Recipe
from stepalign.sources.prompt_order import PromptStream
from stepalign.support.environment import device_name, versions
from stepalign.training.trainer import Trainer

SIZES = {"miniature": "gradspo-miniature", "sd15": "gradspo-sd15", "sdxl": "gradspo-sdxl"}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
PIXELS = {"sd15": 512, "sdxl": 1024}


class Clock:
    """Seconds by phase; what runs inside a phase and has one of its own is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: Counter[str] = Counter()
        self._device = device
        self._open: list[str] = []

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self.now()
        self._open.append(name)
        try:
            yield
        finally:
            spent = self.now() - start
            self._open.pop()
            self.seconds[name] += spent
            if self._open:
                self.seconds[self._open[-1]] -= spent

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self.phase(name):
                return function(*arguments)

        return call


class TimedObjective:
    """An objective whose time is counted, the network's in it included."""

    def __init__(self, objective: Objective, clock: Clock) -> None:
        self.objective, self.clock = objective, clock

    def __call__(self, policy: Policy, sampler: Sampler, batch: StepComparisons) -> tuple[Tensor, Metrics]:
        with self.clock.phase("objective"):
            return self.objective(policy, sampler, batch)


def main() -> None:
    """Measure one size and print the figures."""
    parser = argparse.ArgumentParser(description="Seconds by phase and peak memory of a round of GradSPO.")
    parser.add_argument("--size", choices=list(SIZES), default="miniature")
    parser.add_argument("--prompts", type=int, default=None, help="of a round (the recipe's)")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.size, arguments.prompts)
    print(json.dumps(figures, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(size: str, num_prompts: int | None) -> dict[str, Any]:
    """The figures of one round, after one that is not counted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = RECIPES[SIZES[size]]
    if num_prompts is not None:
        recipe = replace(recipe, training=replace(recipe.training, prompts_per_round=num_prompts))
    clock = Clock(device)
    trainer = (
        miniature_trainer(recipe, clock) if size == "miniature" else full_size_trainer(size, recipe, clock, device)
    )
    trainer.objective = TimedObjective(trainer.objective, clock)
    trainer.round()
    clock.seconds.clear()
    calls = Counter(trainer.calls)
    start = clock.now()
    row = trainer.round()
    total = clock.now() - start
    phases = {name: round(seconds, 3) for name, seconds in clock.seconds.items()}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "recipe": recipe.name,
        "prompts": recipe.training.prompts_per_round,
        "seconds": round(total, 3),
        "phases": phases | {"rest": round(total - sum(clock.seconds.values()), 3)},
        "shares": {name: round(seconds / total, 3) for name, seconds in clock.seconds.items()},
        "peak_gib": round(peak, 2),
        "comparisons": row["comparisons"],
        "updates": row["updates"],
        "calls": dict(trainer.calls - calls),
        "device": device_name(device),
        "versions": versions(),
    }


def miniature_trainer(recipe: Recipe, clock: Clock) -> Trainer:
    """The recipe's own, with a clock on its parts."""
    parts = assemble(recipe)
    assert isinstance(parts.judge, CountedJudge)
    return clocked(parts.trainer, parts.judge, clock)


def clocked(trainer: Trainer, judge: CountedJudge, clock: Clock) -> Trainer:
    """A trainer whose network, judge and decoding are timed; in the objective the network's time is its own."""
    judge.judge.decode = clock.timed("decode", judge.judge.decode)
    judge.judge = TimedJudge(judge.judge, clock)
    sampling = trainer.source.sampling
    sampling = replace(sampling, denoise=clock.timed("predict", sampling.denoise))
    trainer.source = replace(trainer.source, sampling=sampling)
    return trainer


class TimedJudge:
    """A judge whose time is counted."""

    def __init__(self, judge: StepAwareJudge, clock: Clock) -> None:
        self.judge, self.clock = judge, clock

    def __call__(self, x_t: Tensor, x_0: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        with self.clock.phase("judge"):
            return self.judge(x_t, x_0, t, prompts)


def full_size_trainer(size: str, recipe: Recipe, clock: Clock, device: torch.device) -> Trainer:
    """A recipe's loop around random weights in the real architectures."""
    half = torch.float16 if device.type == "cuda" else torch.float32
    latent = PIXELS[size] // 8
    with device:
        unet = UNet2DConditionModel(sample_size=latent, **UNETS[size]).to(half)
        vae = stable_diffusion_vae().to(half)
        spm = StepAwarePreferenceModel(vit_h_config())
    for module in (unet, vae):
        module.requires_grad_(False).eval()
    negative = conditioning(size, 1).map(lambda value: value.to(device))
    autocast = None if half == torch.float32 else half
    guided = GuidedNetwork(unet, negative=negative, guidance_scale=5.0, autocast=autocast)
    policy = LoraPolicy(guided, rank=recipe.lora_rank, seed=0)
    alphas = make_scheduler().alphas_cumprod.double()
    sampler = DDIM(NoiseSchedule(alphas, float(alphas[0]), "epsilon", tuple(range(951, 0, -50))))
    judge = StepAwareJudge(spm, CLIPTokenizer.from_pretrained(miniature.PICKSCORE), decoder(vae, half))
    counted = CountedJudge(judge)
    trainer = make_trainer(
        replace(recipe, source=replace(recipe.source, min_gap=0.0)),
        policy,
        sampler,
        counted,
        encode=lambda prompts: conditioning(size, len(prompts)).map(lambda value: value.to(device)),
        stream=PromptStream([f"an image, number {index}" for index in range(64)], seed=0),
        latent_shape=(4, latent, latent),
    )
    return clocked(trainer, counted, clock)


def conditioning(size: str, num: int) -> Conditioning:
    """Random text embeddings in the model's shapes."""
    if size == "sd15":
        return Conditioning(torch.randn(num, 77, 768))
    sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).expand(num, 6)
    return Conditioning(torch.randn(num, 77, 2048), torch.randn(num, 1280), sizes)


def decoder(vae: AutoencoderKL, half: torch.dtype) -> Decode:
    """Latents to images."""

    def decode(x_0: Tensor) -> Tensor:
        return vae.decode((x_0 / vae.config.scaling_factor).to(half)).sample.float()

    return decode


if __name__ == "__main__":
    main()
