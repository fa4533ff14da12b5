"""Adapters on a base model: what they compute, in every layout, and that nothing of a file is left out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import copied_policy, normal, same_weights
from lora_files import (
    FILE,
    KOHYA,
    assert_predicts_as,
    diffusers_layout,
    factors,
    kohya_layout,
    merged,
    predicted,
    written,
)
from torch import Tensor

from stepalign.models.adapters import load_adapters
from stepalign.models.base import BaseModel
from stepalign.models.load import load


@pytest.fixture(params=["sd", "sdxl"])
def base(request: pytest.FixtureRequest, tiny_sd: BaseModel, tiny_sdxl: BaseModel) -> BaseModel:
    """The tiny Stable Diffusion or SDXL; adapters go on copies."""
    return tiny_sd if request.param == "sd" else tiny_sdxl


@pytest.fixture(scope="module")
def whole(tiny_sd: BaseModel) -> dict[str, Tensor]:
    """A LoRA on the tiny Stable Diffusion's UNet and text encoder, in diffusers' layout."""
    return diffusers_layout(factors(tiny_sd, "unet", "text_encoder"))


# What a loaded adapter computes


def test_an_exported_adapter_predicts_as_the_policy_it_was_trained_as(base: BaseModel, tmp_path: Path) -> None:
    """Of the rank that the papers train each model at, 4 and 64."""
    model = copy.deepcopy(base)
    policy = copied_policy(model, rank=4 if "sd15" in base.name else 64, trained=True)
    model.save_adapter(tmp_path / "adapter", policy.weights("policy"))
    cond, before = model.encode(["two boats"]), predicted(model)
    x_t, t = normal(1, *model.latent_shape, dtype=torch.float32), torch.tensor([500])
    with torch.no_grad():
        expected = policy.predict(x_t, t, cond, role="policy")
    assert load_adapters(model, [(str(tmp_path / "adapter"), 1.0)]) == [tmp_path / "adapter" / FILE]
    torch.testing.assert_close(predicted(model, cond), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_adapters_add_up_each_at_its_scale_in_every_network(base: BaseModel, tmp_path: Path) -> None:
    model = copy.deepcopy(base)
    parts = ["unet", *(part for part in ("text_encoder", "text_encoder_2") if part in model.pipeline.components)]
    one, other = factors(model, *parts, seed=1), factors(model, "unet", ranks=(3, 1), seed=2)
    expected = merged(base, one, lambda number: 0.5)
    for key, (down, up) in other.items():
        expected.network.get_submodule(key.removeprefix("unet.")).weight.data += -0.25 * up @ down
    names = [written(tmp_path / f"{n}.safetensors", diffusers_layout(made)) for n, made in enumerate((one, other))]
    model.encode(["two boats"])  # what was encoded without the adapter is forgotten
    load_adapters(model, list(zip(names, (0.5, -0.25), strict=True)))
    assert_predicts_as(model, expected)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("names", [("whole",), ("whole", "unet"), ("unet", "whole")])
def test_an_adapter_of_scale_0_changes_no_bit(
    names: tuple[str, ...], tiny_sd: BaseModel, whole: dict[str, Tensor], tmp_path: Path
) -> None:
    files = {
        "whole": written(tmp_path / "whole.safetensors", whole),
        "unet": written(tmp_path / "unet.safetensors", diffusers_layout(factors(tiny_sd, "unet", seed=3))),
    }
    scales = {"whole": 0.0, "unet": 1.0}
    model, expected = copy.deepcopy(tiny_sd), copy.deepcopy(tiny_sd)
    load_adapters(model, [(files[name], scales[name]) for name in names])
    load_adapters(expected, [(files[name], scales[name]) for name in names if scales[name]])
    assert torch.equal(predicted(model), predicted(expected))


def test_no_adapter_leaves_the_model_alone(tiny_sd: BaseModel) -> None:
    model = copy.deepcopy(tiny_sd)
    assert load_adapters(model, []) == []
    assert same_weights(model.network, tiny_sd.network)


def test_ranks_may_differ_within_a_file(tiny_sd: BaseModel, tmp_path: Path) -> None:
    made = factors(tiny_sd, "unet", "text_encoder", ranks=(2, 3, 5))
    model = copy.deepcopy(tiny_sd)
    load_adapters(model, [(written(tmp_path / "lora.safetensors", diffusers_layout(made)), 1.0)])
    assert_predicts_as(model, merged(tiny_sd, made, lambda number: 1.0))


def test_alphas_and_ranks_of_kohyas_layout_may_differ_from_module_to_module(base: BaseModel, tmp_path: Path) -> None:
    """Module i has rank 2 or 3 and alpha 1, 2 or 3: W + scale alpha / rank B A."""
    model = copy.deepcopy(base)
    parts = [part for part in KOHYA if part in model.pipeline.components]
    made = factors(model, *parts, ranks=(2, 3))
    tensors = kohya_layout(made, lambda number: float(1 + number % 3))
    load_adapters(model, [(written(tmp_path / "kohya.safetensors", tensors), 0.5)])
    assert_predicts_as(model, merged(base, made, lambda number: 0.5 * (1 + number % 3) / (2 + number % 2)))


def test_kohyas_layout_may_number_blocks_as_stable_diffusion_xls_first_code_did(
    tiny_sdxl: BaseModel, tmp_path: Path
) -> None:
    blocks = {
        "down_blocks_1_attentions_0": "input_blocks_3_1",
        "mid_block_attentions_0": "middle_block_1",
        "up_blocks_0_attentions_1": "output_blocks_1_1",
    }
    model = copy.deepcopy(tiny_sdxl)
    found = factors(model, "unet").items()
    made = {key: pair for key, pair in found if any(name.replace("_", ".") in key.replace("_", ".") for name in blocks)}
    tensors = kohya_layout(made, lambda number: 1.0)
    for name, first in blocks.items():
        tensors = {key.replace(name, first): value for key, value in tensors.items()}
    assert not any("attentions" in key for key in tensors)
    load_adapters(model, [(written(tmp_path / "webui.safetensors", tensors), 1.0)])
    assert_predicts_as(model, merged(tiny_sdxl, made, lambda number: 0.5))


def test_the_layout_of_early_diffusers_is_read(tiny_sd: BaseModel, tmp_path: Path) -> None:
    made, tensors = factors(tiny_sd, "unet"), {}
    for key, (down, up) in made.items():
        layer, projection = key.removesuffix(".0").rsplit(".", 1)
        tensors[f"{layer}.processor.{projection}_lora.down.weight"] = down
        tensors[f"{layer}.processor.{projection}_lora.up.weight"] = up
    model = copy.deepcopy(tiny_sd)
    load_adapters(model, [(written(tmp_path / "early.safetensors", tensors), 1.0)])
    assert_predicts_as(model, merged(tiny_sd, made, lambda number: 1.0))


def test_adapters_stay_in_float32_on_a_model_in_half_precision(
    tiny_sd_folder: Path, whole: dict[str, Tensor], tmp_path: Path
) -> None:
    model = load(str(tiny_sd_folder), dtype=torch.bfloat16)
    load_adapters(model, [(written(tmp_path / "lora.safetensors", whole), 1.0)])
    lora = {value.dtype for key, value in model.network.named_parameters() if "lora_" in key}
    assert lora == {torch.float32}
    assert model.network.dtype == model.encode(["a cat"]).tokens.dtype == torch.bfloat16
    assert model.encode(["a cat"]).tokens.isfinite().all()


# What is refused


def without(tensors: dict[str, Tensor], *beginnings: str) -> dict[str, Tensor]:
    """Less the first tensor that begins and ends so."""
    key = next(key for key in tensors if key.startswith(beginnings[0]) and key.endswith(beginnings[1]))
    return {name: value for name, value in tensors.items() if name != key}


def with_one(tensors: dict[str, Tensor], beginning: str, *shape: int) -> dict[str, Tensor]:
    key = next(key for key in tensors if key.startswith(beginning))
    return tensors | {key: torch.ones(shape)}


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "nothing": (lambda lora: {}, "holds nothing; the LoRA layouts that can be read are"),
    "other tensors": (lambda lora: lora | {"step": torch.ones(1)}, "holds step; the LoRA layouts that can be read are"),
    "a whole UNet": (lambda lora: {"conv_in.weight": torch.ones(2, 2)}, "is a whole UNet; give .* with --unet"),
    "a UNet's B missing": (lambda lora: without(lora, "unet.", "lora_B.weight"), "it has no weights for .*lora_B"),
    "a text encoder's A missing": (
        lambda lora: without(lora, "text_encoder.", "lora_A.weight"),
        "it has no weights for text_encoder.*lora_A",
    ),
    "a UNet's shape": (lambda lora: with_one(lora, "unet.", 2, 7), "size mismatch at unet"),
    "a text encoder's shape": (lambda lora: with_one(lora, "text_encoder.", 2, 7), "size mismatch at text"),
    "an unknown layer": (lambda lora: lora | {"unet.attic.to_q.lora_A.weight": torch.ones(2, 8)}, "unet.attic.to_q"),
    "rank 0": (lambda lora: {key: v[:0] if "A" in key else v[:, :0] for key, v in lora.items()}, "size mismatch"),
    "not finite": (lambda lora: lora | {next(iter(lora)): torch.full((2, 2), torch.nan)}, "lora_A.weight .*not finite"),
    "quantised": (lambda lora: lora | {next(iter(lora)): torch.ones(2, 2, dtype=torch.int8)}, "int8 numbers"),
    "another text encoder's": (
        lambda lora: lora | {"text_encoder_2.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)},
        "1 of its .* tensors have no place in it: text_encoder_2",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_fit_whole_is_refused(
    damage: str, tiny_sd: BaseModel, whole: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, complaint = DAMAGES[damage]
    model, path = copy.deepcopy(tiny_sd), written(tmp_path / "lora.safetensors", change(whole))
    capfd.readouterr()
    with pytest.raises(ValueError, match=rf"^adapters: '{path}' .*{complaint}") as error:
        load_adapters(model, [(path, 0.0)])
    assert "\n" not in str(error.value)
    assert "REPORT" not in capfd.readouterr().err


def test_a_layer_that_kohyas_layout_cannot_name_is_refused(tiny_sd: BaseModel, tmp_path: Path) -> None:
    tensors = kohya_layout(factors(tiny_sd, "unet"), lambda number: 1.0)
    for key, what in (("lora_unet_attic.lora_up.weight", "attic"), ("lora_te2_attic.lora_down.weight", "attic")):
        path = written(tmp_path / "kohya.safetensors", tensors | {key: torch.ones(2, 2)})
        with pytest.raises(ValueError, match=rf"^adapters: .*{what}"):
            load_adapters(copy.deepcopy(tiny_sd), [(path, 1.0)])


def test_an_adapter_of_another_model_is_refused(tiny_sdxl: BaseModel, tiny_sd: BaseModel, tmp_path: Path) -> None:
    path = written(tmp_path / "xl.safetensors", diffusers_layout(factors(tiny_sdxl, "unet")))
    with pytest.raises(ValueError, match=rf"^adapters: .*xl.safetensors' does not fit '{tiny_sd.name}'"):
        load_adapters(copy.deepcopy(tiny_sd), [(path, 1.0)])
