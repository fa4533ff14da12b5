"""Digests of parts by their content: other content is another part, the same content elsewhere is the same part."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPTokenizer

from stepalign.models.adapters import load_adapters
from stepalign.models.base import BaseModel
from stepalign.models.identity import adapters_identity, base_identity
from stepalign.models.load import load
from stepalign.support import digests as identity
from stepalign.support.digests import (
    config_digest,
    differences,
    files_digest,
    module_digest,
    refuse_differences,
    tensors_digest,
    text_digest,
    tokenizer_digest,
    values_digest,
)

# Files and texts


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in (("b.bin", b"second"), ("a.bin", b"first")):
        (tmp_path / name).write_bytes(content)
    return [tmp_path / "b.bin", tmp_path / "a.bin"]


def test_one_files_digest_is_its_sha256(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CHUNK", 3)
    assert files_digest(files[:1]) == hashlib.sha256(b"second").hexdigest()


def test_several_files_digest_is_that_of_theirs_by_name(files: list[Path]) -> None:
    both = [hashlib.sha256(content).hexdigest() for content in (b"first", b"second")]
    expected = hashlib.sha256("\n".join(both).encode()).hexdigest()
    assert files_digest(files) == files_digest(files[::-1]) == expected
    files[0].write_bytes(b"another")
    assert files_digest(files) != expected


def test_texts_are_told_apart_by_content_order_and_number() -> None:
    others = [["a cat", "a dog"], ["a dog", "a cat"], ["a cat", "a cog"], ["a cata dog"], ["a cat"], ["a cat\udce9"]]
    assert len({text_digest(texts) for texts in others}) == len(others)
    assert values_digest({"a": 1, "b": [2]}) == values_digest({"b": [2], "a": 1}) != values_digest({"a": 1, "b": [3]})


# Tensors


def test_tensors_are_told_apart_by_value_name_type_and_shape() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.tensor(1.5)}
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(1.5)},
        {"a": torch.arange(6.0), "b": torch.tensor(1.75)},
        {"a": torch.arange(6.0) + torch.tensor([0, 0, 0, 0, 0, 5e-7]), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0).bfloat16(), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0).view(torch.int32), "b": torch.tensor(1.5)},
        {"a": torch.arange(6.0), "b": torch.empty(0)},
        {"a": torch.arange(6.0)},
    ]
    assert len({tensors_digest(other) for other in [weights, *others]}) == 9
    assert tensors_digest(dict(reversed(weights.items()))) == tensors_digest(weights)
    transposed = {"a": torch.arange(6.0).reshape(2, 3).T.contiguous().T.reshape(6), "b": weights["b"]}
    assert tensors_digest(transposed) == tensors_digest(weights)


def test_a_module_is_known_by_parameters_and_buffers() -> None:
    def digest(value: float, buffer: float) -> str:
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(module.weight, value)
        module.register_buffer("scale", torch.tensor(buffer))
        return module_digest(module, "network")

    assert digest(1.0, 2.0) == digest(1.0, 2.0)
    assert len({digest(1.0, 2.0), digest(1.5, 2.0), digest(1.0, 2.5)}) == 3


# Configs and tokenizers


def test_a_config_is_known_by_what_it_says_other_than_by_default() -> None:
    """A field that a later version adds with its default, and where the config lies, play no part."""
    config = CLIPConfig(vision_config={"hidden_act": "gelu"})
    again = CLIPConfig.from_dict({**config.to_dict(), "_name_or_path": "elsewhere", "transformers_version": "9"})
    other = CLIPConfig(vision_config={"hidden_act": "quick_gelu"})
    assert config_digest(config) == config_digest(again) != config_digest(other)


def test_a_tokenizer_is_known_by_vocabulary_merges_special_tokens_and_length(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """What it was last asked to do, padding and truncation, plays no part."""
    before = tokenizer_digest(tokenizer)
    tokenizer(["a cat", "a"], padding=True, truncation=True, max_length=5)
    assert tokenizer_digest(tokenizer) == before

    def edited(edit: Callable[[dict[str, Any]], None]) -> str:
        tokenizer.save_pretrained(tmp_path)
        state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        edit(state)
        (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        return tokenizer_digest(CLIPTokenizer.from_pretrained(tmp_path))

    def swap(state: dict[str, Any]) -> None:
        vocabulary = state["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    assert edited(lambda state: None) == before
    shorter, padded = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    shorter.model_max_length, padded.pad_token = 7, "!"
    others = [edited(swap), edited(lambda state: state["model"]["merges"].pop())]
    assert len({before, *others, tokenizer_digest(shorter), tokenizer_digest(padded)}) == 5


# Base models


@pytest.fixture
def model_folder(tiny_sd_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(tiny_sd_folder, tmp_path / "another place")


def test_a_model_is_the_same_elsewhere_and_as_another_format(tiny_sd: BaseModel, model_folder: Path) -> None:
    """Saved as a pickle, and in shards."""
    expected = base_identity(tiny_sd)
    unet, vae = tiny_sd.pipeline.unet, tiny_sd.pipeline.vae
    for part in ("unet", "vae"):
        shutil.rmtree(model_folder / part)
    unet.save_pretrained(model_folder / "unet", max_shard_size="100KB")
    vae.save_pretrained(model_folder / "vae", safe_serialization=False)
    assert len(list((model_folder / "unet").glob("*.safetensors"))) > 1
    assert base_identity(load(str(model_folder))) == expected


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def edit_weights(path: Path) -> None:
    """Move one number of one tensor by a few last places."""
    weights = load_file(path)
    key = max(weights)
    weights[key].view(-1)[-1] *= 1 + 1e-6
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoils", "parts"),
    [
        (
            [
                lambda m: edit_weights(m / "unet/diffusion_pytorch_model.safetensors"),
                lambda m: edit_weights(m / "text_encoder/model.safetensors"),
                lambda m: edit_json(m / "vae/config.json", scaling_factor=0.2),
                lambda m: edit_json(m / "scheduler/scheduler_config.json", beta_end=0.013),
            ],
            ["unet.weights", "vae.config", "text_encoder.weights", "scheduler"],
        ),
        (
            [
                lambda m: edit_weights(m / "vae/diffusion_pytorch_model.safetensors"),
                lambda m: edit_json(m / "unet/config.json", norm_eps=1e-4, sample_size=16),
                lambda m: edit_json(m / "text_encoder/config.json", hidden_act="gelu"),
                lambda m: edit_json(m / "scheduler/scheduler_config.json", prediction_type="v_prediction"),
            ],
            ["resolution", "unet.config", "vae.weights", "text_encoder.config", "scheduler"],
        ),
        (
            [
                lambda m: edit_json(m / "scheduler/scheduler_config.json", skip_prk_steps=False),
                lambda m: edit_json(m / "unet/config.json", _diffusers_version="9.9", dropout=0.1),
            ],
            [],
        ),
    ],
)
def test_what_changed_of_a_model_is_named(
    spoils: list[Callable[[Path], None]], parts: list[str], tiny_sd: BaseModel, model_folder: Path
) -> None:
    for spoil in spoils:
        spoil(model_folder)
    assert differences(base_identity(load(str(model_folder))), base_identity(tiny_sd)) == parts


def test_half_precision_is_another_part(tiny_sd: BaseModel, tiny_sd_folder: Path) -> None:
    found = differences(base_identity(load(str(tiny_sd_folder), dtype=torch.bfloat16)), base_identity(tiny_sd))
    assert found == ["precision", "unet.weights", "vae.weights", "text_encoder.weights"]


def test_both_text_encoders_of_sdxl_are_parts(tiny_sdxl: BaseModel) -> None:
    found = base_identity(tiny_sdxl)
    assert {"text_encoder.weights", "text_encoder_2.weights", "tokenizer", "tokenizer_2"} <= found.keys()
    assert found["tokenizer"] != found["tokenizer_2"]
    assert found["empty prompt"] == "zeros"


# Adapters


def adapter(path: Path, *, value: float = 0.1, alpha: float | None = None) -> Path:
    """A LoRA of rank 2 on one projection, in kohya's layout."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors: dict[str, Tensor] = {
        f"{name}.lora_down.weight": torch.full((2, 16), value),
        f"{name}.lora_up.weight": torch.ones(16, 2),
    }
    save_file(tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}), path)
    return path


def test_an_adapter_is_known_by_its_tensors_and_their_strength(tiny_sd_folder: Path, tmp_path: Path) -> None:
    files = [adapter(tmp_path / f"{name}.safetensors") for name in "ab"]
    others = [adapter(tmp_path / "c.safetensors", value=0.2), adapter(tmp_path / "d.safetensors", alpha=1.0)]
    model = load(str(tiny_sd_folder))
    load_adapters(model, [(str(file), 1.0) for file in (*files, *others)])
    found = list(adapters_identity(model, 4).values())
    assert found[0] == found[1]
    assert len({*found}) == 3


# Differences


def test_a_difference_is_refused_by_the_names_of_the_parts() -> None:
    ours = {"precision": "float32", "unet.weights": "a" * 64, "judge.weights": "b" * 64, "new": "c"}
    refuse_differences(ours, {**ours, "old": "d"}, whose="this run began with")
    theirs = {"precision": "float32", "unet.weights": "e" * 64, "judge.weights": "f" * 64}
    expected = r"^unet\.weights \(e{16} then, a{16} now\), judge\.weights \(f{16} then, b{16} now\): not what this run"
    with pytest.raises(ValueError, match=expected):
        refuse_differences(ours, theirs, whose="this run began with")


def test_weights_that_are_not_finite_are_refused_by_part_and_name() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.data[1] = torch.inf
    with pytest.raises(ValueError, match=r"^the weight bias of the VAE \(Linear\) holds values that are not finite"):
        module_digest(layer, "VAE")
