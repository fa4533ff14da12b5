"""A LoRA in every layout that is read: the same updates of the same modules, worked out by hand in float64."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import copied_policy
from lora_files import Factors, factors, kohya_layout
from original_layout import _unet as original_name
from safetensors.torch import load_file, save_file
from tiny_models import sd_unet, sdxl_unet
from torch import Tensor, nn

from stepalign.models.adapters import NETWORKS, check_adapter
from stepalign.models.base import BaseModel
from stepalign.models.lora_files import read_lora
from stepalign.models.lora_layouts import lora_updates
from stepalign.models.module_names import spellings
from stepalign.support.tensor_files import read_header

EARLY_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@pytest.fixture(params=["sd", "sdxl"])
def base(request: pytest.FixtureRequest, tiny_sd: BaseModel, tiny_sdxl: BaseModel) -> BaseModel:
    return tiny_sd if request.param == "sd" else tiny_sdxl


def changes(model: BaseModel, file: Path) -> dict[str, Tensor]:
    """scale B A of every module in a file, in float64, by network and module."""
    networks = {part: model.pipeline.components[part] for part in NETWORKS if part in model.pipeline.components}
    return {
        f"{update.part}.{update.module}": update.scale * update.up.double().flatten(1) @ update.down.double().flatten(1)
        for update in lora_updates(*read_lora(file), networks)
    }


def by_hand(made: Factors, scale_of: Callable[[int], float]) -> dict[str, Tensor]:
    return {
        key: scale_of(number) * up.double().flatten(1) @ down.double().flatten(1)
        for number, (key, (down, up)) in enumerate(made.items())
    }


def assert_changes(model: BaseModel, file: Path, expected: dict[str, Tensor]) -> None:
    found = changes(model, file)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=0)


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in tensors.items()}, path, metadata=metadata)
    return path


def named(made: Factors, name: Callable[[str], str], down: str, up: str) -> dict[str, Tensor]:
    return {
        f"{name(key)}{end}": value for key, pair in made.items() for end, value in zip((down, up), pair, strict=True)
    }


# diffusers


def test_an_alpha_for_each_module_may_stand_beside_diffusers_names(base: BaseModel, tmp_path: Path) -> None:
    """As SimpleTuner writes it."""
    made = factors(base, "unet", "text_encoder", ranks=(2, 4))
    tensors = named(made, str, ".lora_A.weight", ".lora_B.weight")
    tensors |= {f"{key}.alpha": torch.tensor(float(1 + number % 3)) for number, key in enumerate(made)}
    expected = by_hand(made, lambda number: (1 + number % 3) / (2, 4)[number % 2])
    assert_changes(base, saved(tmp_path / "lora.safetensors", tensors), expected)


def test_ranks_and_alphas_of_diffusers_metadata_decide(tiny_sd: BaseModel, tmp_path: Path) -> None:
    made = factors(tiny_sd, "unet", "text_encoder", ranks=(2,))
    key = next(key.removeprefix("unet.") for key in made if key.startswith("unet."))
    metadata = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {key: 1}, "unet.use_rslora": False}
    metadata |= {"text_encoder.r": 2, "text_encoder.lora_alpha": 2, "text_encoder.use_rslora": True}
    path = saved(
        tmp_path / "lora.safetensors",
        named(made, str, ".lora_A.weight", ".lora_B.weight"),
        {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)},
    )
    scales = [0.5 if key in name else 3.0 if name.startswith("unet") else 2 / math.sqrt(2) for name in made]
    assert_changes(tiny_sd, path, by_hand(made, lambda number: scales[number]))


@pytest.mark.parametrize("prefix", ["unet.", ""])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_attention_processors_of_early_diffusers_are_read(
    prefix: str, suffix: str, tiny_sd: BaseModel, tmp_path: Path
) -> None:
    """As D3PO and DDPO write them."""

    def processor(key: str) -> str:
        layer, projection = key.removeprefix("unet.").removesuffix(".0").rsplit(".", 1)
        return f"{prefix}{layer}.processor.{projection}"

    made, path = factors(tiny_sd, "unet"), tmp_path / f"pytorch_lora_weights{suffix}"
    tensors = named(made, processor, "_lora.down.weight", "_lora.up.weight")
    if suffix == ".bin":
        torch.save(tensors, path)
    else:
        saved(path, tensors)
    assert_changes(tiny_sd, path, by_hand(made, lambda number: 1.0))


@pytest.mark.parametrize("text_prefix", ["", "text_model."])
def test_text_encoders_of_early_diffusers_are_read(text_prefix: str, tiny_sd: BaseModel, tmp_path: Path) -> None:
    made = factors(tiny_sd, "unet", "text_encoder")

    def early(key: str) -> str:
        part, _, module = key.partition(".")
        if part == "unet":
            return f"{key}.lora"
        module = text_prefix + module.removeprefix("text_model.")
        for now, then in EARLY_TEXT.items():
            if module.endswith(now):
                return f"{part}.{module.removesuffix(now)}{then}_lora"
        return f"{part}.{module}.lora_linear_layer"

    path = saved(tmp_path / "lora.safetensors", named(made, early, ".down.weight", ".up.weight"))
    assert_changes(tiny_sd, path, by_hand(made, lambda number: 1.0))


# PEFT


@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_peft_folder_has_its_ranks_and_alphas_in_its_config(
    part: str, stabilised: bool, tiny_sdxl: BaseModel, tmp_path: Path
) -> None:
    made = dict(factors(tiny_sdxl, part, ranks=(4, 2)).items())
    names = [key.removeprefix(f"{part}.") for key in made]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": stabilised, "init_lora_weights": "gaussian"}
    config["rank_pattern"] = dict.fromkeys(names[1::2], 2)
    config["alpha_pattern"] = {"^" + re.escape(names[2]) + "$": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    only = part if part == "unet" else "text_encoder_2"
    prefix = "" if part == "unet" else "text_encoder_2."
    tensors = named(
        made, lambda key: f"base_model.model.{prefix}{key.removeprefix(only + '.')}", ".lora_A.weight", ".lora_B.weight"
    )
    saved(tmp_path / "adapter_model.safetensors", tensors)
    divided = [math.sqrt(rank) if stabilised else rank for rank in (4, 2)]
    expected = by_hand(made, lambda number: (1 if number == 2 else 8) / divided[number % 2])
    assert_changes(tiny_sdxl, check_adapter(str(tmp_path)), expected)


def test_a_config_of_another_rank_than_the_tensors_is_refused(tiny_sd: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    tensors = named(
        factors(tiny_sd, "unet"), lambda key: f"base_model.model.{key[5:]}", ".lora_A.weight", ".lora_B.weight"
    )
    with pytest.raises(ValueError, match=r"its settings give unet\..* the rank 4, its tensors have 2"):
        changes(tiny_sd, saved(tmp_path / "adapter_model.safetensors", tensors))


def test_a_unet_alone_needs_no_prefix(base: BaseModel, tmp_path: Path) -> None:
    """As unet.save_lora_adapter writes it, and PEFT with the adapter's name in every tensor's."""
    made = factors(base, "unet")
    for number, (down, up) in enumerate(
        [(".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight")]
    ):
        path = saved(tmp_path / f"{number}.safetensors", named(made, lambda key: key[5:], down, up))
        assert_changes(base, path, by_hand(made, lambda number: 1.0))


# kohya


def test_convolutions_have_updates_too(tiny_sd: BaseModel, tmp_path: Path) -> None:
    """A LoCon of 3x3 and 1x1 convolutions, the latter also as early matrices."""
    generator, made = torch.Generator().manual_seed(0), Factors()
    unet = tiny_sd.pipeline.unet
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d) and re.search(r"conv1|downsamplers|upsamplers|conv_in|proj_in", name):
            down = torch.randn(2, *module.weight.shape[1:], generator=generator)
            made[f"unet.{name}"] = down, torch.randn(len(module.weight), 2, 1, 1, generator=generator)
    tensors = kohya_layout(made, lambda number: 1.0)
    matrix = next(key for key in tensors if "proj_in.lora_down" in key)
    tensors[matrix] = tensors[matrix].flatten(1)
    path = saved(tmp_path / "locon.safetensors", tensors)
    assert_changes(tiny_sd, path, by_hand(made, lambda number: 0.5))


@pytest.mark.parametrize("make", [partial(sd_unet, attention_head_dim=2), sdxl_unet], ids=["sd", "sdxl"])
def test_every_module_is_found_as_stable_diffusions_first_code_names_it(make: Callable[..., nn.Module]) -> None:
    """Held against the naming of single files, written down separately."""
    unet = make(layers=2)
    weights = {name: value for name, value in unet.state_dict().items() if name.endswith(".weight")}
    known = spellings(unet, is_unet=True)
    modules = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    for name in modules:
        original = original_name(f"{name}.weight", weights).removesuffix(".weight")
        assert known[original] == known[original.replace(".", "_")] == known[name.replace(".", "_")] == name


# What a run writes


def test_the_copy_for_comfyui_and_a1111_changes_every_module_alike(base: BaseModel, tmp_path: Path) -> None:
    policy = copied_policy(base, rank=3, trained=True)
    base.save_adapter(tmp_path, policy.adapter)
    keys, metadata = read_header(tmp_path / "kohya.safetensors")
    assert {re.sub(r"lora_unet_\w+", "MODULE", key) for key in keys} == {
        "MODULE.lora_down.weight",
        "MODULE.lora_up.weight",
        "MODULE.alpha",
    }
    version = "sdxl_base_v1-0" if "text_encoder_2" in base.pipeline.components else "sd_v1"
    assert metadata == {"ss_base_model_version": version}  # more entries would not be written twice in the same order
    expected = changes(base, tmp_path / "pytorch_lora_weights.safetensors")
    assert len(expected) == len(policy.adapter) // 2 == len(keys) // 3
    assert_changes(base, tmp_path / "kohya.safetensors", expected)
    alphas = {value.item() for key, value in load_file(tmp_path / "kohya.safetensors").items() if key.endswith("alpha")}
    assert alphas == {3.0}
    before = [(tmp_path / name).read_bytes() for name in ("kohya.safetensors", "pytorch_lora_weights.safetensors")]
    base.save_adapter(tmp_path, policy.adapter)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


# What is refused by name

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
OTHERS = {
    f"{MODULE}.hada_w1_a": "a LoHa",
    f"{MODULE}.lokr_w2": "a LoKr",
    f"{MODULE}.a1.weight": "a GLoRA",
    f"{MODULE}.oft_blocks": "an OFT adapter",
    f"{MODULE}.dora_scale": "a DoRA",
    "base_model.model.mid_block.to_q.lora_magnitude_vector": "a DoRA",
    f"{MODULE}.lora_mid.weight": "a LoCon in Tucker form",
    f"{MODULE}.diff": "whole differences of weights",
    f"{MODULE}.lora_B.bias": "a LoRA with biases",
    "unet.mid_block.to_q.ia3_l": r"an \(IA\)³ adapter",
    "emb_params": "a textual-inversion embedding",
    "<my-token>": "a textual-inversion embedding",
    "clip_g": "a textual-inversion embedding",
    "ip_adapter.1.to_k_ip.weight": "an IP-Adapter",
    "control_model.zero_convs.0.0.weight": "a ControlNet",
    "down_blocks.0.motion_modules.0.to_q.lora_A.weight": "AnimateDiff",
    "unet:0:up": "cloneofsimo",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "a LoRA for Flux",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "a LoRA for Flux",
    "lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": "a LoRA for Stable Diffusion 3",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": "a LoRA for Stable Diffusion 3",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "a LoRA for a diffusion transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "a whole model",
    "down_blocks.0.resnets.0.conv1.weight": "a whole UNet",
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_is_no_such_lora_is_named_as_what_it_is(key: str, tmp_path: Path) -> None:
    lora = {f"{MODULE}.lora_down.weight": torch.ones(2, 2), f"{MODULE}.lora_up.weight": torch.ones(2, 2)}
    path = saved(tmp_path / "other.safetensors", lora | {key: torch.ones(2)})
    with pytest.raises(ValueError, match=rf"^adapters: '{path}' is .*{OTHERS[key]}") as error:
        check_adapter(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"peft_type": "LOHA"}, "is a PEFT adapter of type LOHA"),
        ({"peft_type": "LORA", "use_dora": True}, "is a DoRA"),
        (
            {"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"},
            "is a LoRA of weights that pissa_niter_4 changed",
        ),
        ([1], "is damaged: .*adapter_config.json is no table"),
    ],
)
def test_a_peft_folder_of_another_kind_is_named(settings: object, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    saved(tmp_path / "adapter_model.safetensors", {"base_model.model.to_q.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=rf"^adapters: '{tmp_path}' {complaint}"):
        check_adapter(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04cos\nsystem\n."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_damaged_file_is_named_in_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lora{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^adapters: '{path}' is damaged") as error:
        check_adapter(str(path))
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
