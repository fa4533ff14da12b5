"""A folder of generated images belongs to the content of what generated them, and every file of it is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import diffusers_layout, factors, written
from safetensors.torch import load_file
from scored import Notes
from spoiled import edit, flip, scale_a_weight
from test_generation import choose, images, levels_apart

from stepalign.data.manifest import read_manifest
from stepalign.evaluation import generation as module
from stepalign.evaluation.generation import generate_folder
from stepalign.evaluation.generation_folder import finish_folder, images_to_generate
from stepalign.evaluation.generation_settings import Generation
from stepalign.models.base import BaseModel
from stepalign.runs.recipes import FrozenModel
from stepalign.runs.run import Run
from stepalign.support.claim import Claim

PROMPTS = ["a cat", "two boats"]
FILES = ("images", "manifest.jsonl")
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def parts(tiny_sd: BaseModel, tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a UNet and a VAE apart from it, and an adapter, in a folder."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(tiny_sd_folder, folder / "model")
    shutil.copytree(tiny_sd_folder / "unet", folder / "unet")
    shutil.copytree(tiny_sd_folder / "vae", folder / "vae")
    written(folder / "lora.safetensors", diffusers_layout(factors(tiny_sd, "unet")))
    return folder


def choice_of(parts: Path) -> Generation:
    base = FrozenModel(guidance_scale=3.0, vae=str(parts / "vae"))
    lora = f"{parts}/lora.safetensors:0.5"
    return choose(parts / "model", num_images=1, base=base, adapters=(lora,), unet=str(parts / "unet"))


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of each prompt."""
    folder = tmp_path_factory.mktemp("finished") / "images of parts"
    generate_folder(choice_of(parts), PROMPTS, folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def elsewhere(parts: Path, tmp_path: Path) -> Path:
    """The same parts at other paths."""
    return shutil.copytree(parts, tmp_path / "elsewhere")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Content


def shorten_merges(path: Path) -> None:
    state = json.loads(path.read_text(encoding="utf-8"))
    state["model"]["merges"].pop()
    path.write_text(json.dumps(state), encoding="utf-8")


def test_images_of_other_content_are_refused_by_the_names_of_the_parts(
    folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the folder is finished or not, and with nothing changed in it."""
    monkeypatch.setattr(module, "_generate", None)
    for file in (UNET, VAE, "model/text_encoder/model.safetensors", "lora.safetensors"):
        scale_a_weight(elsewhere / file)
    edit(elsewhere / "model/scheduler/scheduler_config.json", "0.012", "0.013")
    shorten_merges(elsewhere / "model/tokenizer/tokenizer.json")
    parts = ("unet.weights", "vae.weights", "text_encoder.weights", "tokenizer", "scheduler", "adapters.0")
    expected = ", ".join(rf"{part} \(\w+ then, \w+ now\)" for part in parts)
    for removed in ([], ["files.json", "manifest.jsonl", "generation.json", "images/00001-0.png"]):
        for name in removed:
            (folder / name).unlink()
        before = contents(folder)
        with pytest.raises(
            ValueError, match=rf"^{expected}: not what .*copy was begun with \(its adapters.0.name is '"
        ):
            generate_folder(choice_of(elsewhere), PROMPTS, folder)
        assert contents(folder) == before


def test_the_same_content_at_another_path_and_in_another_format_is_the_same(
    finished: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_generate", None)
    torch.save(load_file(elsewhere / UNET), (elsewhere / UNET).with_suffix(".bin"))
    (elsewhere / UNET).unlink()
    before = contents(finished)
    assert generate_folder(choice_of(elsewhere), PROMPTS, finished) == json.loads(before["generation.json"])
    assert contents(finished) == before


def test_the_record_keeps_the_digest_of_every_part(finished: Path) -> None:
    record = json.loads((finished / "generation.json").read_text(encoding="utf-8"))
    marker = json.loads((finished / "stepalign.json").read_text(encoding="utf-8"))
    assert record["identity"] == marker["identity"]
    assert {"unet.weights", "vae.weights", "tokenizer", "scheduler", "adapters.0"} <= record["identity"].keys()


# Files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("spoil", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["images/00001-0.png", "manifest.jsonl", "generation.json", "files.json"])
def test_what_a_damaged_file_of_a_finished_folder_costs(name: str, spoil: Callable[[Path], None], folder: Path) -> None:
    """An image is generated again, both where the digests are damaged; without digests they can be read, and count."""
    rows, before, notes = read_manifest(folder), contents(folder), []
    spoil(folder / name)
    files = images_to_generate(folder, rows, notes.append)
    if name == "files.json" and spoil is Path.unlink:
        assert (files, notes) == (None, [])
        assert contents(folder) == before
        return
    assert notes == [f"in {folder} {name} is {'missing' if spoil is Path.unlink else 'damaged'}; made again"]
    images = [row.file for row in rows]
    assert files == {"files.json": images, "images/00001-0.png": images[1:]}.get(name, [])
    (folder / "images/00001-0.png").write_bytes(before["images/00001-0.png"])
    finish_folder(Run(Claim(folder, False), Notes(), FILES), rows, json.loads(before["generation.json"]))
    assert contents(folder) == before


def test_a_damaged_image_is_generated_again(folder: Path, finished: Path, parts: Path) -> None:
    flip(folder / "images/00001-0.png")
    watcher = Notes()
    record = generate_folder(choice_of(parts), PROMPTS, folder, watcher=watcher)
    assert watcher.notes == [f"in {folder} images/00001-0.png is damaged; made again"]
    assert record["timing"]["num_kept"] == 1
    ours, theirs = images(folder), images(finished)
    assert max(levels_apart(ours[key], theirs[key]) for key in theirs) <= 1


def test_a_folder_of_an_older_version_is_adopted(folder: Path, parts: Path, elsewhere: Path) -> None:
    """It had no marker and no digests: its paths are compared, and from then on its content."""
    record = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
    (folder / "generation.json").write_text(json.dumps({key: record[key] for key in ("settings", "finished")}))
    for name in ("stepalign.json", "files.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"^output: .* is another run's: its .*adapters.0.name is"):
        generate_folder(choice_of(elsewhere), PROMPTS, folder)
    assert generate_folder(choice_of(parts), PROMPTS, folder)["finished"]
    scale_a_weight(elsewhere / VAE)
    with pytest.raises(ValueError, match=r"^vae\.weights \("):
        generate_folder(choice_of(elsewhere), PROMPTS, folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 0}', '{"settings": 3}'])
def test_without_a_marker_a_record_that_cannot_be_read_is_refused(
    content: str, folder: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_load", None)
    (folder / "stepalign.json").unlink()
    (folder / "generation.json").write_text(content)
    with pytest.raises(ValueError, match=r"^output: .* holds files of something else; give a new or empty directory"):
        generate_folder(choice_of(parts), PROMPTS, folder)
