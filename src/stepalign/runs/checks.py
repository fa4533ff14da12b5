"""Checks of a recipe before weights are loaded or the hub is asked: files, names, and parts that fit together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from stepalign import miniature
from stepalign.judges.spm_files import CONFIG, WEIGHTS
from stepalign.miniature import world
from stepalign.models.load import check_names
from stepalign.runs.recipes import MINIATURE, RELEASED_JUDGES, SDXL, SDXL_VAE, FrozenModel, JudgeChoice, Recipe
from stepalign.support import hub
from stepalign.support.config import public_name, require
from stepalign.support.hub import is_hub_id, split_hub_file
from stepalign.support.parsing import check_text
from stepalign.support.prompt_text import weighting_note
from stepalign.support.tensor_files import weight_files
from stepalign.training.judge_settings import NUM_TRAIN_TIMESTEPS

OF_THE_MINIATURE = ("tokenizer/vocab.json", "unet/config.json")
"""Files by which a copy of the miniature is recognised."""
UNKNOWN_WORDS = 5
"""Most words that a note lists."""


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError for a part of the recipe that cannot exist or does not fit the others."""
    check_base(recipe.model, recipe.base)
    check_judge(recipe.judge)
    check_scorers(recipe.evaluation.scorers, "evaluation.scorers")
    low, high = recipe.branching.timestep_range
    require(low < NUM_TRAIN_TIMESTEPS and high >= 0, "branching.timestep_range", (low, high), "of timesteps 0 to 999")
    if recipe.judge.path == MINIATURE and not is_miniature(recipe.model):
        raise ValueError(
            f"judge.path: the miniature's judge knows its own images and captions only, and {recipe.model!r} is "
            "another model; give a judge trained for it"
        )


def check_base(name: str, base: FrozenModel) -> None:
    """Raise ValueError for a base model, config or VAE that does not exist."""
    check_names(str(miniature.MODEL) if name == MINIATURE else name, config=base.config, vae=base.vae)
    if base.vae == SDXL_VAE and family_of(name) == "sd":
        raise ValueError(
            f"base.vae: {SDXL_VAE} has SDXL's latents, and {name!r} is no SDXL; leave it out, or give none"
        )


def check_judge(choice: JudgeChoice) -> None:
    """Raise ValueError for a judge that does not exist or lacks a file."""
    path = choice.path
    if path == MINIATURE:
        return
    if path.endswith(".bin"):
        if not Path(path).expanduser().is_file() and split_hub_file(path) is None:
            raise ValueError(
                f"judge: there is no file {path!r}, and it is not owner/name/file on the hub; give a folder, hub id or "
                ".bin with --judge.path"
            )
        if Path(path).expanduser().is_file():
            check_checkpoint(Path(path).expanduser(), "judge")
        return
    check_folder(path, "judge")
    folder = Path(path).expanduser()
    if folder.is_dir():
        there = {CONFIG: (folder / CONFIG).is_file(), WEIGHTS: choice.kind != "spm" or bool(weight_files(folder))}
        if missing := [file for file, found in there.items() if not found]:
            raise ValueError(
                f"judge: {path} has no {missing[0]}; a step-aware preference model has {CONFIG}, {WEIGHTS}"
            )


def check_checkpoint(path: Path, field: str) -> None:
    """Raise ValueError for a file whose first bytes are neither torch's zip archive nor a pickle."""
    with path.open("rb") as file:
        begins = file.read(4)
    if not begins.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"{field}: {path} is no checkpoint of torch; is it damaged, or a download that failed?")


def check_folder(name: str | None, field: str) -> None:
    """Raise ValueError for a name that is neither a local folder nor a hub id nor "miniature"."""
    if name is not None and name != MINIATURE:
        hub.check_folder(name, field)


def check_scorers(entries: Iterable[str], field: str) -> None:
    """Raise ValueError for scorers NAME=PATH with a path that does not exist."""
    for entry in entries:
        name, _, source = entry.partition("=")
        path = Path(source).expanduser()
        if source and not (path.exists() or is_hub_id(source) or split_hub_file(source)):
            raise ValueError(
                f"{field}: there is no file or folder {source!r} for {name}, and it is not a hub id (owner/name)"
            )


def check_prompts(prompts: Iterable[str], field: str) -> None:
    """Raise ValueError for a prompt that is not valid Unicode."""
    for number, prompt in enumerate(prompts, 1):
        check_text(prompt, f"{field}: number {number}")


def check_device(name: str) -> None:
    """Raise ValueError for a device that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: there is none named {name!r}; give cpu, cuda or cuda:N") from error
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    num = torch.accelerator.device_count() if found is not None else 0
    if device.type != "cpu" and (found is None or device.type != found.type or (device.index or 0) >= num):
        there = "only the CPU" if found is None else f"{num} of type {found.type}"
        raise ValueError(f"device: {name!r} is not on this machine, which has {there}")


def notes_on(recipe: Recipe, prompts: Iterable[str]) -> list[str]:
    """Warnings about a recipe and its prompts: settings made for another model."""
    notes = []
    model, judge, family = public_name(recipe.model), recipe.judge.path, family_of(recipe.model)
    full_names = {"sd": "Stable Diffusion 1.x or 2.x", "sdxl": "SDXL"}
    made_for = next((kind for kind, part in (("sdxl", "-sdxl"), ("sd", "-sd15")) if recipe.name.endswith(part)), None)
    if family in full_names and made_for not in (None, family):
        notes.append(
            f"{recipe.name} has the settings for {full_names[made_for or family]}, and {model} is "
            f"{full_names[family]}: a recipe that ends in {'sdxl' if family == 'sdxl' else 'sd15'} has those for it"
        )
    released = judge.startswith(f"{RELEASED_JUDGES}/")
    judged = "sdxl" if "/sdxl_" in judge else "sd"
    if family in full_names and released and judged != family:
        notes.append(f"the judge {judge} was trained for {full_names[judged]}, and {model} is {full_names[family]}")
    prompts = list(prompts)
    notes += filter(None, [weighting_note(prompts)])
    if is_miniature(recipe.model):
        notes += notes_on_prompts(prompts)
        if released or is_hub_id(judge):
            notes.append(f"the judge {judge} was not trained on the miniature's images of {world.PIXELS} pixels")
    return notes


def notes_on_prompts(prompts: Iterable[str]) -> list[str]:
    """Warnings about prompts with words that the miniature, trained on its captions only, does not know."""
    known = {
        word for caption in (part for split in world.split_captions() for part in split) for word in caption.split()
    }
    foreign = [[word for word in prompt.lower().split() if word not in known] for prompt in prompts]
    words = list(dict.fromkeys(word for found in foreign for word in found))
    if not words:
        return []
    more = ", ..." if len(words) > UNKNOWN_WORDS else ""
    return [
        f"{sum(map(bool, foreign))} of {len(foreign)} prompts have words that the miniature does not know "
        f"({', '.join(words[:UNKNOWN_WORDS])}{more}); it knows captions such as {world.split_captions()[1][0]!r}"
    ]


def family_of(name: str) -> str | None:
    """ "sd" or "sdxl" by a folder's index or a known hub id; None if neither tells."""
    if name == MINIATURE:
        return "miniature"
    if name == SDXL:
        return "sdxl"
    if name == Recipe(name="").model:
        return "sd"
    with suppress(OSError, ValueError, AttributeError, TypeError):
        index = json.loads((Path(name).expanduser() / "model_index.json").read_text(encoding="utf-8"))
        if is_miniature(name):
            return "miniature"
        class_name = str(index.get("_class_name"))
        if class_name.startswith("StableDiffusionXL"):
            return "sdxl"
        return "sd" if class_name.startswith("StableDiffusion") else None
    return None


def is_miniature(name: str) -> bool:
    """Whether a model is the miniature, or has its vocabulary and network, as a copy with other weights does."""
    if name == MINIATURE:
        return True
    folder = Path(name).expanduser()
    with suppress(OSError):
        return all((folder / file).read_bytes() == (miniature.MODEL / file).read_bytes() for file in OF_THE_MINIATURE)
    return False
