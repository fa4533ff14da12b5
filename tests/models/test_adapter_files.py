"""Which file an adapter is in, and a fine-tuned UNet in the place of a model's own."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import same_weights
from huggingface_hub.errors import EntryNotFoundError
from lora_files import (
    FILE,
    assert_predicts_as,
    diffusers_layout,
    factors,
    merged,
    predicted,
    written,
)
from safetensors.torch import load_file, save_file
from torch import nn

from stepalign.models import adapters as adapters_module
from stepalign.models.adapters import find_adapter, load_adapters, split_scale
from stepalign.models.base import BaseModel
from stepalign.models.load import load
from stepalign.models.unet import replace_unet

# Which file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("lora", ("lora", 1.0)),
        ("lora:0.5", ("lora", 0.5)),
        ("lora:-1", ("lora", -1.0)),
        ("lora:.5e1", ("lora", 5.0)),
        ("owner/name/file.safetensors:0", ("owner/name/file.safetensors", 0.0)),
        (r"C:\models\lora", (r"C:\models\lora", 1.0)),
        (r"C:\models\lora:0.7", (r"C:\models\lora", 0.7)),
        ("run:3:0.25", ("run:3", 0.25)),
        ("run:seed:", ("run:seed:", 1.0)),
        ("lora:inf", ("lora:inf", 1.0)),
        ("lora:1_0", ("lora:1_0", 1.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_a_scale_is_the_number_behind_the_last_colon(entry: str, expected: tuple[str, float]) -> None:
    assert split_scale(entry) == expected


def test_a_file_whose_name_ends_like_a_scale_has_the_scale_1(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert split_scale(f"{tmp_path}/run:2") == (f"{tmp_path}/run:2", 1.0)
    assert split_scale(f"{tmp_path}/run:2:0.5") == (f"{tmp_path}/run:2", 0.5)


def test_a_folders_adapter_is_the_usual_file_or_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    assert find_adapter(str(tmp_path)) == tmp_path / "one.safetensors"
    (tmp_path / "two.safetensors").touch()
    with pytest.raises(ValueError, match=r"^adapters: .* give one: one.safetensors, two.safetensors"):
        find_adapter(str(tmp_path))
    (tmp_path / FILE).touch()
    assert find_adapter(str(tmp_path)) == tmp_path / FILE


def test_what_is_no_adapter_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lora.ckpt").touch()
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("nowhere", "there is no file or folder 'nowhere', and it is not a hub id"),
        ("/nowhere/at/all", "there is no file or folder '/nowhere/at/all'"),
        (str(tmp_path / "lora.ckpt"), "is no .safetensors or .bin file; a .ckpt may hold programs .*: convert it"),
        (str(tmp_path / "empty"), "has no pytorch_lora_weights.safetensors; of a run give the folder adapter/"),
    ):
        with pytest.raises(ValueError, match=rf"^adapters: .*{complaint}"):
            find_adapter(name)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "other.safetensors"], "adapter_model.safetensors"),
        (["adapter_model.bin", "optimizer.bin"], "adapter_model.bin"),
        (["pytorch_lora_weights.bin"], "pytorch_lora_weights.bin"),
        (["webui.safetensors", "pytorch_lora_weights.bin"], "webui.safetensors"),
        ([FILE, "kohya.safetensors"], FILE),
    ],
)
def test_of_the_known_names_the_safest_is_the_adapter(there: list[str], chosen: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).touch()
    assert find_adapter(str(tmp_path)) == tmp_path / chosen


@pytest.mark.parametrize(
    ("name", "stored", "asked"),
    [
        ("owner/name", ["config.json", FILE, "other.safetensors"], FILE),
        ("owner/name", ["webui.safetensors", "unet/model.safetensors"], "webui.safetensors"),
        ("owner/name/sub/lora.safetensors", ["sub/lora.safetensors"], "sub/lora.safetensors"),
    ],
)
def test_an_adapter_on_the_hub_is_found_by_its_file(
    name: str, stored: list[str], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, file: str) -> str:
        if file not in stored:
            raise EntryNotFoundError(f"no {file}")
        return f"/cache/{repository}/{file}"

    monkeypatch.setattr(adapters_module, "hf_hub_download", download)
    monkeypatch.setattr(adapters_module, "list_repo_files", lambda repository: stored)
    assert find_adapter(name) == Path(f"/cache/owner/name/{asked}")


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no-such-owner/no-such-lora", "no-such-owner/no-such-lora/file.safetensors"):
        with pytest.raises(ValueError, match=rf"^adapters: '{name}' is no file or folder here, and on the hub: "):
            find_adapter(name)


# A fine-tuned UNet


@pytest.fixture(params=["sd", "sdxl"])
def base(request: pytest.FixtureRequest, tiny_sd: BaseModel, tiny_sdxl: BaseModel) -> BaseModel:
    """The tiny Stable Diffusion or SDXL; adapters go on copies."""
    return tiny_sd if request.param == "sd" else tiny_sdxl


def fine_tuned(base: BaseModel, folder: Path) -> nn.Module:
    """The model's UNet with weights of its own, saved."""
    unet = copy.deepcopy(base.network)
    generator = torch.Generator().manual_seed(7)
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    unet.save_pretrained(folder)
    return unet


@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_a_fine_tuned_unet_takes_the_place_of_the_models(subfolder: str, base: BaseModel, tmp_path: Path) -> None:
    unet, model = fine_tuned(base, tmp_path / subfolder), copy.deepcopy(base)
    replace_unet(model, str(tmp_path))
    assert same_weights(model.network, unet)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not model.network.training
    assert not torch.allclose(predicted(model), predicted(base), atol=1e-3)


def test_adapters_go_on_a_fine_tuned_unet(tiny_sd: BaseModel, tmp_path: Path) -> None:
    fine_tuned(tiny_sd, tmp_path / "unet")
    model, made = copy.deepcopy(tiny_sd), factors(tiny_sd, "unet", "text_encoder")
    replace_unet(model, str(tmp_path / "unet"))
    expected = copy.deepcopy(model)
    load_adapters(model, [(written(tmp_path / "lora.safetensors", diffusers_layout(made)), 1.0)])
    assert_predicts_as(model, merged(expected, made, lambda number: 1.0))


def test_a_unet_takes_the_models_precision(tiny_sd_folder: Path, tiny_sd: BaseModel, tmp_path: Path) -> None:
    unet, model = fine_tuned(tiny_sd, tmp_path), load(str(tiny_sd_folder), dtype=torch.bfloat16)
    replace_unet(model, str(tmp_path))
    assert same_weights(model.network, unet.to(torch.bfloat16))


def reconfigured(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_may_be_written_in_other_words(tiny_sd: BaseModel, tmp_path: Path) -> None:
    """One number stands for a list of equal ones, None for False; the size it was trained at decides nothing."""
    unet, model = fine_tuned(tiny_sd, tmp_path), copy.deepcopy(tiny_sd)
    reconfigured(tmp_path, attention_head_dim=[2, 2, 2, 2], sample_size=16, dual_cross_attention=None)
    replace_unet(model, str(tmp_path))
    assert same_weights(model.network, unet)
    assert model.latent_shape == tiny_sd.latent_shape


@pytest.fixture(scope="module")
def tuned_folder(tiny_sd: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned UNet of the tiny Stable Diffusion, to spoil copies of."""
    folder = tmp_path_factory.mktemp("tuned")
    fine_tuned(tiny_sd, folder)
    return folder


def damage(folder: Path, what: str) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    match what:
        case "other heads":
            reconfigured(folder, attention_head_dim=4)
        case "a tensor missing":
            tensors = load_file(weights)
            del tensors["conv_in.weight"]
            save_file(tensors, weights)
        case "a tensor too many":
            save_file(load_file(weights) | {"attic.weight": torch.ones(2)}, weights)
        case "another shape":
            save_file(load_file(weights) | {"conv_in.weight": torch.ones(2)}, weights)
        case "no weights":
            weights.unlink()
        case "no config":
            (folder / "config.json").unlink()
        case "a VAE":
            reconfigured(folder, _class_name="AutoencoderKL")


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("other heads", "is not for .*: its attention_head_dim is 4, the model's 2"),
        ("a tensor missing", "conv_in.weight"),
        ("a tensor too many", "1 unexpected tensors: attic.weight"),
        ("another shape", "conv_in.weight"),
        ("no weights", "no file named diffusion_pytorch_model"),
        ("no config", "no file named config.json"),
        ("a VAE", "its config.json is of AutoencoderKL"),
    ],
)
def test_a_unet_that_does_not_fit_is_refused(
    what: str, complaint: str, tuned_folder: Path, tiny_sd: BaseModel, tmp_path: Path
) -> None:
    shutil.copytree(tuned_folder, tmp_path / "unet")
    damage(tmp_path / "unet", what)
    network = tiny_sd.network
    with pytest.raises(ValueError, match=rf"^unet: .*unet'.* {complaint}") as error:
        replace_unet(tiny_sd, str(tmp_path / "unet"))
    assert "\n" not in str(error.value)
    assert tiny_sd.network is network


def test_the_unet_of_another_family_is_refused(tiny_sd: BaseModel, tiny_sdxl_folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"^unet: '{tiny_sdxl_folder}' is not for '{tiny_sd.name}': its add"):
        replace_unet(tiny_sd, str(tiny_sdxl_folder))


def test_a_unet_that_is_not_there_is_named(tiny_sd: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "unet.safetensors").touch()
    for name in ("nowhere", "/nowhere/at/all"):
        with pytest.raises(ValueError, match=rf"^unet: there is no folder '{name}', and it is not a hub id"):
            replace_unet(tiny_sd, name)
    with pytest.raises(ValueError, match=r"^unet: '.*unet.safetensors' is a single file; give a folder"):
        replace_unet(tiny_sd, str(tmp_path / "unet.safetensors"))
