"""Generation of images of prompts into a folder; its files are listed in `generation_folder.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.data.manifest import MANIFEST, ImageRow
from stepalign.data.prompts_cut import count_cut
from stepalign.evaluation.generation_folder import (
    IMAGES,
    GenerationRecord,
    finish_folder,
    folder_owner,
    images_to_generate,
    read_record,
    rows_digest,
)
from stepalign.evaluation.generation_settings import Generation
from stepalign.models.adapters import adapter_digest, load_adapters, split_scale
from stepalign.models.base import BaseModel, text_readers
from stepalign.models.identity import adapters_identity, base_identity
from stepalign.models.policy import GuidedNetwork
from stepalign.models.unet import replace_unet
from stepalign.runs.assemble import base_model, guided_network, precision_of
from stepalign.runs.checks import check_base, check_folder, check_prompts, is_miniature, notes_on_prompts
from stepalign.runs.recipes import local_path
from stepalign.runs.run import open_run
from stepalign.scorers.image_metric import to_pil
from stepalign.support.config import to_plain
from stepalign.support.digests import Identity, hub_revision
from stepalign.support.environment import device_name, versions
from stepalign.support.files import replacing
from stepalign.support.finite import NotFinite
from stepalign.support.parallel import decided_by_main, processes
from stepalign.support.prompt_text import weighting_note
from stepalign.support.stopping import check_stop, finishing
from stepalign.support.watcher import NullWatcher, Watcher

BATCHES_ENCODED = 8
"""Batches of prompts that are encoded at once; their encodings are dropped when their images are generated."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Loaded model, guided network and sampler, with their digests."""

    model: BaseModel
    guided: GuidedNetwork
    sampler: DDIM
    identity: Identity


def generate_folder(
    choice: Generation,
    prompts: list[str],
    output: Path,
    *,
    categories: list[str] | None = None,
    watcher: Watcher | None = None,
) -> GenerationRecord | None:
    """Generate images of prompts into a folder and return the content of generation.json, on the main process.

    Image n of prompt p comes from a generator of its own, so batch size, number of processes and interruptions change
    an image by rounding at most. The same call on an unfinished folder keeps the images that can be read and generates
    the others; on a finished one it checks every file and makes only damaged and missing ones again. Several processes
    share the images; those other than the main one return None.

    Raises ValueError, before writing anything, when something cannot be loaded, a prompt is empty, another job is at
    work in the folder, or it holds images of other settings or of other content of a model, adapter or prompts, naming
    what differs; and later for an image that is not finite.
    """
    watcher = watcher or NullWatcher()
    choice = _with_absolute_paths(choice)
    check_base(choice.model, choice.base)
    check_folder(choice.unet, "unet")
    rows = _rows(choice, prompts, categories)
    settings = _settings(choice, rows)
    with open_run(output, folder_owner(settings), files=(IMAGES, MANIFEST), watcher=watcher) as run:
        loaded = _load(choice)
        run.identify(loaded.identity)
        files = decided_by_main(lambda: images_to_generate(output, rows, watcher.note))
        if files is None:
            return read_record(output) if processes().is_main_process else None
        start = time.perf_counter()
        foreign = notes_on_prompts(prompts) if is_miniature(choice.model) else []
        for note in filter(None, [weighting_note(prompts), *foreign]):
            watcher.note(note)
        cut = count_cut(text_readers(loaded.model.pipeline), prompts, watcher)
        missing = [row for row in rows if row.file in set(files)]
        with finishing():
            _generate(choice, loaded, missing[processes().process_index :: processes().num_processes], output, watcher)
        processes().wait_for_everyone()
        if not processes().is_main_process:
            return None
        record: GenerationRecord = {
            "settings": settings,
            "finished": True,
            "num_prompts": len(prompts),
            "num_images": len(rows),
            "resolution": list(loaded.model.image_size),
            "prompts_cut": cut,
            "identity": loaded.identity,
            "revisions": _revisions(choice),
            "versions": versions(),
            "timing": {
                "seconds": round(time.perf_counter() - start, 1),
                "num_kept": len(rows) - len(missing),
                "num_processes": processes().num_processes,
                "device": device_name(loaded.model.device),
            },
        }
        return finish_folder(run, rows, record)


def to_pixels(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Decoded images with values in [-1, 1] as 8-bit images, clamped and rounded as diffusers does."""
    return to_pil(images / 2 + 0.5)


def _load(choice: Generation) -> _Loaded:
    model = base_model(choice.model, choice.base)
    if choice.unet is not None:
        replace_unet(model, choice.unet)
    identity = base_identity(model)
    load_adapters(model, [split_scale(entry) for entry in choice.adapters])
    identity |= adapters_identity(model, len(choice.adapters))
    sampler = model.sampler(choice.num_steps, eta=choice.eta)
    return _Loaded(model, guided_network(model, choice.base), sampler, identity)


def _revisions(choice: Generation) -> dict[str, str]:
    """Commits of hub repositories, by setting."""
    names = {"model": choice.model, "unet": choice.unet, "base.vae": choice.base.vae, "base.config": choice.base.config}
    names |= {f"adapters.{number}": split_scale(entry)[0] for number, entry in enumerate(choice.adapters)}
    found = {setting: hub_revision(name) for setting, name in names.items() if name is not None}
    return {setting: commit for setting, commit in found.items() if commit is not None}


@torch.no_grad()
def _generate(choice: Generation, loaded: _Loaded, rows: list[ImageRow], output: Path, watcher: Watcher) -> None:
    """Generate the images of rows, each written as soon as its batch is done."""
    done = 0
    for chunk in _by_prompts(rows, BATCHES_ENCODED * choice.batch_size):
        loaded.model.encode(list(dict.fromkeys(row.prompt for row in chunk)))
        for start in range(0, len(chunk), choice.batch_size):
            batch = chunk[start : start + choice.batch_size]
            for row, image in zip(batch, to_pixels(_decoded(choice, loaded, batch)), strict=True):
                with replacing(output / row.file) as temporary:
                    image.save(temporary, format="PNG")
            done += len(batch)
            watcher.phase("sample", done, len(rows))
            check_stop(f"{done} of {len(rows)} images are saved")
        loaded.model.clear_cache()


def _by_prompts(rows: list[ImageRow], num: int) -> Iterator[list[ImageRow]]:
    """Rows, sorted by prompt, in groups of so many prompts."""
    order = {index: number for number, index in enumerate(dict.fromkeys(row.prompt_index for row in rows))}
    for _, group in groupby(rows, key=lambda row: order[row.prompt_index] // num):
        yield list(group)


def _decoded(choice: Generation, loaded: _Loaded, rows: list[ImageRow]) -> Float[Tensor, "b 3 h w"]:
    """The decoded images of one batch; raises ValueError naming an image that is not finite."""
    model = loaded.model
    noise = PromptNoise([generator_for(choice.seed, Purpose.GENERATION, *row.key) for row in rows], device=model.device)
    cond = model.encode([row.prompt for row in rows])
    with _naming(rows):
        x_0 = sample(loaded.guided, loaded.sampler, cond=cond, latent_shape=model.latent_shape, noise=noise)
    at_once = choice.base.max_batch or len(x_0)
    images = []
    for start in range(0, len(x_0), at_once):
        with _naming(rows[start:]):
            images.append(model.decode(x_0[start : start + at_once]))
    return torch.cat(images)


@contextmanager
def _naming(rows: list[ImageRow]) -> Iterator[None]:
    """Name the image whose values stopped being finite, the first of a batch of these rows."""
    try:
        yield
    except NotFinite as error:
        row = rows[error.row]
        which = f"image {row.image_index} of prompt {row.prompt_index} ({row.prompt[:80]!r})"
        raise ValueError(f"{which}: {error}") from error


def _rows(choice: Generation, prompts: list[str], categories: list[str] | None) -> list[ImageRow]:
    """The manifest, sorted by prompt; raises ValueError naming a prompt that is empty."""
    if not prompts:
        raise ValueError("prompts: none were given")
    check_prompts(prompts, "prompts")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError(f"prompts: number {index}, counted from 0, is empty")
    if categories is not None and len(categories) != len(prompts):
        raise ValueError(f"categories: {len(categories)} were given for {len(prompts)} prompts")
    return [
        ImageRow(p, n, prompt, f"{IMAGES}/{p:05d}-{n}.png", choice.seed, None if categories is None else categories[p])
        for p, prompt in enumerate(prompts)
        for n in range(choice.num_images)
    ]


def _with_absolute_paths(choice: Generation) -> Generation:
    """The choice with absolute local paths, so that it is the same from any directory."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else local_path(name)

    base = replace(choice.base, config=absolute(choice.base.config), vae=absolute(choice.base.vae))
    return replace(choice, model=local_path(choice.model), unet=absolute(choice.unet), base=base)


def _settings(choice: Generation, rows: list[ImageRow]) -> dict[str, Any]:
    """All settings that decide the images, as plain values; adapters with digests of their files."""
    adapters = []
    for name, scale in map(split_scale, choice.adapters):
        adapters.append({"name": local_path(name), "scale": scale, "sha256": adapter_digest(name)})
    return {
        **to_plain(choice),
        "adapters": adapters,
        "prompts": rows_digest(rows),
        "computed_in": str(precision_of(choice.base)).removeprefix("torch."),
    }
