"""Checkpoints in the layout of open_clip, as the CLIPModel that computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import normal, same_weights
from open_clip_layout import logits_per_text, open_clip_layout, random_state
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from stepalign.judges.spm_files import vit_h_config
from stepalign.scorers.open_clip import convert_open_clip, load_open_clip, open_clip_config
from stepalign.support.tensor_files import read_tensors

HEADS = (2, 3)
IDS = torch.tensor([[0, 5, 9, 49, 0, 0, 0], [0, 5, 30, 7, 8, 48, 49]])


def images() -> Tensor:
    return normal(2, 3, 12, 12, dtype=torch.float32)


def saved(folder: Path, value: object) -> Path:
    torch.save(value, folder / "weights.pt")
    return folder / "weights.pt"


def logits(model: CLIPModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, pixel_values=images()).logits_per_text


# The same network


def test_the_model_computes_what_open_clips_network_does(tmp_path: Path) -> None:
    """With torch's attention on the fused weights, pre-norm blocks, a causal mask, the class and the highest token."""
    state = random_state()
    model = load_open_clip(saved(tmp_path, state), hidden_act="gelu", heads=HEADS)
    expected = logits_per_text(state, images(), IDS, heads=HEADS)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_the_model_of_a_model_is_itself(tiny_clip: CLIPModel) -> None:
    state = open_clip_layout(tiny_clip)
    config = open_clip_config(state, hidden_act="gelu", heads=(2, 2))
    config.text_config.eos_token_id = tiny_clip.config.text_config.eos_token_id
    model = CLIPModel(config).eval()
    model.load_state_dict(convert_open_clip(state))
    assert same_weights(model, tiny_clip)
    ids, pixels = torch.tensor([[5, 9, 11, 600]]), normal(3, 3, 32, 32, dtype=torch.float32)
    assert tiny_clip.config.text_config.eos_token_id == 600
    with torch.no_grad():
        both = [clip(input_ids=ids, pixel_values=pixels).logits_per_text for clip in (model, tiny_clip)]
    assert torch.equal(*both)


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_the_activation_is_the_one_asked_for(tmp_path: Path, hidden_act: str) -> None:
    path = saved(tmp_path, random_state())
    model = load_open_clip(path, hidden_act=hidden_act, heads=HEADS)
    assert {model.config.text_config.hidden_act, model.config.vision_config.hidden_act} == {hidden_act}
    gelu = load_open_clip(path, hidden_act="gelu", heads=HEADS)
    assert torch.equal(logits(model), logits(gelu)) == (hidden_act == "gelu")


# Keys


def test_wrappers_and_openais_numbers_are_taken_off() -> None:
    state = random_state()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    wrapped |= {"input_resolution": torch.tensor(12), "context_length": torch.tensor(7), "vocab_size": torch.tensor(50)}
    expected = convert_open_clip(state)
    found = convert_open_clip(wrapped)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_every_unknown_and_missing_key_is_named() -> None:
    state = random_state()
    del state["visual.proj"], state["transformer.resblocks.0.ln_2.bias"], state["ln_final.weight"]
    state |= {"logit_bias": torch.zeros(()), "transformer.resblocks.1.attn.extra": torch.zeros(2)}
    with pytest.raises(ValueError, match="is missing") as raised:
        convert_open_clip(state)
    assert str(raised.value).split("; ") == [
        "ln_final.weight is missing",
        "transformer.resblocks.0.ln_2.bias is missing",
        "visual.proj is missing",
        "logit_bias is unknown",
        "transformer.resblocks.1.attn.extra is unknown",
    ]


def test_a_block_left_out_is_missing() -> None:
    state = {
        key: value for key, value in random_state(num_layers=3).items() if "visual.transformer.resblocks.1." not in key
    }
    with pytest.raises(ValueError, match=r"visual\.transformer\.resblocks\.1\.attn\.in_proj_weight is missing"):
        convert_open_clip(state)


@pytest.mark.parametrize("state", [{}, {"logit_scale": torch.zeros(())}, {"conv1.weight": torch.zeros(2, 3, 4, 4)}])
def test_other_models_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"visual\.transformer\.resblocks\.0\.attn\.in_proj_bias is missing"):
        convert_open_clip(state)


def test_a_tensor_with_and_without_prefix_is_refused() -> None:
    state = random_state()
    state["module.logit_scale"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match="twice, with and without"):
        convert_open_clip(state)


# The config


def published(config: CLIPConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return open_clip_layout(CLIPModel(config))


def test_the_config_of_vit_h_is_read_off_its_shapes() -> None:
    expected = vit_h_config()
    found = open_clip_config(published(expected), hidden_act="gelu")
    assert found.to_dict() == expected.to_dict()
    heads = found.vision_config.num_attention_heads, found.text_config.num_attention_heads
    assert heads == (1280 // 80, 1024 // 64)


def test_the_config_of_openais_vit_l_is_read_off_its_shapes() -> None:
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    common = {"projection_dim": 768}
    expected = CLIPConfig(
        text_config=text | common | {"eos_token_id": 2}, vision_config=vision | common | {"patch_size": 14}, **common
    )
    found = open_clip_config(published(expected), hidden_act="quick_gelu")
    assert found.to_dict() == expected.to_dict()


def test_a_width_that_is_not_published_needs_heads() -> None:
    with pytest.raises(ValueError, match=r"no published vision tower is 16 wide .*give heads"):
        open_clip_config(random_state(), hidden_act="gelu")
    with pytest.raises(ValueError, match="no published text tower is 12 wide"):
        open_clip_config(random_state(vision=768), hidden_act="gelu")
    with pytest.raises(ValueError, match="3 heads do not divide a tower 16 wide"):
        open_clip_config(random_state(), hidden_act="gelu", heads=(3, 3))


def test_patches_that_make_no_square_are_refused() -> None:
    state = random_state()
    state["visual.positional_embedding"] = torch.zeros(9, 16)
    with pytest.raises(ValueError, match="8 patches, which make no square"):
        open_clip_config(state, hidden_act="gelu", heads=HEADS)


# Files


def test_every_kind_of_file_gives_the_same_model(tmp_path: Path) -> None:
    state = random_state()
    files = {
        "plain.pt": state,
        "wrapped.pt": {"state_dict": state, "epoch": 3},
        "trainers.pt": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / name)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "weights.safetensors")
    first, *others = [
        load_open_clip(tmp_path / name, hidden_act="gelu", heads=HEADS)
        for name in (*files, "old.pt", "weights.safetensors")
    ]
    assert all(same_weights(first, other) for other in others)
    assert len(others) == 4


def test_a_loaded_model_is_whole_and_does_not_train(tmp_path: Path) -> None:
    model = load_open_clip(saved(tmp_path, random_state()), hidden_act="gelu", heads=HEADS)
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], {"state_dict": {"a": 1}}, {"a": torch.zeros(2), "b": 3}, {1: torch.zeros(2)}]
)
def test_a_file_without_a_dict_of_tensors_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="is no dict of tensors by name"):
        read_tensors(saved(tmp_path, value))


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    state, path = random_state(), tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged, or holds more"):
        read_tensors(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.pt"):
        read_tensors(tmp_path / "nothing.pt")


def test_tensors_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    state = random_state()
    state["visual.ln_post.weight"] = torch.zeros(5)
    with pytest.raises(
        ValueError, match=r"weights\.pt holds no CLIP in the layout of open_clip: .*post_layernorm\.weight"
    ):
        load_open_clip(saved(tmp_path, state), hidden_act="gelu", heads=HEADS)
