"""Recipes: all settings of a run as one frozen value, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from stepalign.core.choices import PredictionType, Preprocessing
from stepalign.objectives.settings import GRADSPO, SPO, Objectives
from stepalign.sources.settings import Branching, Candidates, Sources
from stepalign.support.config import absolute_path, load_named, require
from stepalign.training.settings import Training, Watch

MINIATURE = "miniature"
"""The shipped model, judge or captions, in place of a path or hub id."""
RELEASED_JUDGES = "SPO-Diffusion-Models/Step-Aware_Preference_Models"
OracleName = Literal["aesthetic", "alignment"]


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """Settings of the frozen base model."""

    guidance_scale: float = 5.0
    """Scale of classifier-free guidance in sampling and training."""
    resolution: tuple[int, ...] | None = None
    """Side of the images in pixels, or height and width; the model's own by default."""
    config: str | None = None
    """For a single-file model: a diffusers folder or hub id with its configs and tokenizer."""
    vae: str | None = None
    """Diffusers VAE, folder or hub id, that replaces the model's own."""
    prediction_type: PredictionType | None = None
    """Quantity that the network predicts, if the model's files lack it or have it wrong; by default from the files."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Precision of frozen weights and forward passes on a GPU; adapters and latents are fp32. A CPU runs fp32."""
    max_batch: int | None = None
    """Largest batch of latents without gradients; all at once by default. Lower it when memory runs out."""

    def __post_init__(self) -> None:
        require(self.guidance_scale >= 1, "base.guidance_scale", self.guidance_scale, "at least 1, which is none")
        sides = self.resolution or (8,)
        require(len(sides) <= 2 and min(sides) >= 8, "base.resolution", self.resolution, "one side or two, at least 8")
        require(self.max_batch is None or self.max_batch >= 1, "base.max_batch", self.max_batch, "at least 1")


@dataclass(frozen=True, slots=True)
class Model(FrozenModel):
    """Settings of the base model in sampling and training."""

    num_steps: int = 20
    """Number of sampling steps, N."""
    eta: float = 1.0
    """Noise of DDIM; 1 is ancestral sampling."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        FrozenModel.__post_init__(self)
        require(1 <= self.num_steps < 1000, "base.num_steps", self.num_steps, "between 1 and 999")
        require(0 <= self.eta <= 1, "base.eta", self.eta, "between 0 and 1")


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """The judge that scores the candidates."""

    kind: Literal["spm", "pickscore"] = "spm"
    """"spm": a step-aware preference model; "pickscore": a plain CLIP scorer on x̂0, blind to the timestep."""
    path: str = f"{RELEASED_JUDGES}/sd-v1-5_step-aware_preference_model.bin"
    """Folder or hub id with config, weights and tokenizer; or a released `.bin` (a file, or owner/name/file)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the judge's weights on a GPU; its scores are fp32. A CPU runs fp32."""
    max_batch: int | None = None
    """Largest batch of images decoded and scored; all at once by default."""
    preprocessing: Preprocessing | None = None
    """Preprocessing of decoded images for the judge: "clamp-first", "resize-first" (SPO's released scorer), or, by
    default, as the judge was trained."""

    def __post_init__(self) -> None:
        require(self.max_batch is None or self.max_batch >= 1, "judge.max_batch", self.max_batch, "at least 1")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Evaluation of a finished run on held-out prompts."""

    prompts: str | None = None
    """File of held-out prompts, or "miniature"; without it the run is not evaluated."""
    num_prompts: int = 200
    """Number of held-out prompts, from the first."""
    oracles: tuple[OracleName, ...] = ()
    """Oracles of the miniature, in addition to the judge."""
    scorers: tuple[str, ...] = ()
    """Scorers of images, in addition to the judge, as `stepalign evaluate` names them: pickscore, hps-v2.1, ..., or
    NAME=PATH."""
    eta: float = 0.0
    """Noise of DDIM for held-out images: 0, deterministic, as in the papers and in `stepalign generate`. Steps,
    guidance and resolution are the run's own."""
    batch_size: int = 8
    """Images generated at once."""

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, "evaluation.eta", self.eta, "between 0 and 1")
        require(self.num_prompts >= 2, "evaluation.num_prompts", self.num_prompts, "at least 2, for an interval")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "at least 1")


@dataclass(frozen=True, slots=True)
class Guard:
    """Guard against held-out metrics that fall below the base model's while the judge's score rises."""

    every: int = 0
    """Rounds between measurements on held-out prompts, beginning before the first; 0 for no guard."""
    num_prompts: int = 32
    """Number of held-out prompts: those after the final evaluation's `evaluation.num_prompts` in the file, and as many
    more to confirm an alarm; the evaluation's own where there are too few. At most 5 % of healthy runs ever alarm. With
    32 prompts and 20 measurements of two metrics, 80 % of measurements find a fall of .59 standard deviations of the
    prompts' differences (.75 where the confirming prompts are the same); four times as many prompts find half that."""
    action: Literal["warn", "stop"] = "warn"
    """"warn" notes it and continues; "stop" ends the training with the adapter of the metric's best round."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "guard.every", self.every, "at least 0")
        require(self.num_prompts >= 2, "guard.num_prompts", self.num_prompts, "at least 2, for an interval")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings of a run."""

    name: str
    """Name of the run in its reports."""
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Diffusers folder, hub id, single `.safetensors` file, or "miniature"."""
    prompts: str | None = None
    """Training prompts: a .txt, .json, .jsonl, .csv or .tsv file, or "miniature"."""
    seed: int = 0
    """Seed of all random numbers."""
    lora_rank: int = 4
    """Rank of the adapter on every attention projection; alpha equals it."""
    base: Model = field(default_factory=Model)
    judge: JudgeChoice = field(default_factory=JudgeChoice)
    source: Sources = field(default_factory=Candidates)
    branching: Branching = field(default_factory=Branching)
    objective: Objectives = GRADSPO
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    guard: Guard = field(default_factory=Guard)
    watch: Watch = field(default_factory=Watch)
    exported_role: Literal["policy", "ema"] = "policy"
    """Adapter that is written and evaluated: the trained one, or its running average."""
    checkpoint_every: int = 1
    """Rounds between checkpoints."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.lora_rank >= 1, "lora_rank", self.lora_rank, "at least 1")
        require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")
        watched = self.evaluation.prompts is not None and (self.evaluation.oracles or self.evaluation.scorers)
        require(
            self.guard.every == 0 or bool(watched),
            "guard.every",
            self.guard.every,
            "0 without evaluation.prompts and evaluation.scorers, held-out metrics for it to watch",
        )
        self.source.check(self.branching)


SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_VAE = "madebyollin/sdxl-vae-fp16-fix"
"""Stable Diffusion XL's VAE, changed to stay finite in half precision."""
GRADSPO_SD15 = Recipe(name="gradspo-sd15", training=Training(rollout_role="ema"))
SPO_SD15 = replace(GRADSPO_SD15, name="spo-sd15", objective=SPO, training=Training(rollout_role="policy"))
GRADSPO_SDXL = Recipe(
    name="gradspo-sdxl",
    model=SDXL,
    lora_rank=64,
    judge=JudgeChoice(path=f"{RELEASED_JUDGES}/sdxl_step-aware_preference_model.bin"),
    source=Candidates(min_gap=0.4),
    training=Training(
        num_rounds=2500,
        prompts_per_round=16,
        sample_batch=4,
        comparisons_per_update=16,
        train_batch=4,
        rollout_role="ema",
        learning_rate=1e-5,
    ),
)
SPO_SDXL = replace(
    GRADSPO_SDXL,
    name="spo-sdxl",
    branching=Branching(num_inner_steps=(4,)),
    objective=SPO,
    training=replace(GRADSPO_SDXL.training, rollout_role="policy"),
)
GRADSPO_MINIATURE = Recipe(
    name="gradspo-miniature",
    model=MINIATURE,
    prompts=MINIATURE,
    base=Model(guidance_scale=2.0, precision="fp32"),
    judge=JudgeChoice(path=MINIATURE),
    source=Candidates(pairing="all-k", min_gap=0.0),
    branching=Branching(num_candidates=8),
    objective=replace(GRADSPO, trust_region="rms"),
    training=Training(
        num_rounds=16,
        prompts_per_round=32,
        sample_batch=32,
        comparisons_per_update=128,
        train_batch=128,
        rollout_role="ema",
        learning_rate=1e-4,
    ),
    evaluation=Evaluation(prompts=MINIATURE, num_prompts=216, oracles=("aesthetic", "alignment"), batch_size=72),
)
SPO_MINIATURE = replace(
    GRADSPO_MINIATURE,
    name="spo-miniature",
    source=Candidates(pairing="best-worst", min_gap=0.0),
    branching=Branching(num_candidates=4),
    objective=SPO,
    training=replace(GRADSPO_MINIATURE.training, prompts_per_round=48, rollout_role="policy"),
)
RECIPES = {
    recipe.name: recipe for recipe in (GRADSPO_SD15, SPO_SD15, GRADSPO_SDXL, SPO_SDXL, GRADSPO_MINIATURE, SPO_MINIATURE)
}
"""The named recipes. The full-size ones are the papers' settings on one device."""


def load_recipe(name: str) -> Recipe:
    """A named recipe, or the recipe in a YAML file; raises ValueError as `config.load_named` does."""
    return load_named(name, RECIPES, lambda stem: Recipe(name=stem))


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths for the files and folders it names, so that it runs from any directory."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else local_path(name)

    base, evaluation = recipe.base, recipe.evaluation
    return replace(
        recipe,
        model=local_path(recipe.model),
        prompts=absolute(recipe.prompts),
        base=replace(base, config=absolute(base.config), vae=absolute(base.vae)),
        judge=replace(recipe.judge, path=local_path(recipe.judge.path)),
        evaluation=replace(
            evaluation, prompts=absolute(evaluation.prompts), scorers=tuple(map(_absolute_weights, evaluation.scorers))
        ),
    )


def _absolute_weights(entry: str) -> str:
    """A scorer NAME=PATH with an absolute path."""
    name, sign, source = entry.partition("=")
    return f"{name}={absolute_path(source)}" if sign else entry


def local_path(name: str) -> str:
    """The absolute path of an existing file or folder; "miniature" and other names unchanged."""
    return name if name == MINIATURE else absolute_path(name)
