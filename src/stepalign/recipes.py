"""Recipes: everything that decides a run, as one frozen value, and the named ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from stepalign.config import nearest, override, require, to_plain
from stepalign.objectives.stepwise import GRADSPO, SPO, Stepwise
from stepalign.rollout import Branching
from stepalign.train import Training

MINIATURE = "miniature"
"""Names the shipped model, judge or captions, where a path or hub id could stand."""
OracleName = Literal["aesthetic", "alignment"]


@dataclass(frozen=True, slots=True)
class Model:
    """The base model and how it is run."""

    guidance_scale: float = 5.0
    """Classifier-free guidance, in sampling and in training."""
    num_steps: int = 20
    """Sampling steps N."""
    eta: float = 1.0
    """DDIM noise; 1 is ancestral sampling."""
    resolution: int | None = None
    """Side of the pictures in pixels; the model's own by default."""
    config: str | None = None
    """For a single-file model: a diffusers folder or hub id whose configs and tokenizer it borrows."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of the frozen weights and the forward passes on a GPU; adapters and latents are fp32. A CPU runs fp32."""
    gradient_checkpointing: bool = False
    """Trade time for memory in training."""
    max_batch: int | None = None
    """Latents through the network at once while sampling; all by default. Lower it when memory runs out."""

    def __post_init__(self) -> None:
        require(self.guidance_scale >= 1, "base.guidance_scale", self.guidance_scale, "at least 1, which is none")
        require(1 <= self.num_steps < 1000, "base.num_steps", self.num_steps, "between 1 and 999")
        require(0 <= self.eta <= 1, "base.eta", self.eta, "between 0 and 1")
        require(self.resolution is None or self.resolution >= 8, "base.resolution", self.resolution, "at least 8")
        require(self.max_batch is None or self.max_batch >= 1, "base.max_batch", self.max_batch, "at least 1")


@dataclass(frozen=True, slots=True)
class JudgeChoice:
    """Who judges the candidates."""

    kind: Literal["spm", "pickscore"] = "spm"
    """"spm": a step-aware preference model; "pickscore": a plain CLIP scorer on x̂0, blind to the timestep."""
    path: str = "SPO-Diffusion-Models/Step-Aware_Preference_Models/sd-v1-5_step-aware_preference_model.bin"
    """A folder or hub id with config, weights and tokenizer; or a released `.bin` (a file, or owner/name/file)."""
    max_batch: int | None = None
    """Images decoded and judged at once; all by default."""

    def __post_init__(self) -> None:
        require(self.max_batch is None or self.max_batch >= 1, "judge.max_batch", self.max_batch, "at least 1")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a finished run is measured on."""

    prompts: str | None = None
    """File of held-out prompts, or "miniature"; without it the run is not evaluated."""
    num_prompts: int = 200
    """How many of them, from the first."""
    oracles: tuple[OracleName, ...] = ()
    """The miniature's oracles, beside the judge."""
    batch_size: int = 8
    """Images sampled at once."""

    def __post_init__(self) -> None:
        require(self.num_prompts >= 2, "evaluation.num_prompts", self.num_prompts, "at least 2, for an interval")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "at least 1")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run."""

    name: str
    """What the run is called in its reports."""
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Diffusers folder, hub id, single `.safetensors` file, or "miniature"."""
    prompts: str | None = None
    """Training prompts: a .txt, .json or .jsonl file, or "miniature"."""
    seed: int = 0
    lora_rank: int = 4
    """Rank of the adapter on every attention projection; alpha equals it."""
    base: Model = field(default_factory=Model)
    judge: JudgeChoice = field(default_factory=JudgeChoice)
    branching: Branching = field(default_factory=Branching)
    objective: Stepwise = GRADSPO
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    export: Literal["policy", "ema"] = "policy"
    """Which adapter is written and evaluated: the trained one, or its running average."""
    checkpoint_every: int = 1
    """Rounds between checkpoints."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.lora_rank >= 1, "lora_rank", self.lora_rank, "at least 1")
        require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")


GRADSPO_SD15 = Recipe(name="gradspo-sd15", training=Training(sample_with="ema"))
SPO_SD15 = replace(GRADSPO_SD15, name="spo-sd15", objective=SPO, training=Training(sample_with="policy"))
GRADSPO_MINIATURE = Recipe(
    name="gradspo-miniature",
    model=MINIATURE,
    prompts=MINIATURE,
    base=Model(guidance_scale=2.0, precision="fp32"),
    judge=JudgeChoice(path=MINIATURE),
    branching=Branching(num_candidates=8),
    objective=replace(GRADSPO, trust_region="rms"),
    training=Training(
        num_rounds=16,
        prompts_per_round=32,
        sample_batch=32,
        comparisons_per_update=128,
        train_batch=128,
        sample_with="ema",
        pairing="all-k",
        min_gap=0.0,
        learning_rate=1e-4,
    ),
    evaluation=Evaluation(prompts=MINIATURE, num_prompts=216, oracles=("aesthetic", "alignment"), batch_size=72),
)
SPO_MINIATURE = replace(
    GRADSPO_MINIATURE,
    name="spo-miniature",
    branching=Branching(num_candidates=4),
    objective=SPO,
    training=replace(
        GRADSPO_MINIATURE.training, prompts_per_round=48, sample_with="policy", pairing="best-worst", min_gap=0.0
    ),
)
RECIPES = {recipe.name: recipe for recipe in (GRADSPO_SD15, SPO_SD15, GRADSPO_MINIATURE, SPO_MINIATURE)}
"""The named recipes. The sd15 ones are the papers' settings on one device."""


def load_recipe(name: str) -> Recipe:
    """A named recipe, or the recipe in a YAML file, which may start from a named one under `recipe:`.

    Raises ValueError for an unknown name or key, naming the nearest, and for a value of the wrong kind.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"recipe: there is none called {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    if not path.is_file():
        raise ValueError(f"recipe: there is no file {name!r}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: {name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe: {name} must hold fields and their values, not {type(values).__name__}")
    start = values.pop("recipe", None)
    if start is not None and str(start) not in RECIPES:
        raise ValueError(f"recipe: {name} starts from {start!r}{nearest(str(start), RECIPES)}")
    return change(Recipe(name=path.stem) if start is None else RECIPES[start], values)


def change(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with some fields changed, nested as in YAML; raises ValueError as `load_recipe` does."""
    try:
        return override(recipe, values)
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from None


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with what it names on this machine named from the root, so that it runs from any directory."""

    def absolute(name: str | None) -> str | None:
        if name is None or name == MINIATURE or not Path(name).expanduser().exists():
            return name
        return str(Path(name).expanduser().resolve())

    return replace(
        recipe,
        model=absolute(recipe.model) or recipe.model,
        prompts=absolute(recipe.prompts),
        base=replace(recipe.base, config=absolute(recipe.base.config)),
        judge=replace(recipe.judge, path=absolute(recipe.judge.path) or recipe.judge.path),
        evaluation=replace(recipe.evaluation, prompts=absolute(recipe.evaluation.prompts)),
    )


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, as `load_recipe` reads it."""
    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True)
