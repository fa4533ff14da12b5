"""From a judge's recipe to the parts of its training: base model, data made ready, judge, trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign import miniature
from stepalign.core.batch import Conditioning
from stepalign.core.protocols import Scorer
from stepalign.core.seeding import EpochOrder, Purpose
from stepalign.data.pairs import RESIZING, PairSource
from stepalign.data.prepared import Labeller, Manifest, PairEncoder, PreparedPairs, prepare
from stepalign.data.prompts_cut import Reader
from stepalign.data.sources import open_pairs
from stepalign.judges.pairs import FrozenBase, JudgeScorer
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature.preferences import WorldPairs
from stepalign.models.base import BaseModel, text_readers
from stepalign.models.clip import load_clip, resolve_folder
from stepalign.models.identity import base_identity
from stepalign.runs.assemble import base_model, guided_network, load_spm, pickscore, spm_identity
from stepalign.runs.checks import check_base, check_folder
from stepalign.runs.judge_recipes import JudgeRecipe, PairData
from stepalign.runs.recipes import MINIATURE
from stepalign.scorers.image_metric import to_pil
from stepalign.support.config import public_name
from stepalign.support.digests import Identity, network_identity, values_digest
from stepalign.support.errors import first_line
from stepalign.support.parallel import processes
from stepalign.support.prompt_text import weighting_note
from stepalign.support.tensor_files import read_header, weight_files
from stepalign.support.watcher import Watcher
from stepalign.training.judge_trainer import JudgeTrainer

NOT_IN_THE_CACHE = ("unet", "scheduler", "precision", "empty prompt")
"""Parts of a base model that encode neither images nor prompts; what is encoded has the precision of its encoder."""


@dataclass(frozen=True, slots=True)
class JudgeParts:
    """A judge's recipe with everything that it names loaded and its data prepared."""

    recipe: JudgeRecipe
    model: BaseModel
    scorer: JudgeScorer
    trainer: JudgeTrainer
    held_out: PreparedPairs
    manifest: Manifest
    """Of the training data."""
    held_out_name: str
    """Where the held-out pairs come from, for people."""
    identity: Identity
    """Digests of all that decides the run besides its recipe."""
    readers: dict[str, Reader]
    """The text encoders that prompts go through, by name."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Parts that a judge's recipe names, before its pairs are encoded."""

    source: PairSource
    held_out: PairSource | None
    spm: StepAwarePreferenceModel
    tokenizer: CLIPTokenizer
    model: BaseModel
    label: Labeller | None
    readers: dict[str, Reader]
    """The labeller's text encoder, if there is one."""
    encoders: Identity
    """Of the base model, which encodes pairs."""
    labeller: Identity
    identity: Identity
    """Of all."""


def judge_identity(recipe: JudgeRecipe) -> Identity:
    """The identity of all that a recipe names, as `JudgeParts.identity` has it, without encoding any pair."""
    return _load(recipe).identity


def _load(recipe: JudgeRecipe) -> _Loaded:
    data, evaluation = recipe.data, recipe.evaluation
    check_base(recipe.model, recipe.base)
    check_folder(data.relabel_with, "data.relabel_with")
    source, own = _source("data.pairs", data.pairs, data.split, data, data.num_rows), None
    pairs = {"pairs": source.fingerprint}
    if evaluation.pairs is not None:
        own = _source("evaluation.pairs", evaluation.pairs, evaluation.split, data, evaluation.num_pairs)
        pairs["held-out pairs"] = own.fingerprint
    spm, tokenizer, start = _start(recipe)
    model = base_model(recipe.model, recipe.base)
    label, labeller, readers = _relabel(data)
    base = base_identity(model)
    identity = base | start | labeller | pairs
    return _Loaded(source, own, spm, tokenizer, model, label, readers, base, labeller, identity)


def assemble_judge(recipe: JudgeRecipe, watcher: Watcher) -> JudgeParts:
    """Load and check everything a recipe names and make its data ready; raises ValueError with what to do."""
    data, evaluation, loaded = recipe.data, recipe.evaluation, _load(recipe)
    model = loaded.model
    guided = guided_network(model, recipe.base)
    made_by = loaded.encoders | loaded.labeller
    pairs, manifest = _prepared(loaded.source, data, model, loaded.label, made_by, watcher)
    if loaded.held_out is None:
        pairs, held_out = split_by_prompt(pairs, share=evaluation.share, seed=recipe.seed)
        name = f"{evaluation.share:.1%} of the prompts of {public_name(manifest.pairs)}"
    else:
        held_out, other = _prepared(loaded.held_out, data, model, None, loaded.encoders, watcher)
        name = public_name(other.pairs)
    note = weighting_note(list(dict.fromkeys([*pairs.prompts, *held_out.prompts])))
    if note is not None:
        watcher.note(note)
    held_out = held_out.select(list(range(min(len(held_out), evaluation.num_pairs))))
    seen_through = FrozenBase(guided, model.decode, model.schedule(20))
    spm, precision = loaded.spm.to(processes().device), recipe.training.precision
    scorer = JudgeScorer(spm, loaded.tokenizer, seen_through, precision=precision)
    trainer = JudgeTrainer(scorer, pairs=pairs, config=recipe.training, seed=recipe.seed)
    readers = text_readers(model.pipeline) | {"the judge": scorer.num_cut} | loaded.readers
    return JudgeParts(recipe, model, scorer, trainer, held_out, manifest, name, loaded.identity, readers)


def split_by_prompt(pairs: PreparedPairs, *, share: float, seed: int) -> tuple[PreparedPairs, PreparedPairs]:
    """Training and held-out pairs without a prompt in common, a share of the prompts held out.

    Raises ValueError when one of the two would be empty.
    """
    distinct = list(dict.fromkeys(pairs.prompts))
    order = EpochOrder(len(distinct), seed=seed, purpose=Purpose.JUDGE_DATA)
    held_out = {distinct[order[position]] for position in range(max(1, round(share * len(distinct))))}
    parts = [
        pairs.select([row for row, prompt in enumerate(pairs.prompts) if (prompt in held_out) == wanted])
        for wanted in (False, True)
    ]
    if not all(len(part) for part in parts):
        raise ValueError(
            f"data.pairs: {len(distinct)} distinct prompts are too few to hold some out; give held-out pairs of their "
            "own with --evaluation.pairs"
        )
    return parts[0], parts[1]


def _source(field: str, name: str | None, split: str, data: PairData, num_rows: int | None) -> PairSource:
    if name is None:
        raise ValueError(
            f"{field}: this recipe has none; give a .jsonl or .parquet file, a folder with win/ and lose/, or a hub "
            f"dataset with --{field}"
        )
    if name == MINIATURE:
        return WorldPairs(split=split, num_rows=num_rows or 32_000)
    try:
        return open_pairs(
            name, split=split, streaming=data.streaming, num_rows=num_rows, allow_outside=data.allow_outside
        )
    except ValueError as error:
        section = field.partition(".")[0]
        raise ValueError(
            str(error).replace("data.pairs", field).replace("split must", f"{section}.split must")
        ) from error


def _start(recipe: JudgeRecipe) -> tuple[StepAwarePreferenceModel, CLIPTokenizer, Identity]:
    """The model training begins with, a CLIP made step-aware or a step-aware one that learns on, and its identity."""
    choice = recipe.judge
    path = str(miniature.PICKSCORE) if choice.start == MINIATURE else choice.start
    try:
        if path.endswith(".bin") or _is_step_aware(resolve_folder(path)):
            spm, tokenizer = load_spm(path)
            own = {"timestep_conditioning": spm.timestep_conditioning, "preprocessing": spm.preprocessing}
            for name, value in own.items():
                if value != getattr(choice, name):
                    raise ValueError(f"{path} has {name} {value}; say so with --judge.{name}")
            return spm, tokenizer, spm_identity("judge.start", spm, tokenizer)
        folder = resolve_folder(path)
        clip, tokenizer = load_clip(folder), CLIPTokenizer.from_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)  # the timestep embedder's weights, the same in every process
            spm = StepAwarePreferenceModel.from_clip(
                clip, timestep_conditioning=choice.timestep_conditioning, preprocessing=choice.preprocessing
            )
        return spm, tokenizer, network_identity("judge.start", clip, clip.config, tokenizer)
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(
            f"judge.start: {first_line(error)}; give a CLIP's folder or hub id with --judge.start"
        ) from error


def _is_step_aware(folder: Path) -> bool:
    """Whether a folder's weights have more than CLIP's."""
    files = [file for file in weight_files(folder) if file.suffix == ".safetensors"]
    return any("adaLN_modulation" in key for file in files for key in read_header(file)[0])


def _relabel(data: PairData) -> tuple[Labeller | None, Identity, dict[str, Reader]]:
    """The labeller of pairs, its identity, and its text encoder."""
    if data.relabel_with is None:
        return None, {}, {}
    try:
        scorer = pickscore(data.relabel_with)
    except (ValueError, OSError) as error:
        raise ValueError(f"data.relabel_with: {first_line(error)}; give a PickScore's folder or hub id") from error
    found = network_identity("data.relabel_with", scorer.model, scorer.model.config, scorer.tokenizer)
    found["data.relabel_with.preprocessing"] = values_digest(scorer.record.preprocessing)
    return labeller(scorer, tie_gap=data.tie_gap), found, {"data.relabel_with": scorer.num_cut}


def labeller(scorer: Scorer, *, tie_gap: float) -> Labeller:
    """Labels by a PickScore-like scorer: a tie where its two probabilities differ by no more than `tie_gap`.

    SPO's released training has PickScore see images, not tensors: antialiased, in whole levels.
    """

    @torch.no_grad()
    def label(images: Float[Tensor, "b 2 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        both = [prompt for prompt in prompts for _ in range(2)]
        scores = scorer.score(to_pil(images.flatten(0, 1) / 2 + 0.5), both).unflatten(0, (-1, 2))
        gap = torch.tanh((scores[:, 0] - scores[:, 1]) / 2)  # the difference of the two probabilities
        return torch.where(gap.abs() <= tie_gap, 0.5, (gap > 0).float())

    return label


def _prepared(
    source: PairSource, data: PairData, model: BaseModel, label: Labeller | None, made_by: Identity, watcher: Watcher
) -> tuple[PreparedPairs, Manifest]:
    """A source's pairs in the cache, in a folder named by the content of rows, encoders and labeller."""

    def encode(prompts: list[str]) -> Conditioning:
        cond = model.encode(prompts)
        model.clear_cache()
        return cond

    used = {part: value for part, value in made_by.items() if part.partition(".")[0] not in NOT_IN_THE_CACHE}
    size = model.image_size
    key = values_digest([source.fingerprint, used, data.tie_gap if label else None, RESIZING])[:20]
    return prepare(
        source,
        Path(data.cache).expanduser() / key,
        encoder=PairEncoder(encode, model.encode_images, size, batch_size=data.encode_batch, label=label),
        max_bad=data.max_bad,
        tick=lambda done, total: watcher.phase("prepare", done, total),
        tell=watcher.note,
    )
