"""Weights in variants, shards and pickles, tokenizers without a length, and local folders without a hub."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_weights
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel, CLIPTokenizer

from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.models.base import BaseModel
from stepalign.models.clip import load_clip
from stepalign.models.load import load
from stepalign.models.unet import replace_unet
from stepalign.runs.assemble import load_spm
from stepalign.runs.checks import check_judge
from stepalign.runs.recipes import JudgeChoice
from stepalign.scorers.weights import load_clip_vision
from stepalign.support.tensor_files import read_folder_tensors, variant_of, weight_files


def renamed(folder: Path, target: Path, variant: str = "fp16") -> Path:
    """A copy of a folder whose weights are all in a variant."""
    shutil.copytree(folder, target)
    for path in [*target.rglob("*.safetensors")]:
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    return target


# Which files


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.fp16.safetensors", "pytorch_model.bin"], None, ["pytorch_model.bin"]),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "bf16", ["model.bf16.safetensors"]),
        (["model.fp16.safetensors", "pytorch_model.fp16.bin"], "fp16", ["model.fp16.safetensors"]),
        (["diffusion_pytorch_model.non_ema.bin"], "non_ema", ["diffusion_pytorch_model.non_ema.bin"]),
        (["diffusion_pytorch_model.fp16.bin"], "fp16", ["diffusion_pytorch_model.fp16.bin"]),
        (
            ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
            "fp16",
            ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
        ),
        (["model-00001-of-00001.fp16.safetensors"], "fp16", ["model-00001-of-00001.fp16.safetensors"]),
        (["model.safetensors", "model-00001-of-00001.safetensors"], None, ["model.safetensors"]),
        (["config.json", "optimizer.bin", "other.safetensors", "model.bin"], None, []),
    ],
)
def test_the_full_weights_are_preferred_to_variants(
    names: list[str], variant: str | None, expected: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant
    assert [path.name for path in weight_files(tmp_path)] == expected


def test_variants_between_which_nothing_decides_are_refused(tmp_path: Path) -> None:
    for variant in ("ema", "non_ema"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.safetensors").touch()
    with pytest.raises(ValueError, match=r"in several variants and none without: ema, non_ema"):
        variant_of(tmp_path)


def test_a_missing_shard_is_named(tiny_clip: CLIPModel, tmp_path: Path) -> None:
    tiny_clip.save_pretrained(tmp_path, max_shard_size="20KB")
    whole, shards = read_folder_tensors(tmp_path), weight_files(tmp_path)
    assert len(shards) > 1
    assert whole.keys() == tiny_clip.state_dict().keys()
    shards[0].unlink()
    with pytest.raises(ValueError, match=rf"has {len(shards) - 1} of the {len(shards)} files"):
        read_folder_tensors(tmp_path)


# Base models


def test_a_model_of_half_precision_files_only_is_loaded(
    tiny_sdxl_folder: Path, tiny_sdxl: BaseModel, tmp_path: Path
) -> None:
    """The UNet in shards, the other parts in one file each, and the full VAE beside its variant."""
    folder = renamed(tiny_sdxl_folder, tmp_path / "model")
    shutil.rmtree(folder / "unet")
    tiny_sdxl.network.save_pretrained(folder / "unet", variant="fp16", max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*.fp16-00001-of-*.safetensors"))) == 1
    vae = AutoencoderKL.from_pretrained(tiny_sdxl_folder / "vae")
    vae.save_pretrained(folder / "vae")
    model = load(str(folder))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert same_weights(model.pipeline.components[part], tiny_sdxl.pipeline.components[part]), part


def test_other_vaes_and_unets_may_be_variants_too(tiny_sd_folder: Path, tiny_sd: BaseModel, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        renamed(tiny_sd_folder / part, tmp_path / part)
    model = load(str(tiny_sd_folder), vae=str(tmp_path / "vae"))
    replace_unet(model, str(tmp_path / "unet"))
    assert same_weights(model.network, tiny_sd.network)
    assert same_weights(model.pipeline.vae, tiny_sd.pipeline.vae)


def test_a_tokenizer_without_a_length_takes_the_text_encoders(
    tiny_sdxl_folder: Path, tiny_sdxl: BaseModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "model")
    for part in ("tokenizer", "tokenizer_2"):
        path = folder / part / "tokenizer_config.json"
        values = json.loads(path.read_text())
        del values["model_max_length"]
        path.write_text(json.dumps(values))
    assert CLIPTokenizer.from_pretrained(folder / "tokenizer").model_max_length > 1e20
    model, prompts = load(str(folder)), ["a cat", "two boats " * 60]
    assert torch.equal(model.encode(prompts).tokens, tiny_sdxl.encode(prompts).tokens)
    assert torch.equal(model.negative().tokens, tiny_sdxl.negative().tokens)


# Judges and scorers


def test_judges_and_scorers_may_be_in_half_precision_files(
    tiny_spm_folder: Path, tiny_clip: CLIPModel, tmp_path: Path
) -> None:
    expected = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)
    check_judge(JudgeChoice(path=str(renamed(tiny_spm_folder, tmp_path / "checked"))))
    assert same_weights(StepAwarePreferenceModel.from_pretrained(renamed(tiny_spm_folder, tmp_path / "spm")), expected)
    tiny_clip.save_pretrained(tmp_path / "clip", variant="fp16")
    assert same_weights(load_clip(tmp_path / "clip"), tiny_clip)
    assert same_weights(load_clip_vision(tmp_path / "clip").vision_model, tiny_clip.vision_model)


def test_a_judge_is_not_taken_for_a_clip(tiny_spm_folder: Path) -> None:
    values = json.loads((tiny_spm_folder / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == (
        "step_aware_preference_model",
        ["StepAwarePreferenceModel"],
    )
    with pytest.raises((ValueError, KeyError), match="step_aware_preference_model"):
        AutoModel.from_pretrained(tiny_spm_folder)


def test_judges_of_earlier_versions_load_as_before(tiny_spm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_spm_folder, tmp_path / "spm")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "clip", "architectures": ["CLIPModel"]}
    (folder / "config.json").write_text(json.dumps(values))
    old, new = (StepAwarePreferenceModel.from_pretrained(path) for path in (folder, tiny_spm_folder))
    assert same_weights(old, new)
    assert old.config.to_dict() == new.config.to_dict()


def test_another_model_is_no_judge(tiny_spm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_spm_folder, tmp_path / "spm")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "siglip"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="its model_type is 'siglip'"):
        StepAwarePreferenceModel.from_pretrained(folder)


# Without a hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_local_models_need_no_hub(
    tiny_sdxl_folder: Path, tiny_sdxl_file: Path, tiny_spm_folder: Path, tmp_path: Path
) -> None:
    load(str(tiny_sdxl_folder), dtype=torch.bfloat16)
    load(str(tiny_sdxl_file), config=str(tiny_sdxl_folder), vae=str(tiny_sdxl_folder / "vae"))
    load_spm(str(tiny_spm_folder))


@pytest.mark.usefixtures("no_network")
def test_a_released_judge_takes_the_tokenizer_beside_it(
    tiny_spm_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spm = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)
    tensors = load_file(tiny_spm_folder / "model.safetensors")
    torch.save({f"model.{key}": value for key, value in tensors.items()}, tmp_path / "judge.bin")
    for path in tiny_spm_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr("stepalign.judges.spm.vit_h_config", lambda: spm.config)
    loaded, tokenizer = load_spm(str(tmp_path / "judge.bin"))
    assert same_weights(loaded, spm)
    assert tokenizer("a cat").input_ids == CLIPTokenizer.from_pretrained(tiny_spm_folder)("a cat").input_ids
