"""Pictures of prompts, drawn into a folder that says how they were drawn.

images/00012-0.png   picture 0 of prompt 12
manifest.jsonl       a row per picture, once all are there; `manifest.py` reads it
generation.json      the settings, written before the first picture; then what drew them and how long it took
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.assemble import base_model, guided_network, precision_of
from stepalign.checkpoint import replacing, write_text
from stepalign.checks import check_base, check_folder, check_prompts, is_miniature, notes_on_prompts
from stepalign.config import require, to_plain
from stepalign.finite import NotFinite
from stepalign.images import open_image
from stepalign.manifest import GENERATION, MANIFEST, ImageRow, write_manifest
from stepalign.metrics.picture_metric import to_pictures
from stepalign.models.adapters import adapter_digest, load_adapters, split_scale
from stepalign.models.base import BaseModel, text_readers
from stepalign.models.unet import replace_unet
from stepalign.parallel import processes
from stepalign.parsing import parse_json, read_text
from stepalign.policy import GuidedNetwork
from stepalign.prompts_cut import count_cut
from stepalign.recipes import FrozenModel, local_path
from stepalign.rollout import sample
from stepalign.run_directory import Silence, Watcher, device_name, require_writable, versions
from stepalign.sampler import DDIM
from stepalign.seeding import PromptNoise, Purpose, generator_for
from stepalign.stopping import check_stop, finishing

IMAGES = "images"
BATCHES_ENCODED = 8
"""How many batches' worth of prompts are encoded at once, and forgotten when they are drawn."""
NOT_IN_THE_PICTURE = ("batch_size", "base.max_batch")
"""Settings that decide how fast pictures are drawn, not which ones."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What draws pictures, and how."""

    model: str
    """Diffusers folder, hub id, single `.safetensors` file, or "miniature"."""
    base: FrozenModel = field(default_factory=FrozenModel)
    num_steps: int = 20
    """Sampling steps N."""
    eta: float = 0.0
    """DDIM noise; 0 is the deterministic sampling that the papers evaluate with, 1 ancestral sampling."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters on top, PATH or PATH:SCALE: a run's adapter/ folder, a PEFT folder, a .safetensors or .bin file in
    the layout of diffusers, PEFT or kohya, or a hub id. Scale 1, the default, is as trained, 0 leaves it out."""
    unet: str | None = None
    """A fine-tuned UNet, a diffusers folder or hub id, in place of the model's own."""
    num_images: int = 1
    """Pictures of every prompt."""
    seed: int = 0
    """Picture n of prompt p starts from the same noise at any batch size and for any model of this latent size."""
    batch_size: int = 8
    """Pictures drawn at once."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", repr(self.model), "a folder, a hub id, a file or miniature")
        require(1 <= self.num_steps < 1000, "num_steps", self.num_steps, "between 1 and 999")
        require(0 <= self.eta <= 1, "eta", self.eta, "between 0 and 1")
        require(all(self.adapters), "adapters", self.adapters, "paths or hub ids")
        require(self.unet != "", "unet", repr(self.unet), "a folder or a hub id")
        require(self.num_images >= 1, "num_images", self.num_images, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What draws, loaded."""

    model: BaseModel
    guided: GuidedNetwork
    sampler: DDIM


def generate_folder(
    choice: Generation,
    prompts: list[str],
    output: Path,
    *,
    categories: list[str] | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Draw pictures of prompts into a folder and return what generation.json says.

    Picture n of prompt p comes from a generator of its own, so batch size, number of processes and interruptions
    change a picture by rounding at most. The same call on an unfinished folder keeps the pictures that can be read and
    draws the others; on a finished one it draws nothing. Several processes share the pictures; those that are not
    the main one return an empty dict.

    Raises ValueError, before writing anything, when something cannot be loaded, a prompt is empty, or the folder holds
    pictures of other settings, naming the one that differs; and later for a picture that is not finite.
    """
    watcher = watcher or Silence()
    choice = _with_absolute_paths(choice)
    check_base(choice.model, choice.base)
    check_folder(choice.unet, "unet")
    rows = _rows(choice, prompts, categories)
    settings = _settings(choice, rows)
    done = _claim(output, settings)
    if done is not None and all((output / row.file).is_file() for row in rows):
        return done
    drawing = _load(choice)
    missing = [row for row in rows if not _readable(output / row.file)]
    start = time.perf_counter()
    if processes().is_main_process:
        _write_record(output, settings, finished=False)
    processes().wait_for_everyone()
    if len(missing) < len(rows):
        watcher.note(f"{len(rows) - len(missing)} of {len(rows)} pictures are there; drawing the others")
    for note in notes_on_prompts(prompts) if is_miniature(choice.model) else []:
        watcher.note(note)
    cut = count_cut(text_readers(drawing.model.pipeline), prompts, watcher)
    with finishing():
        _draw(choice, drawing, missing[processes().process_index :: processes().num_processes], output, watcher)
    processes().wait_for_everyone()
    if not processes().is_main_process:
        return {}
    for litter in (output / IMAGES).glob(".*.tmp"):  # of calls that were killed
        litter.unlink()
    write_manifest(output, rows)
    return _write_record(
        output,
        settings,
        finished=True,
        num_prompts=len(prompts),
        num_pictures=len(rows),
        num_kept=len(rows) - len(missing),
        resolution=list(drawing.model.picture_size),
        prompts_cut=cut,
        seconds=round(time.perf_counter() - start, 1),
        device=device_name(drawing.model.device),
        num_processes=processes().num_processes,
        versions=versions(),
    )


def to_pixels(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Decoded images with values in [-1, 1] as 8-bit pictures, clamped and rounded as diffusers does."""
    return to_pictures(images / 2 + 0.5)


def _load(choice: Generation) -> _Drawing:
    model = base_model(choice.model, choice.base)
    if choice.unet is not None:
        replace_unet(model, choice.unet)
    load_adapters(model, [split_scale(entry) for entry in choice.adapters])
    sampler = DDIM(model.schedule(choice.num_steps), eta=choice.eta)
    return _Drawing(model, guided_network(model, choice.base), sampler)


@torch.no_grad()
def _draw(choice: Generation, drawing: _Drawing, rows: list[ImageRow], output: Path, watcher: Watcher) -> None:
    """Draw the pictures of these rows, each written as soon as its batch is done."""
    done = 0
    for chunk in _by_prompts(rows, BATCHES_ENCODED * choice.batch_size):
        drawing.model.encode(list(dict.fromkeys(row.prompt for row in chunk)))
        for start in range(0, len(chunk), choice.batch_size):
            batch = chunk[start : start + choice.batch_size]
            for row, picture in zip(batch, to_pixels(_decoded(choice, drawing, batch)), strict=True):
                with replacing(output / row.file) as temporary:
                    picture.save(temporary, format="PNG")
            done += len(batch)
            watcher.phase("sample", done, len(rows))
            check_stop(f"{done} of {len(rows)} images are saved")
        drawing.model.forget()


def _by_prompts(rows: list[ImageRow], num: int) -> Iterator[list[ImageRow]]:
    """Rows, sorted by prompt, in runs of so many prompts."""
    places = {index: place for place, index in enumerate(dict.fromkeys(row.prompt_index for row in rows))}
    for _, run in groupby(rows, key=lambda row: places[row.prompt_index] // num):
        yield list(run)


def _decoded(choice: Generation, drawing: _Drawing, rows: list[ImageRow]) -> Float[Tensor, "b 3 h w"]:
    """The decoded images of one batch; raises ValueError naming a picture that is not finite."""
    model = drawing.model
    noise = PromptNoise([generator_for(choice.seed, Purpose.GENERATION, *row.key) for row in rows], device=model.device)
    cond = model.encode([row.prompt for row in rows])
    with _naming(rows):
        x_0 = sample(drawing.guided, drawing.sampler, cond=cond, latent_shape=model.latent_shape, noise=noise)
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
    """The choice with what it names on this machine named from the root, so that any directory will do."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else local_path(name)

    base = replace(choice.base, config=absolute(choice.base.config), vae=absolute(choice.base.vae))
    return replace(choice, model=local_path(choice.model), unet=absolute(choice.unet), base=base)


def _settings(choice: Generation, rows: list[ImageRow]) -> dict[str, Any]:
    """All that decides the pictures, as plain values; adapters by what their files hold."""
    adapters = []
    for name, scale in map(split_scale, choice.adapters):
        adapters.append({"name": local_path(name), "scale": scale, "sha256": adapter_digest(name)})
    listed = json.dumps([[row.prompt, row.category] for row in rows])
    return {
        **to_plain(choice),
        "adapters": adapters,
        "prompts": hashlib.sha256(listed.encode()).hexdigest(),
        "computed_in": str(precision_of(choice.base)).removeprefix("torch."),
    }


def _claim(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What generation.json says of a finished folder.

    Raises ValueError unless the folder is of these very settings, or empty or absent and can be written.
    """
    if not output.is_dir() or not any(output.iterdir()):
        require_writable(output)
        return None
    if not (output / GENERATION).is_file():
        raise ValueError(f"output: {output} holds files of something else; give a new or empty directory")
    try:
        record: dict[str, Any] = parse_json(read_text(output / GENERATION, "output"), GENERATION)
        theirs = _flat(record["settings"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"output: {output / GENERATION} is damaged; give a new or empty directory") from error
    ours = _flat(json.loads(json.dumps(settings)))
    different = [key for key in ours | theirs if ours.get(key) != theirs.get(key) and key not in NOT_IN_THE_PICTURE]
    if different:
        key = different[0]
        raise ValueError(
            f"output: {output} holds pictures of other settings: its {key} is {theirs.get(key)!r}, this call's "
            f"{ours.get(key)!r}; give another directory"
        )
    return record if record.get("finished") and (output / MANIFEST).is_file() else None


def _write_record(output: Path, settings: dict[str, Any], **known: Any) -> dict[str, Any]:
    record = {"settings": settings, **known}
    write_text(output / GENERATION, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def _readable(path: Path) -> bool:
    with suppress(ValueError):
        open_image(path)
        return True
    return False
