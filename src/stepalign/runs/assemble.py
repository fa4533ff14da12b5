"""From a recipe to the parts of a run, every one checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from stepalign import miniature
from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.protocols import Judge, Metric
from stepalign.core.sampler import DDIM
from stepalign.data.prompt_files import load_prompts
from stepalign.data.prompts_cut import Reader
from stepalign.judges.counted import CountedJudge
from stepalign.judges.image import ImageJudge
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.spm_files import RELEASED_TOKENIZER
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.miniature import oracles, world
from stepalign.models.base import BaseModel, text_readers
from stepalign.models.clip import resolve_folder
from stepalign.models.identity import base_identity
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork, LoraPolicy
from stepalign.objectives.load import load_objective
from stepalign.runs.checks import check_prompts, check_recipe
from stepalign.runs.recipes import MINIATURE, FrozenModel, JudgeChoice, Recipe
from stepalign.runs.scorer_names import load_scorer, scorer_entries
from stepalign.scorers.image_metric import ImageMetric
from stepalign.scorers.pickscore import PickScore
from stepalign.sources.branching import windows
from stepalign.sources.by_prompt import PromptSampling
from stepalign.sources.load import load_source
from stepalign.sources.prompt_order import PromptStream
from stepalign.support.digests import Identity, network_identity, text_digest, values_digest
from stepalign.support.errors import first_line
from stepalign.support.parallel import processes
from stepalign.training.trainer import Trainer
from stepalign.training.updater import Updater

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ORACLES: dict[str, Metric] = {"aesthetic": oracles.aesthetic, "alignment": oracles.alignment}


@dataclass(frozen=True, slots=True)
class GuardPrompts:
    """Held-out prompts that a guard measures during training."""

    prompts: list[str]
    """Of every measurement."""
    second: list[str]
    """Of the measurement that confirms an alarm."""
    evaluated: bool
    """Whether the final evaluation reports on them too."""

    def describe(self) -> str:
        """A description of the prompts for the summary."""
        own = "also those of the final evaluation" if self.evaluated else "none of the final evaluation"
        return f"{own}; a second measurement has {'the same' if self.second == self.prompts else 'others'}"


@dataclass(frozen=True, slots=True)
class Parts:
    """A recipe with everything that it names loaded."""

    recipe: Recipe
    model: BaseModel
    policy: LoraPolicy
    sampler: DDIM
    judge: Judge
    stream: PromptStream
    """The training prompts, in the order of training."""
    trainer: Trainer[StepComparisons]
    held_out: list[str]
    """Prompts to evaluate on; empty when the recipe has none."""
    metrics: dict[str, Metric]
    identity: Identity
    """Digests of all that decides the run besides its recipe."""
    readers: dict[str, Reader]
    """The text encoders that all prompts go through, by name."""
    scorer_readers: dict[str, Reader]
    """Those of scorers, which read held-out prompts only."""
    guard: GuardPrompts


@dataclass(frozen=True, slots=True)
class _Scorers:
    """Oracles and scorers of held-out images, by name, with the digests and text encoders of the scorers."""

    metrics: dict[str, Metric]
    identity: Identity
    readers: dict[str, Reader]


def assemble(recipe: Recipe) -> Parts:
    """Load and check everything a recipe names; raises ValueError naming the fault and the remedy.

    What needs no weights is checked before any are loaded.
    """
    check_recipe(recipe)
    prompts = _prompts(recipe.prompts, "prompts")
    held_out, guard = _held_out(recipe)
    check_prompts(prompts, "prompts")
    check_prompts(held_out, "evaluation.prompts")
    scorers = scorer_entries(recipe.evaluation.scorers) if recipe.evaluation.scorers else {}
    if both := scorers.keys() & set(recipe.evaluation.oracles):
        raise ValueError(f"evaluation.scorers: {', '.join(both)} is the name of an oracle too; leave one of them out")
    model = base_model(recipe.model, recipe.base)
    judge, judge_identity, judge_reader = _judge(recipe, model)
    identity = base_identity(model) | judge_identity | {"prompts": text_digest(prompts)}
    identity |= {"held-out prompts": text_digest(held_out)} if held_out else {}
    identity |= {"guard's prompts": text_digest(guard.prompts + guard.second)} if recipe.guard.every else {}
    sampler = model.sampler(recipe.base.num_steps, eta=recipe.base.eta)
    if not windows(recipe.branching, sampler):
        raise ValueError("branching.timestep_range leaves no step with noise to choose; widen it, or raise base.eta")
    if recipe.base.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    guided, targets = guided_network(model, recipe.base), model.target_modules
    policy = LoraPolicy(guided, rank=recipe.lora_rank, seed=recipe.seed, target_modules=targets)
    counted, stream = CountedJudge(judge), PromptStream(prompts, seed=recipe.seed)
    trainer = make_trainer(
        recipe, policy, sampler, counted, encode=model.encode, stream=stream, latent_shape=model.latent_shape
    )
    own = _scorers(recipe, scorers)
    identity, metrics, more = identity | own.identity, own.metrics, own.readers
    readers = text_readers(model.pipeline) | {"the judge": judge_reader}
    return Parts(
        recipe, model, policy, sampler, counted, stream, trainer, held_out, metrics, identity, readers, more, guard
    )


def _scorers(recipe: Recipe, entries: dict[str, str]) -> _Scorers:
    """The oracles of a recipe and its scorers, whose entries are given by name, loaded."""
    found = _Scorers({name: ORACLES[name] for name in recipe.evaluation.oracles}, {}, {})
    for name, entry in entries.items():
        scorer = load_scorer(entry, device=processes().device)
        found.identity[f"scorer {name}"] = scorer.record.content
        found.metrics[name], found.readers[name] = ImageMetric(scorer), scorer.num_cut
    return found


def make_trainer(
    recipe: Recipe,
    policy: LoraPolicy,
    sampler: DDIM,
    judge: CountedJudge,
    *,
    encode: Callable[[list[str]], Conditioning],
    stream: PromptStream,
    latent_shape: tuple[int, int, int],
) -> Trainer[StepComparisons]:
    """The trainer that a recipe describes: its source, its objective, its updates."""
    training = recipe.training
    scaled = precision_of(recipe.base) == torch.float16
    updater = Updater(policy, config=training, seed=recipe.seed, loss_scaling=scaled)
    sampling = PromptSampling(
        policy.denoiser(training.rollout_role),
        sampler,
        encode,
        stream,
        latent_shape,
        prompts_per_round=training.prompts_per_round,
        sample_batch=training.sample_batch,
        seed=recipe.seed,
        device=updater.device,
    )
    source = load_source(recipe.source, recipe.branching, sampling, judge)
    objective = load_objective(recipe.objective)
    return Trainer(source, objective, updater, sampler=sampler, counters=[judge.calls])


def precision_of(choice: FrozenModel | JudgeChoice) -> torch.dtype:
    """Of frozen weights where the run computes."""
    return DTYPES[choice.precision] if processes().device.type != "cpu" else torch.float32


def base_model(name: str, base: FrozenModel) -> BaseModel:
    """The base model of a recipe, on this process's device."""
    sides = base.resolution
    return load(
        str(miniature.MODEL) if name == MINIATURE else name,
        config=base.config,
        vae=base.vae,
        prediction_type=base.prediction_type,
        resolution=None if sides is None else (sides[0], sides[-1]),
        dtype=precision_of(base),
        device=processes().device,
    )


def guided_network(model: BaseModel, base: FrozenModel) -> GuidedNetwork:
    """The base model's network as a recipe has it predict."""
    precision = precision_of(base)
    return GuidedNetwork(
        model.network,
        negative=model.negative(),
        guidance_scale=base.guidance_scale,
        forward=model.forward,
        autocast=None if precision == torch.float32 else precision,
        max_batch=base.max_batch,
    )


def _prompts(source: str | None, field: str) -> list[str]:
    if source is None:
        raise ValueError(
            f"{field}: this recipe has none; give a file with --{field} FILE (.txt, .json, .jsonl, .csv or .tsv)"
        )
    if source == MINIATURE:
        training, held_out = world.split_captions()
        return training if field == "prompts" else held_out
    return load_prompts(source)


def _held_out(recipe: Recipe) -> tuple[list[str], GuardPrompts]:
    """The prompts of the final evaluation and those of the guard."""
    if recipe.evaluation.prompts is None:
        return [], GuardPrompts([], [], evaluated=False)
    every = _prompts(recipe.evaluation.prompts, "evaluation.prompts")
    prompts = every[: recipe.evaluation.num_prompts]
    if len(set(prompts)) < 2:
        raise ValueError("evaluation.prompts: an interval needs at least two different held-out prompts")
    guard = guard_prompts(every, prompts, recipe.guard.num_prompts)
    if recipe.evaluation.oracles:
        world.attributes_of(prompts + (guard.prompts + guard.second if recipe.guard.every else []))
    return prompts, guard


def guard_prompts(every: list[str], evaluated: list[str], num: int) -> GuardPrompts:
    """The guard's prompts among all held-out ones: other ones than the final evaluation's, and other ones for a second
    measurement, as far as there are enough."""
    reported = set(evaluated)
    rest = [prompt for prompt in dict.fromkeys(every) if prompt not in reported]
    if len(rest) >= 2 * num:
        return GuardPrompts(rest[:num], rest[num : 2 * num], evaluated=False)
    if len(rest) >= num:
        return GuardPrompts(rest[:num], rest[:num], evaluated=False)
    distinct = list(dict.fromkeys(every))
    if len(distinct) >= 2 * num:
        return GuardPrompts(distinct[:num], distinct[num : 2 * num], evaluated=True)
    return GuardPrompts(distinct[:num], distinct[:num], evaluated=True)


def _judge(recipe: Recipe, model: BaseModel) -> tuple[Judge, Identity, Reader]:
    """The judge, its identity, and how many of some prompts it cuts."""
    choice, device = recipe.judge, processes().device
    try:
        match choice.kind:
            case "spm":
                path = str(miniature.SPM) if choice.path == MINIATURE else choice.path
                spm, tokenizer = load_spm(path, precision_of(choice))
                step_aware = StepAwareJudge(
                    spm.to(device),
                    tokenizer,
                    model.decode,
                    max_batch=choice.max_batch,
                    preprocessing=choice.preprocessing,
                )
                return step_aware, spm_identity("judge", spm, tokenizer), step_aware.num_cut
            case "pickscore":
                metric = pickscore(choice.path, precision_of(choice))
                judge = ImageJudge(metric, model.decode, max_batch=choice.max_batch)
                identity = network_identity("judge", metric.model, metric.model.config, metric.tokenizer)
                return judge, identity, metric.num_cut
    except (ValueError, OSError) as error:
        raise ValueError(f"judge: {first_line(error)}; give a folder, hub id or .bin with --judge.path") from error


def load_spm(path: str, dtype: torch.dtype = torch.float32) -> tuple[StepAwarePreferenceModel, CLIPTokenizer]:
    """A step-aware preference model, a folder, hub id or released `.bin`, with its tokenizer.

    That of a `.bin` is the one beside it, or PickScore's from the hub.
    """
    if path.endswith(".bin"):
        spm = StepAwarePreferenceModel.from_checkpoint(path, dtype=dtype)
        beside = Path(path).expanduser().parent
        has_tokenizer = any((beside / file).is_file() for file in ("tokenizer.json", "vocab.json"))
        return spm, CLIPTokenizer.from_pretrained(beside if has_tokenizer else resolve_folder(RELEASED_TOKENIZER))
    spm = StepAwarePreferenceModel.from_pretrained(path, dtype=dtype)
    return spm, CLIPTokenizer.from_pretrained(resolve_folder(path))


def spm_identity(name: str, spm: StepAwarePreferenceModel, tokenizer: CLIPTokenizer) -> Identity:
    """Digests of a step-aware preference model's weights, config and tokenizer."""
    found = network_identity(name, spm, spm.config, tokenizer)
    options = [spm.timestep_conditioning, spm.preprocessing]
    return found | {f"{name}.config": values_digest([found[f"{name}.config"], options])}


def pickscore(path: str, dtype: torch.dtype = torch.float32) -> PickScore:
    """A PickScore-like scorer, a folder, hub id or "miniature", on this process's device."""
    name = str(miniature.PICKSCORE) if path == MINIATURE else path
    return PickScore.from_pretrained(name, device=processes().device, dtype=dtype)
