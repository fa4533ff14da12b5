"""Judge recipes: all settings of a judge's training as one frozen value, and the named recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from stepalign.core.choices import Preprocessing
from stepalign.miniature.settings import GUIDANCE_SCALE, NUM_TRAINING_PAIRS, SPM_TRAINING
from stepalign.runs.recipes import MINIATURE, SDXL, FrozenModel
from stepalign.support.config import load_named, require
from stepalign.training.judge_settings import NUM_TRAIN_TIMESTEPS, JudgeTraining

PICKSCORE = "yuvalkirstain/PickScore_v1"


@dataclass(frozen=True, slots=True)
class PairData:
    """Preference pairs and their preparation."""

    pairs: str | None = None
    """A hub dataset, a .jsonl or .parquet file, a folder of parquet files, one with win/ and lose/, or "miniature"."""
    split: str = "train"
    """Split of a hub dataset."""
    streaming: bool = False
    """Read a hub dataset as a stream, without keeping its images."""
    num_rows: int | None = None
    """Rows taken, from the first; all by default."""
    allow_outside: bool = False
    """Read images that rows name outside the folder of their file (absolute paths, .., symbolic links); also of
    evaluation.pairs."""
    max_bad: float = 0.01
    """Largest share of unusable rows (a corrupt image, an empty caption); above it the training stops."""
    relabel_with: str | None = None
    """A PickScore-like scorer (folder, hub id or "miniature") whose preferences replace the people's."""
    tie_gap: float = 0.1
    """Relabelled pairs whose two probabilities differ by no more than this are ties."""
    cache: str = "~/.cache/stepalign/pairs"
    """Folder of the latents and prompt embeddings, which later runs reuse."""
    encode_batch: int = 8
    """Pairs encoded by the VAE at once while the cache is made."""

    def __post_init__(self) -> None:
        require(self.num_rows is None or self.num_rows >= 1, "data.num_rows", self.num_rows, "at least 1")
        require(0 <= self.max_bad < 1, "data.max_bad", self.max_bad, "at least 0 and below 1")
        require(0 <= self.tie_gap < 1, "data.tie_gap", self.tie_gap, "at least 0 and below 1")
        require(self.encode_batch >= 1, "data.encode_batch", self.encode_batch, "at least 1")


@dataclass(frozen=True, slots=True)
class JudgeModel:
    """The model of the judge."""

    start: str = PICKSCORE
    """CLIP to start from: folder or hub id with tokenizer, or "miniature"."""
    timestep_conditioning: bool = True
    """False trains a plain CLIP on noisy images, blind to the timestep (SPO Table 5)."""
    preprocessing: Preprocessing = "clamp-first"
    """Preprocessing of decoded images, saved with the judge: "clamp-first" (fp32; clamp, resize, clamp; SPO's released
    training) or "resize-first" (fp16; resize, clamp; SPO's released scorer)."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out pairs, and the timesteps at which the accuracy of the judge is measured on them."""

    pairs: str | None = None
    """Source of held-out pairs, in the forms of data.pairs, with people's labels; by default a share of the training
    prompts is held out, whose labels are the training's."""
    split: str = "train"
    """Split of a hub dataset."""
    share: float = 0.05
    """Share of the distinct prompts that is held out, with all their pairs, without a source of held-out pairs."""
    num_pairs: int = 2000
    """Largest number of pairs that are scored."""
    timesteps: tuple[int, ...] = (0, 251, 501, 701, 951)
    """Timesteps at which the accuracy is measured."""
    batch_size: int = 8
    """Pairs scored at once in one process."""
    seed: int = 0
    """Seed of the noise; with the same seed judges are measured on the same inputs."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "evaluation.share", self.share, "above 0 and below 1")
        require(self.num_pairs >= 2, "evaluation.num_pairs", self.num_pairs, "at least 2, for an interval")
        steps = self.timesteps
        fits = len(steps) >= 1 and all(0 <= t < NUM_TRAIN_TIMESTEPS for t in steps) and len(set(steps)) == len(steps)
        require(fits, "evaluation.timesteps", steps, f"different numbers from 0 to {NUM_TRAIN_TIMESTEPS - 1}")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "at least 1")
        require(self.seed >= 0, "evaluation.seed", self.seed, "at least 0")


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    """All settings of a judge's training."""

    name: str
    """Name of the run in its reports."""
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Base model whose steps are judged: diffusers folder, hub id, single `.safetensors` file, or "miniature"."""
    seed: int = 0
    """Seed of the order of the pairs, their timesteps and their noise."""
    base: FrozenModel = field(default_factory=FrozenModel)
    judge: JudgeModel = field(default_factory=JudgeModel)
    data: PairData = field(default_factory=PairData)
    training: JudgeTraining = field(default_factory=JudgeTraining)
    evaluation: HeldOut = field(default_factory=HeldOut)
    checkpoint_every: int = 500
    """Steps between checkpoints; a checkpoint of a ViT-H judge takes 16 GB."""
    export: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights in the judge's file."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")


PICKAPIC = "yuvalkirstain/pickapic_v1"
SPM_SD15 = JudgeRecipe(
    name="spm-sd15",
    data=PairData(pairs=PICKAPIC, streaming=True, num_rows=512_000),
)
SPM_SDXL = replace(
    SPM_SD15,
    name="spm-sdxl",
    model=SDXL,
    data=replace(SPM_SD15.data, relabel_with=PICKSCORE, num_rows=448_000),
    training=JudgeTraining(num_steps=7000, learning_rate=1e-6),
)
SPM_MINIATURE = JudgeRecipe(
    name="spm-miniature",
    model=MINIATURE,
    base=FrozenModel(guidance_scale=GUIDANCE_SCALE, precision="fp32"),
    judge=JudgeModel(start=MINIATURE),
    data=PairData(pairs=MINIATURE, num_rows=NUM_TRAINING_PAIRS, encode_batch=64),
    training=SPM_TRAINING,
    evaluation=HeldOut(pairs=MINIATURE, split="held-out", batch_size=64),
)
JUDGE_RECIPES = {recipe.name: recipe for recipe in (SPM_SD15, SPM_SDXL, SPM_MINIATURE)}
"""The named recipes. The full-size ones are the paper's settings on one device."""


def load_judge_recipe(name: str) -> JudgeRecipe:
    """A named recipe, or the recipe in a YAML file; raises ValueError as `config.load_named` does."""
    return load_named(name, JUDGE_RECIPES, lambda stem: JudgeRecipe(name=stem))


def map_paths(recipe: JudgeRecipe, change: Callable[[str], str]) -> JudgeRecipe:
    """The recipe with everything that may be a path on this machine changed."""

    def maybe(name: str | None) -> str | None:
        return None if name is None else change(name)

    data, evaluation, base = recipe.data, recipe.evaluation, recipe.base
    return replace(
        recipe,
        model=change(recipe.model),
        base=replace(base, config=maybe(base.config), vae=maybe(base.vae)),
        judge=replace(recipe.judge, start=change(recipe.judge.start)),
        data=replace(data, pairs=maybe(data.pairs), relabel_with=maybe(data.relabel_with)),
        evaluation=replace(evaluation, pairs=maybe(evaluation.pairs)),
    )
