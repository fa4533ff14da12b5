"""The images that are drawn: diffusers' own, whatever the batch, and those of adapters and other UNets."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import normal
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.image_processor import VaeImageProcessor
from lora_files import diffusers_layout, factors, written
from PIL import Image
from torch import Tensor

from stepalign.core.seeding import Purpose, generator_for
from stepalign.data.manifest import ImageRow, read_manifest
from stepalign.evaluation.generation import generate_folder, to_pixels
from stepalign.evaluation.generation_settings import Generation
from stepalign.models.policy import GuidedNetwork
from stepalign.runs.recipes import FrozenModel
from stepalign.support.config import override
from stepalign.support.images import open_image

PROMPTS = ["a cat", "two\nboats", "a cat"]


def choose(folder: Path, **changes: Any) -> Generation:
    return replace(Generation(str(folder), FrozenModel(guidance_scale=3.0), num_steps=2, num_images=2), **changes)


def images(folder: Path) -> dict[tuple[int, int], Image.Image]:
    return {row.key: open_image(folder / row.file) for row in read_manifest(folder)}


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference between two images, in 8-bit levels."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.fixture(scope="module")
def drawn(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of every prompt, drawn four at a time."""
    folder = tmp_path_factory.mktemp("drawn")
    generate_folder(choose(tiny_sd_folder, batch_size=4), PROMPTS, folder)
    return folder


# Which images


@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sdxl"])
def test_images_are_those_of_diffusers_from_the_same_latents(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """DDIM, eta 0; image n of prompt p starts from the generator of the seed, p and n."""
    model: BaseModel = copy.deepcopy(request.getfixturevalue(name))
    generate_folder(choose(Path(model.name), num_images=1, seed=5), PROMPTS[:2], tmp_path)
    pipeline = model.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    generators = [generator_for(5, Purpose.GENERATION, p, 0) for p in range(2)]
    latents = torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators])
    expected = pipeline(PROMPTS[:2], num_inference_steps=2, guidance_scale=3.0, latents=latents, height=64, width=64)
    ours = images(tmp_path)
    for p, image in enumerate(expected.images):
        assert levels_apart(ours[p, 0], image) <= 1
        assert np.asarray(image).std() > 5


def test_the_batch_size_moves_an_image_by_one_level_at_most(drawn: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Kernels over other batches round otherwise; with the same batches not a byte differs."""
    generate_folder(choose(tiny_sd_folder, batch_size=1), PROMPTS, tmp_path)
    ours, theirs = images(tmp_path), images(drawn)
    assert ours.keys() == theirs.keys()
    assert max(levels_apart(ours[key], theirs[key]) for key in theirs) <= 1


def test_every_image_of_every_prompt_is_another(drawn: Path) -> None:
    """Prompts 0 and 2 are the same."""
    found = [np.asarray(image).tobytes() for image in images(drawn).values()]
    assert len(set(found)) == len(found) == 6


def test_the_same_call_draws_the_same_bytes_and_another_seed_others(tiny_sd_folder: Path, tmp_path: Path) -> None:
    choice = choose(tiny_sd_folder, num_images=1)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        generate_folder(replace(choice, seed=seed), PROMPTS[:2], tmp_path / name)
    one, again, other = ((tmp_path / name / "images/00001-0.png").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other


def test_few_latents_at_once_move_an_image_by_one_level_at_most(
    drawn: Path, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    base = FrozenModel(guidance_scale=3.0, max_batch=1)
    generate_folder(choose(tiny_sd_folder, base=base), PROMPTS[:1], tmp_path)
    ours, theirs = images(tmp_path), images(drawn)
    assert max(levels_apart(ours[0, n], theirs[0, n]) for n in range(2)) <= 1


def test_the_miniature_draws_what_it_is_told(tmp_path: Path) -> None:
    """As many images as asked for; noise at eta = 1 makes others of the same start."""
    choice = Generation("miniature", FrozenModel(guidance_scale=2.0), num_steps=4, num_images=2)
    prompts = ["a red circle", "a blue square"]
    record = generate_folder(choice, prompts, tmp_path / "plain", categories=["warm", "cold"])
    generate_folder(replace(choice, eta=1.0), prompts, tmp_path / "noisy")
    assert record["num_images"] == 4
    rows = read_manifest(tmp_path / "plain")
    assert rows[3] == ImageRow(1, 1, "a blue square", "images/00001-1.png", 0, "cold")
    plain, noisy = images(tmp_path / "plain"), images(tmp_path / "noisy")
    assert all(levels_apart(plain[key], noisy[key]) > 10 for key in plain)


# Pixels


def test_pixels_are_rounded_to_the_nearest_of_256_levels() -> None:
    """(x / 2 + 1 / 2) 255: -1 is 0, 0 is 127.5 and so the even 128, 0.5 is 191.25, 1 is 255; beyond is clamped."""
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]).expand(1, 3, 1, 6)
    assert np.asarray(to_pixels(values)[0])[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_pixels_are_those_of_diffusers() -> None:
    images = normal(3, 3, 8, 10, dtype=torch.float32)
    expected = VaeImageProcessor().postprocess(images, output_type="pil")
    for ours, theirs in zip(to_pixels(images), expected, strict=True):
        assert ours.size == theirs.size == (10, 8)
        assert ours.tobytes() == theirs.tobytes()


# Adapters and other UNets


def test_adapters_and_a_unet_draw_other_images_and_are_recorded(
    drawn: Path, tiny_sd: BaseModel, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    strong = {key: (down, 4 * up) for key, (down, up) in factors(tiny_sd, "unet").items()}
    lora = written(tmp_path / "lora.safetensors", diffusers_layout(strong))
    unet = copy.deepcopy(tiny_sd.network)
    unet.conv_out.weight.data *= 0.5
    unet.save_pretrained(tmp_path / "unet")
    changes: dict[str, dict[str, Any]] = {
        "off": {"adapters": (f"{lora}:0",)},
        "half": {"adapters": (f"{lora}:0.5",)},
        "tuned": {"unet": str(tmp_path / "unet")},
    }
    one, base, records = {}, images(drawn)[0, 0], {}
    for name, given in changes.items():
        choice = choose(tiny_sd_folder, num_images=1, **given)
        records[name] = generate_folder(choice, PROMPTS[:1], tmp_path / name)["settings"]
        one[name] = images(tmp_path / name)[0, 0]
    assert [row["scale"] for name in ("off", "half") for row in records[name]["adapters"]] == [0.0, 0.5]
    assert records["half"]["adapters"][0]["sha256"] == hashlib.sha256(Path(lora).read_bytes()).hexdigest()
    assert records["tuned"]["unet"] == str(tmp_path / "unet")
    assert levels_apart(one["off"], base) <= 1
    assert min(levels_apart(one[name], base) for name in ("half", "tuned")) > 1


# Images that are not finite


def spoil(monkeypatch: pytest.MonkeyPatch, place: type, name: str, *, call: int, row: int) -> None:
    """Put a NaN into a row of what a method returns at a call, counted from 1."""
    method, calls = getattr(place, name), []

    def spoiled(*given: Any, **options: Any) -> Any:
        calls.append(1)
        result = method(*given, **options)
        if len(calls) == call:
            (result if isinstance(result, Tensor) else result.sample)[row, 0, 1, 2] = float("nan")
        return result

    monkeypatch.setattr(place, name, spoiled)


def test_an_image_that_is_not_finite_is_named_and_not_written(
    tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are (0, 0) and (0, 1), then (1, 0) and (1, 1); of the second the VAE spoils the second image."""
    spoil(monkeypatch, AutoencoderKL, "decode", call=2, row=1)
    named = r"^image 1 of prompt 1 \('two\\nboats'\): the images decoded by the VAE: .* --base.vae$"
    with pytest.raises(ValueError, match=named) as caught:
        generate_folder(choose(tiny_sd_folder, batch_size=2), PROMPTS, tmp_path)
    assert "fp16" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["00000-0.png", "00000-1.png"]
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_prediction_that_is_not_finite_is_told_apart(
    tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, GuidedNetwork, "_predict", call=1, row=0)
    named = r"^image 0 of prompt 0 \('a cat'\): the prediction of the UNet at timestep \d+: .* files are damaged"
    with pytest.raises(ValueError, match=named):
        generate_folder(choose(tiny_sd_folder), PROMPTS[:1], tmp_path)


# Choices


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("num_steps", 0),
        ("num_steps", 1000),
        ("eta", 1.5),
        ("adapters", ("",)),
        ("unet", ""),
        ("num_images", 0),
        ("seed", -1),
        ("batch_size", 0),
    ],
)
def test_a_choice_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be "):
        override(Generation("miniature"), {field: value})


def test_the_papers_evaluation_is_the_default() -> None:
    choice = Generation("miniature")
    assert (choice.num_steps, choice.eta, choice.base.guidance_scale, choice.adapters) == (20, 0.0, 5.0, ())


def test_nothing_is_written_when_something_cannot_be_loaded(tiny_sd_folder: Path, tmp_path: Path) -> None:
    for changes, complaint in (
        ({"model": "nowhere"}, "^model: "),
        ({"adapters": ("nowhere:0.5",)}, "^adapters: there is no file or folder 'nowhere'"),
        ({"unet": "nowhere"}, "^unet: "),
        ({"base": FrozenModel(resolution=(60,))}, "^resolution must be"),
    ):
        with pytest.raises(ValueError, match=complaint):
            generate_folder(choose(tiny_sd_folder, **changes), PROMPTS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_drew_the_images_is_recorded(drawn: Path, tiny_sd_folder: Path) -> None:
    record = json.loads((drawn / "generation.json").read_text())
    assert record["settings"]["model"] == str(tiny_sd_folder)
    assert record["settings"]["base"]["guidance_scale"] == 3.0
    assert record["settings"]["computed_in"] == "float32"
    assert record["versions"]["torch"] == version("torch")
    assert (record["num_prompts"], record["num_images"], record["timing"]["num_kept"]) == (3, 6, 0)
    assert record["timing"]["seconds"] > 0
    assert "CPU" in record["timing"]["device"]
