"""Which family a name is of, which VAE in which precision, and what is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import normal, same_weights
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from tiny_models import tiny_vae
from torch import Tensor

from stepalign.models.base import BaseModel
from stepalign.models.load import load


@pytest.fixture(scope="module")
def half_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE for half precision, of other weights than the model's own."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae(scaling_factor=0.25, force_upcast=False).save_pretrained(folder)
    return folder


def latents(num: int = 2) -> Tensor:
    return normal(num, 4, 8, 8, dtype=torch.float32)


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with some fields replaced."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copied(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target / "model")


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path, metadata={"format": "pt"})


# Families


def test_any_pipeline_of_the_family_will_do(tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_sdxl_folder, tmp_path)
    edited(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    assert type(load(str(folder)).pipeline) is StableDiffusionXLPipeline


@pytest.mark.parametrize("class_name", ["StableDiffusion3Pipeline", "FluxPipeline", None])
def test_another_family_is_refused(class_name: str | None, tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_sdxl_folder, tmp_path)
    edited(folder / "model_index.json", _class_name=class_name)
    supported = "supported are Stable Diffusion 1.x and 2.x, and Stable Diffusion XL"
    with pytest.raises(ValueError, match=rf"^model: .*its pipeline is {class_name}; {supported}"):
        load(str(folder))


# VAEs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_a_vae_in_float32_that_asks_for_it(
    dtype: torch.dtype, tiny_sdxl_folder: Path, tiny_sdxl: BaseModel
) -> None:
    model = load(str(tiny_sdxl_folder), dtype=dtype)
    assert same_weights(model.pipeline.vae, tiny_sdxl.pipeline.vae)
    assert {model.pipeline.components[part].dtype for part in ("unet", "text_encoder", "text_encoder_2")} == {dtype}
    assert torch.equal(model.decode(latents()), tiny_sdxl.decode(latents()))
    assert {value.dtype for value in (model.encode(["a cat"]).tokens, model.negative().tokens)} == {dtype}


def test_a_vae_for_half_precision_takes_the_models_dtype(
    tiny_sdxl_folder: Path, tiny_sdxl_file: Path, half_vae: Path
) -> None:
    expected = AutoencoderKL.from_pretrained(half_vae).to(torch.bfloat16)
    for name, config in ((tiny_sdxl_folder, None), (tiny_sdxl_file, str(tiny_sdxl_folder))):
        model = load(str(name), config=config, vae=str(half_vae), dtype=torch.bfloat16)
        assert same_weights(model.pipeline.vae, expected)
        assert model.decode(latents()).dtype == torch.float32
        assert model.encode_images(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


def test_another_vaes_own_scale_is_used(tiny_sdxl_folder: Path, half_vae: Path) -> None:
    model, vae = load(str(tiny_sdxl_folder), vae=str(half_vae)), AutoencoderKL.from_pretrained(half_vae)
    images = normal(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(latents()), vae.decode(latents() / 0.25).sample)
        torch.testing.assert_close(model.encode_images(images), vae.encode(images).latent_dist.mode() * 0.25)


def test_a_vae_that_cannot_be_had_is_named(half_vae: Path, tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    cut, thin = tmp_path / "cut", tmp_path / "thin"
    shutil.copytree(half_vae, cut)
    without_a_tensor(cut / "diffusion_pytorch_model.safetensors")
    AutoencoderKL(latent_channels=8, norm_num_groups=32, block_out_channels=(32,)).save_pretrained(thin)
    for vae, complaint in (
        ("nowhere", "^vae: there is no folder 'nowhere'"),
        (tiny_sdxl_folder, "^vae: cannot load .*config.json"),
        (cut, "^vae: .* has no weights for 1 tensors"),
        (thin, "takes 4 channels and latents of the VAE have 8"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            load(str(tiny_sdxl_folder), vae=str(vae))
        assert "\n" not in str(error.value)


# Refusals of what would not work


def damage(folder: Path, what: str) -> None:
    match what:
        case "weights missing in the second text encoder":
            without_a_tensor(folder / "text_encoder_2/model.safetensors")
        case "weights missing in the first text encoder":
            without_a_tensor(folder / "text_encoder/model.safetensors")
        case "no second tokenizer":
            shutil.rmtree(folder / "tokenizer_2")
        case "a second tokenizer without words":
            for name in ("tokenizer.json", "vocab.json", "merges.txt"):
                (folder / "tokenizer_2" / name).unlink(missing_ok=True)
        case "no VAE":
            shutil.rmtree(folder / "vae")
        case "a refiner":
            edited(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
            shutil.rmtree(folder / "text_encoder")
        case "an inpainting UNet":
            weights = folder / "unet/diffusion_pytorch_model.safetensors"
            tensors = load_file(weights)
            tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()
            save_file(tensors, weights)
            edited(folder / "unet/config.json", in_channels=9)
        case "another kind of noise":
            edited(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
            config = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}
            (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("weights missing in the second text encoder", "no weights for 1 tensors of its text_encoder_2"),
        ("weights missing in the first text encoder", "no weights for 1 tensors of its text_encoder:"),
        ("no second tokenizer", "tokenizer"),
        ("a second tokenizer without words", "tokenizer"),
        ("no VAE", "config.json"),
        ("a refiner", "has no text_encoder"),
        ("an inpainting UNet", "takes 9 channels and latents of the VAE have 4"),
        ("another kind of noise", "the noise schedule of EDMEulerScheduler"),
    ],
)
def test_a_model_that_would_not_work_is_refused(
    what: str, complaint: str, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_sdxl_folder, tmp_path)
    damage(folder, what)
    with pytest.raises(ValueError, match=rf"^model: .*{complaint}") as error:
        load(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "complaint"),
    [("conditioner.embedders.1.", "text_encoder_2|CLIP"), ("conditioner.", "it is a UNet without text encoders")],
)
def test_a_file_without_a_text_encoder_is_refused(
    part: str, complaint: str, tiny_sdxl_file: Path, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    tensors = {key: value for key, value in load_file(tiny_sdxl_file).items() if not key.startswith(part)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"^model: .*({complaint})") as error:
        load(str(tmp_path / "model.safetensors"), config=str(tiny_sdxl_folder))
    assert "\n" not in str(error.value)


def test_a_config_of_another_family_is_refused(tiny_sdxl_file: Path, tiny_sd_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^model: .* is of Stable Diffusion XL and its config .* is not"):
        load(str(tiny_sdxl_file), config=str(tiny_sd_folder))


@pytest.mark.parametrize("resolution", [(96, 100), (0, 64), (100, 64)])
def test_a_side_that_does_not_fit_is_refused(tiny_sdxl_folder: Path, resolution: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"resolution must be .*8.* got \({resolution[0]}, {resolution[1]}\)"):
        load(str(tiny_sdxl_folder), resolution=resolution)


# Refusals of what cannot be read


def broken(folder: Path, target: Path, damage: str) -> str:
    """A copy of a folder with something wrong."""
    shutil.copytree(folder, target)
    weights = target / "unet/diffusion_pytorch_model.safetensors"
    match damage:
        case "no index":
            (target / "model_index.json").unlink()
        case "index is no JSON":
            (target / "model_index.json").write_text("{")
        case "no unet":
            shutil.rmtree(target / "unet")
        case "no text encoder weights":
            (target / "text_encoder/model.safetensors").unlink()
        case "no tokenizer":
            shutil.rmtree(target / "tokenizer")
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "weights of another shape":
            save_file({name: torch.zeros(1) for name in load_file(weights)}, weights)
        case "missing weights":
            tensors = load_file(weights)
            del tensors["conv_in.weight"]
            save_file(tensors, weights)
        case "empty":
            shutil.rmtree(target)
            target.mkdir()
    return str(target)


DAMAGES = ("no index", "index is no JSON", "no unet", "no text encoder weights", "no tokenizer", "cut weights")
DAMAGES += ("weights of another shape", "missing weights", "empty")


def assert_refused(name: str, config: str | None = None) -> None:
    with pytest.raises(ValueError, match=r"^model: ") as error:
        load(name, config=config)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named() -> None:
    assert_refused("nowhere")
    assert_refused("/nowhere/at/all")
    assert_refused("./nowhere/model")


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused("no-such-owner/no-such-model")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_folder_is_named(damage: str, tiny_sd_folder: Path, tmp_path: Path) -> None:
    assert_refused(broken(tiny_sd_folder, tmp_path / "model", damage))


@pytest.mark.parametrize("content", [b"", b"just text", b"\x00" * 100])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, tiny_sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert_refused(str(tmp_path / "model.safetensors"), config=str(tiny_sd_folder))


def test_a_file_of_other_weights_is_named(tiny_sd_folder: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert_refused(str(tmp_path / "model.safetensors"), config=str(tiny_sd_folder))


def test_a_config_that_is_not_there_is_refused(tiny_sdxl_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(str(tiny_sdxl_file), config="no-such-owner/no-such-model")
