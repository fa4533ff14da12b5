"""What training a judge costs: seconds per step, peak memory, and what each saving saves, as ratios of one run.

    python benchmarks/judge.py [--size miniature|vit-h] [--output FILE.json]

"miniature" is the recipe spm-miniature as it is. "vit-h" is the recipe spm-sd15 at full size with random weights:
Stable Diffusion 1.5's UNet and VAE at 512 pixels and a ViT-H/14 judge; it wants a GPU with 40 GB or more. Every
variant runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from stepalign import miniature
from stepalign.core.batch import Conditioning
from stepalign.core.sampler import NoiseSchedule
from stepalign.data.prepared import PairEncoder, PreparedPairs, prepare
from stepalign.judges.pairs import FrozenBase, JudgeScorer
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.spm_files import vit_h_config
from stepalign.miniature.base import make_scheduler
from stepalign.miniature.preferences import WorldPairs
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork
from stepalign.runs.judge_recipes import JUDGE_RECIPES
from stepalign.support.environment import device_name, versions
from stepalign.training.judge_settings import JudgeTraining
from stepalign.training.judge_trainer import JudgeTrainer

VARIANTS = {
    "recipe": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bf16": {"precision": "bf16"},
    "fp32": {"precision": "fp32"},
    "micro-batches of a quarter": {"micro_batch": 0},
}
"""Name -> changes of JudgeTraining; a micro-batch of 0 stands for a quarter of the recipe's."""
SIZES = {"miniature": "spm-miniature", "vit-h": "spm-sd15"}


def main() -> None:
    """Run every variant in its own process and print a table."""
    parser = argparse.ArgumentParser(description="Seconds per step and peak memory of a judge's training.")
    parser.add_argument("--size", choices=list(SIZES), default="miniature")
    parser.add_argument("--steps", type=int, default=10, help="steps measured, after two that are not")
    parser.add_argument("--output", type=Path, default=None, help="where to write the figures as JSON")
    parser.add_argument("--variant", choices=list(VARIANTS), default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant is not None:
        print(json.dumps(measure(arguments.size, arguments.variant, arguments.steps)))
        return
    rows = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, "--size", arguments.size, "--steps", str(arguments.steps)]
        done = subprocess.run([*command, "--variant", name], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows[name] = json.loads(done.stdout.strip().splitlines()[-1])
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figures = {"recipe": SIZES[arguments.size], "device": device, "versions": versions(), "variants": rows}
    print(table(rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def table(rows: dict[str, dict[str, float]]) -> str:
    """The variants against the recipe as Markdown."""
    first = rows["recipe"]
    lines = ["| variant | s per step | time ÷ recipe's | peak memory | memory ÷ recipe's |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        times, memory = row["seconds"] / first["seconds"], row["peak_mb"] / first["peak_mb"]
        lines.append(f"| {name} | {row['seconds']:.3f} | {times:.2f} | {row['peak_mb']:,.0f} MB | {memory:.2f} |")
    encode, share = first["encode_seconds"] / first["seconds"], first["base_seconds"] / first["seconds"]
    lines += ["", f"Encoding a step's images and prompts, which the cache saves: {encode:.2f} of a step's time."]
    lines += [f"The base model's x̂0 and their decoding: {share:.2f} of a step's time."]
    return "\n".join(lines)


def measure(size: str, variant: str, num_steps: int) -> dict[str, float]:
    """Median seconds per step and peak memory of a variant, and the time of parts of a step."""
    torch.set_num_threads(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = JUDGE_RECIPES[SIZES[size]]
    changes = dict(VARIANTS[variant])
    if changes.get("micro_batch") == 0:
        changes["micro_batch"] = recipe.training.micro_batch // 4
    config = replace(recipe.training, **changes)
    make = miniature_parts if size == "miniature" else full_size_parts
    with tempfile.TemporaryDirectory() as folder:
        scorer, encoder, pairs = make(device, Path(folder), config)
        trainer = JudgeTrainer(scorer, pairs=pairs, config=config, seed=0)
        seconds = list(timed_steps(trainer, num_steps, device))
        parts = time_parts(trainer, encoder, device)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": sorted(seconds)[len(seconds) // 2], "peak_mb": peak, **parts}


def timed_steps(trainer: JudgeTrainer, num_steps: int, device: torch.device) -> Iterator[float]:
    """The seconds of each step, after two to warm up."""
    for step in range(num_steps + 2):
        start = now(device)
        trainer.step()
        if step >= 2:
            yield now(device) - start


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_parts(trainer: JudgeTrainer, encoder: PairEncoder, device: torch.device) -> dict[str, float]:
    """Seconds for a step's share of encoding and for its x̂0."""
    size, micro, scorer = trainer.config.batch_size, trainer.config.micro_batch, trainer.scorer
    images = torch.rand(2 * micro, 3, *encoder.size) * 2 - 1
    batch = trainer.pairs.take(list(range(micro)))
    cond = batch.cond.map(lambda value: value.to(device))
    t = torch.full((micro,), 501, device=device)
    noise = torch.randn(micro, *batch.latents.shape[2:], device=device)
    encoder.encode_images(images)
    start = now(device)
    encoder.encode_images(images)
    encoder.encode(batch.prompts)
    middle = now(device)
    scorer.base.estimates(batch.latents.to(device), cond, t, noise)
    end = now(device)
    return {"encode_seconds": (middle - start) * size / micro, "base_seconds": (end - middle) * size / micro}


Parts = tuple[JudgeScorer, PairEncoder, PreparedPairs]


def miniature_parts(device: torch.device, folder: Path, config: JudgeTraining) -> Parts:
    """The recipe spm-miniature's."""
    model = load(str(miniature.MODEL), device=device)
    spm = StepAwarePreferenceModel.from_clip(CLIPModel.from_pretrained(miniature.PICKSCORE, dtype=torch.float32))
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=2.0)
    base = FrozenBase(guided, model.decode, model.schedule(20))

    def encode(prompts: list[str]) -> Conditioning:
        model.clear_cache()
        return model.encode(prompts)

    encoder = PairEncoder(encode, model.encode_images, model.image_size, batch_size=64)
    pairs, _ = prepare(WorldPairs(split="train", num_rows=1024), folder, encoder=encoder)
    return JudgeScorer(spm.to(device), model.pipeline.tokenizer, base, precision=config.precision), encoder, pairs


def full_size_parts(device: torch.device, folder: Path, config: JudgeTraining) -> Parts:
    """Stable Diffusion 1.5 and a ViT-H/14 judge with random weights; latents and embeddings are random too."""
    half = torch.float16 if device.type == "cuda" else torch.float32
    blocks = (320, 640, 1280, 1280)
    with device:
        unet = UNet2DConditionModel(sample_size=64, block_out_channels=blocks, cross_attention_dim=768).to(half)
        vae = stable_diffusion_vae().to(half)
        spm = StepAwarePreferenceModel(vit_h_config())
    for module in (unet, vae):
        module.requires_grad_(False).eval()
    alphas = make_scheduler().alphas_cumprod.double()
    schedule = NoiseSchedule(alphas, float(alphas[0]), "epsilon", tuple(range(951, 0, -50)))
    negative = Conditioning(torch.randn(1, 77, 768, device=device))
    autocast = None if half == torch.float32 else half
    guided = GuidedNetwork(unet, negative=negative, guidance_scale=5.0, autocast=autocast)

    def encode(prompts: list[str]) -> Conditioning:
        return Conditioning(torch.randn(len(prompts), 77, 768))

    @torch.no_grad()
    def encode_images(images: Tensor) -> Tensor:
        return vae.encode(images.to(device, half)).latent_dist.mode().float() * 0.18215

    def decode(x_0: Tensor) -> Tensor:
        return vae.decode((x_0 / 0.18215).to(half)).sample.float()

    encoder = PairEncoder(encode, encode_images, (512, 512))
    pairs, _ = prepare(WorldPairs(split="train", num_rows=256), folder, encoder=encoder)
    tokenizer = CLIPTokenizer.from_pretrained(miniature.PICKSCORE)
    base = FrozenBase(guided, decode, schedule)
    return JudgeScorer(spm, tokenizer, base, precision=config.precision), encoder, pairs


def stable_diffusion_vae() -> AutoencoderKL:
    """A random VAE in the architecture that all Stable Diffusions share."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


if __name__ == "__main__":
    main()
