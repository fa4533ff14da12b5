"""Files of step-aware preference models: folders, released checkpoints, and each kind of damage to either."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import normal, same_weights
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign import miniature
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.models.clip import tokenize

HALVES = (torch.float16, torch.bfloat16)
MAPS = Path("/proc/self/maps")


@pytest.fixture
def spm(tiny_spm_folder: Path) -> StepAwarePreferenceModel:
    return StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)


def scores_of(model: StepAwarePreferenceModel, tokenizer: CLIPTokenizer) -> Tensor:
    ids = tokenize(tokenizer, model.config, ["a red ring", "two blue squares", "a dot"])
    pixels, t = normal(3, 3, 32, 32, dtype=torch.float32), torch.tensor([0, 501, 999])
    with torch.no_grad():
        return model.score(model.image_features(pixels, t), model.text_features(ids))


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# Folders


def test_a_saved_model_comes_back_identical(
    spm: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    spm.save_pretrained(tmp_path / "spm")
    again = StepAwarePreferenceModel.from_pretrained(tmp_path / "spm")
    assert same_weights(again, spm)
    assert torch.equal(scores_of(again, tokenizer), scores_of(spm, tokenizer))
    assert again.config.to_dict() == spm.config.to_dict()
    assert sorted(path.name for path in (tmp_path / "spm").iterdir()) == ["config.json", "model.safetensors"]
    assert "_name_or_path" not in (tmp_path / "spm/config.json").read_text()  # places on this machine


@pytest.mark.parametrize("timestep_conditioning", [True, False])
@pytest.mark.parametrize("preprocessing", ["clamp-first", "resize-first"])
def test_a_variant_is_kept_in_its_config(
    tiny_clip: CLIPModel, tmp_path: Path, timestep_conditioning: bool, preprocessing: str
) -> None:
    options = {"timestep_conditioning": timestep_conditioning, "preprocessing": preprocessing}
    StepAwarePreferenceModel.from_clip(tiny_clip, **options).save_pretrained(tmp_path)
    assert config_of(tmp_path)["step_aware"] == options
    again = StepAwarePreferenceModel.from_pretrained(tmp_path)
    assert (again.timestep_conditioning, again.preprocessing) == (timestep_conditioning, preprocessing)


def test_without_timestep_conditioning_the_file_is_plain_clips(
    tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    blind = StepAwarePreferenceModel.from_clip(tiny_clip, timestep_conditioning=False)
    blind.save_pretrained(tmp_path)
    assert same_weights(CLIPModel.from_pretrained(tmp_path), tiny_clip)
    again = StepAwarePreferenceModel.from_pretrained(tmp_path)
    assert torch.equal(scores_of(again, tokenizer), scores_of(blind, tokenizer))


def test_a_config_of_plain_transformers_means_the_defaults(
    spm: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    spm.save_pretrained(tmp_path)
    spm.config.save_pretrained(tmp_path)
    assert "step_aware" not in config_of(tmp_path)
    again = StepAwarePreferenceModel.from_pretrained(tmp_path)
    assert (again.timestep_conditioning, again.preprocessing) == (True, "clamp-first")
    assert torch.equal(scores_of(again, tokenizer), scores_of(spm, tokenizer))
    assert StepAwarePreferenceModel.from_pretrained(miniature.SPM).timestep_conditioning  # the shipped one


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_file_in_half_precision_keeps_its_scale(
    spm: StepAwarePreferenceModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """The loaded model computes in fp32 with the rounded weights and the exact scale."""
    spm.save_pretrained(tmp_path, dtype=dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    again = StepAwarePreferenceModel.from_pretrained(tmp_path)
    assert torch.equal(again.logit_scale, spm.logit_scale)
    for name in stored:
        assert again.get_parameter(name).dtype == torch.float32
        assert torch.equal(again.get_parameter(name), spm.get_parameter(name).to(dtype).float())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("source", ["folder", "checkpoint"])
def test_on_request_the_weights_are_in_half_precision_and_the_scale_is_not(
    tiny_spm_folder: Path, spm: StepAwarePreferenceModel, tmp_path: Path, dtype: torch.dtype, source: str
) -> None:
    torch.save(released(spm), tmp_path / "spm.bin")
    if source == "folder":
        half = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder, dtype=dtype)
    else:
        half = StepAwarePreferenceModel.from_checkpoint(tmp_path / "spm.bin", spm.config, dtype=dtype)
    assert torch.equal(half.logit_scale, spm.logit_scale)
    assert {tensor.dtype for name, tensor in half.state_dict().items() if name != "logit_scale"} == {dtype}
    assert {str(buffer.dtype) for buffer in half.buffers()} == {"torch.int64"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda config: config | {"step_aware": {"preprocessing": "clamp_first"}}, "clamp_first|another version"),
        (lambda config: config | {"step_aware": {"num_towers": 2}}, "num_towers"),
        (lambda config: config | {"step_aware": 2}, "spm"),
        (lambda config: config | {"step_aware": {"timestep_conditioning": False}}, "unexpected t_embedder.mlp.0.bias"),
        (lambda config: config | {"projection_dim": 9}, r"visual_projection.weight is \(8, 16\), not \(9, 16\)"),
        (lambda config: config | {"projection_dim": "many"}, "projection_dim"),
        (lambda config: config | {"vision_config": config["vision_config"] | {"hidden_act": "wow"}}, "wow"),
        (lambda config: [config], "config.json"),
        (lambda config: 3, "config.json"),
    ],
    ids=["preprocessing", "option", "options", "conditioning", "size", "kind", "activation", "list", "number"],
)
def test_a_damaged_config_is_refused(
    spm: StepAwarePreferenceModel, tmp_path: Path, damage: Callable[..., Any], words: str
) -> None:
    spm.save_pretrained(tmp_path / "spm")
    (tmp_path / "spm/config.json").write_text(json.dumps(damage(config_of(tmp_path / "spm"))))
    with pytest.raises(ValueError, match=words):
        StepAwarePreferenceModel.from_pretrained(tmp_path / "spm")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(spm: StepAwarePreferenceModel, tmp_path: Path, file: str, kept: float) -> None:
    spm.save_pretrained(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"damaged config.json or model.safetensors"):
        StepAwarePreferenceModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(spm: StepAwarePreferenceModel, tmp_path: Path, file: str) -> None:
    spm.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"has no {file}"):
        StepAwarePreferenceModel.from_pretrained(tmp_path)


# Released checkpoints


def released(model: StepAwarePreferenceModel) -> dict[str, Tensor]:
    """A checkpoint in the layout of the released ones: `model.` before every name, float position ids."""
    tensors = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for tower, length in (("text", 12), ("vision", 17)):
        tensors[f"model.{tower}_model.embeddings.position_ids"] = torch.arange(length).float()[None]
    return tensors


def load(path: Path, config: CLIPConfig) -> StepAwarePreferenceModel:
    return StepAwarePreferenceModel.from_checkpoint(path, config)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_released_checkpoint_loads(
    spm: StepAwarePreferenceModel, tokenizer: CLIPTokenizer, tmp_path: Path, zipped: bool
) -> None:
    torch.save(released(spm), tmp_path / "spm.bin", _use_new_zipfile_serialization=zipped)
    model = load(tmp_path / "spm.bin", spm.config)
    assert same_weights(model, spm)
    assert torch.equal(scores_of(model, tokenizer), scores_of(spm, tokenizer))
    assert all(torch.equal(*buffers) for buffers in zip(model.buffers(), spm.buffers(), strict=True))


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_the_weights_of_a_checkpoint_are_mapped_not_copied(spm: StepAwarePreferenceModel, tmp_path: Path) -> None:
    path = tmp_path / "mapped.bin"
    torch.save(released(spm), path)
    model = load(path, spm.config)
    lines = [line.split()[0].split("-") for line in MAPS.read_text().splitlines() if line.endswith(str(path))]
    areas = [range(int(first, 16), int(last, 16)) for first, last in lines]
    for name, parameter in model.named_parameters():
        assert any(parameter.data_ptr() in area for area in areas), name


def test_training_a_mapped_checkpoint_does_not_change_its_file(spm: StepAwarePreferenceModel, tmp_path: Path) -> None:
    torch.save(released(spm), tmp_path / "spm.bin")
    before = (tmp_path / "spm.bin").read_bytes()
    with torch.no_grad():
        load(tmp_path / "spm.bin", spm.config).logit_scale.add_(1)
    assert (tmp_path / "spm.bin").read_bytes() == before


def test_every_tensor_that_does_not_fit_is_listed(spm: StepAwarePreferenceModel, tmp_path: Path) -> None:
    tensors = released(spm)
    del tensors["model.t_embedder.mlp.2.bias"], tensors["model.logit_scale"]
    tensors |= {"model.surplus": torch.zeros(1), "other.surplus": torch.zeros(2)}
    tensors["model.visual_projection.weight"] = torch.zeros(8, 15)
    tensors["model.vision_model.adaLN_modulation.1.bias"] = torch.zeros(2, 16)
    torch.save(tensors, tmp_path / "spm.bin")
    with pytest.raises(ValueError, match="does not fit its config in 6 tensors") as error:
        load(tmp_path / "spm.bin", spm.config)
    for words in ("missing t_embedder.mlp.2.bias", "missing logit_scale", "unexpected surplus", "unexpected other.sur"):
        assert words in str(error.value)
    assert "visual_projection.weight is (8, 15), not (8, 16)" in str(error.value)
    assert "vision_model.adaLN_modulation.1.bias is (2, 16), not (32,)" in str(error.value)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "wrap", [lambda code: {"model.logit_scale": code}, lambda code: code], ids=["in a dict", "bare"]
)
@pytest.mark.parametrize("save", [torch.save, pickle.dump], ids=["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    spm: StepAwarePreferenceModel, tmp_path: Path, wrap: Callable[[Code], Any], save: Callable[..., None]
) -> None:
    with (tmp_path / "spm.bin").open("wb") as file:
        save(wrap(Code(f"touch {tmp_path}/executed")), file)
    with pytest.raises(ValueError, match="holds more than tensors") as error:
        load(tmp_path / "spm.bin", spm.config)
    assert not (tmp_path / "executed").exists()
    assert "\n" not in str(error.value)
    assert not re.search(r"weights_only.*False|trust", str(error.value)), "advice that would run it"


def saved(value: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a text file\n",
        b"<!doctype html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
        saved({"state_dict": {"model.logit_scale": torch.zeros(())}}),
        saved({"model.logit_scale": torch.zeros(()), "epoch": 3}),
        saved({"model.logit_scale": None}),
        saved([torch.zeros(3)]),
        saved(torch.zeros(3)),
        saved({0: torch.zeros(3)}),
    ],
    ids=["empty", "text", "html", "lfs", "nested", "number", "none", "list", "tensor", "unnamed"],
)
def test_a_file_of_anything_but_named_tensors_is_refused_in_one_line(
    spm: StepAwarePreferenceModel, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "spm.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"spm\.bin (is damaged|is no dict of tensors|does not fit)") as error:
        load(tmp_path / "spm.bin", spm.config)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_cut_short_anywhere_is_refused(
    spm: StepAwarePreferenceModel, tmp_path: Path, zipped: bool
) -> None:
    content = saved(released(spm), zipped=zipped)
    for length in (*range(1, 64), *range(64, len(content), len(content) // 60), len(content) - 1):
        (tmp_path / "spm.bin").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"spm\.bin is damaged"):
            load(tmp_path / "spm.bin", spm.config)


@pytest.mark.parametrize("name", ["a/b/spm.bin", "spm.bin"])
def test_a_checkpoint_that_is_nowhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"no file .*spm.bin"):
        StepAwarePreferenceModel.from_checkpoint(tmp_path / name)
