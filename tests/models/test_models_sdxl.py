"""A Stable Diffusion XL folder or file: conditioned and guided as diffusers does it, trained as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_draws_as, copied_policy, normal, same_weights
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from worlds import BrightnessJudge, make_trainer

from stepalign.core.batch import Conditioning
from stepalign.models.base import BaseModel
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork, LoraPolicy

PROMPTS = ["a cat", "a dog on a mat", "ä " * 40]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl_folder: Path) -> DiffusionPipeline:
    """The same folder as its users load it."""
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder)


def latents(num: int = 2) -> Tensor:
    return normal(num, 4, 8, 8, dtype=torch.float32)


def assert_same_conditioning(one: Conditioning, other: Conditioning) -> None:
    for name in ("tokens", "pooled", "time_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# Loading


def test_a_folder_is_loaded_frozen_with_all_its_parts(tiny_sdxl: BaseModel, pipeline: DiffusionPipeline) -> None:
    assert isinstance(tiny_sdxl.pipeline, StableDiffusionXLPipeline)
    assert tiny_sdxl.latent_shape == (4, 8, 8)
    for part in PARTS:
        module = tiny_sdxl.pipeline.components[part]
        assert same_weights(module, pipeline.components[part])
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_file_in_the_original_layout_is_the_same_model(
    tiny_sdxl_file: Path, tiny_sdxl_folder: Path, tiny_sdxl: BaseModel
) -> None:
    model = load(str(tiny_sdxl_file), config=str(tiny_sdxl_folder))
    for part in PARTS:
        assert same_weights(model.pipeline.components[part], tiny_sdxl.pipeline.components[part]), part
    assert_same_conditioning(model.encode(PROMPTS), tiny_sdxl.encode(PROMPTS))
    assert_same_conditioning(model.negative(), tiny_sdxl.negative())
    assert model.latent_shape == tiny_sdxl.latent_shape
    assert model.schedule(20).timesteps == tiny_sdxl.schedule(20).timesteps


def test_the_schedule_is_the_models_own_on_a_ddim_grid(tiny_sdxl: BaseModel) -> None:
    schedule = tiny_sdxl.schedule(20)
    assert schedule.timesteps == (*range(951, 0, -50),)
    assert schedule.prediction_type == "epsilon"
    assert schedule.final_alpha_cumprod == pytest.approx(0.99915, abs=1e-6)


# Text


@pytest.mark.parametrize("zeros", [True, False])
def test_conditioning_is_the_pipelines(zeros: bool, tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": zeros}))
    model, pipeline = load(str(folder), resolution=(96, 64)), StableDiffusionXLPipeline.from_pretrained(folder)
    with torch.no_grad():
        tokens, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS)
    size = (96, 64)
    time_ids = pipeline._get_add_time_ids(size, (0, 0), size, torch.float32, text_encoder_projection_dim=20)
    cond = model.encode(PROMPTS)
    torch.testing.assert_close(cond.tokens, tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(cond.pooled, pooled, rtol=0, atol=1e-6)
    assert torch.equal(cond.time_ids, time_ids.repeat(3, 1))
    torch.testing.assert_close(model.negative().tokens, negative[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.negative().pooled, negative_pooled[:1], rtol=0, atol=1e-6)
    assert torch.equal(model.negative().time_ids, time_ids)
    assert bool(negative.any()) is not zeros
    assert model.num_encoded == (3 if zeros else 4)


def test_each_distinct_prompt_runs_once_through_both_encoders(
    tiny_sdxl: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def count(input_ids: Tensor, **rest: Any) -> Any:
            rows.append(len(input_ids))
            return forward(input_ids, **rest)

        return count

    model = replace(tiny_sdxl)
    for encoder in (model.pipeline.text_encoder, model.pipeline.text_encoder_2):
        monkeypatch.setattr(encoder, "forward", counted(encoder.forward))
    first, second = model.encode(["a cat", "a dog", "a cat"]), model.encode(["a dog", "two boats"])
    assert (rows, model.num_encoded) == ([2, 2, 1, 1], 3)
    assert_same_conditioning(first[[0]], first[[2]])
    assert_same_conditioning(first[[1]], second[[0]])
    assert not torch.equal(first.pooled[0], first.pooled[1])


# The network


def test_samples_are_the_pipelines(tiny_sdxl_folder: Path, pipeline: DiffusionPipeline) -> None:
    assert_draws_as(pipeline, load(str(tiny_sdxl_folder), resolution=(96, 64)))


def test_slices_of_a_batch_keep_their_conditioning(tiny_sdxl: BaseModel) -> None:
    given = {"negative": tiny_sdxl.negative(), "guidance_scale": 3.0}
    x_t, t, cond = latents(3), torch.tensor([951, 501, 1]), tiny_sdxl.encode(PROMPTS)
    with torch.no_grad():
        whole = GuidedNetwork(tiny_sdxl.network, **given)(x_t, t, cond)
        sliced = GuidedNetwork(tiny_sdxl.network, max_batch=2, **given)(x_t, t, cond)
        swapped = GuidedNetwork(tiny_sdxl.network, **given)(x_t, t, replace(cond, pooled=cond.pooled.flip(0)))
    torch.testing.assert_close(sliced, whole, rtol=1e-5, atol=1e-5)
    assert (swapped - whole).abs().max() > 1e-3  # the pooled embedding matters even to so small a network


def test_a_network_in_half_precision_is_given_what_it_takes(tiny_sdxl_folder: Path) -> None:
    """Sizes are not rounded before the network has embedded them: 2056 would be 2048 in bfloat16."""
    model = load(str(tiny_sdxl_folder), dtype=torch.bfloat16, resolution=(2056, 64))
    seen: dict[str, Any] = {}
    model.network.register_forward_pre_hook(lambda module, args, given: seen.update(given), with_kwargs=True)
    cond = model.encode(["a cat"])
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=2.0)
    with torch.no_grad():
        prediction = guided(latents(1), torch.tensor([501]), replace(cond, pooled=cond.pooled.float()))
    added = seen["added_cond_kwargs"]
    assert (prediction.dtype, added["text_embeds"].dtype) == (torch.float32, torch.bfloat16)
    assert added["time_ids"].tolist() == [[2056, 64, 0, 0, 2056, 64]] * 2


def test_a_round_of_training_draws_judges_and_learns(tiny_sdxl_folder: Path) -> None:
    model = load(str(tiny_sdxl_folder), resolution=(96, 64))
    policy = copied_policy(model)
    before = {name: value.clone() for name, value in policy.adapter.items()}
    parts = {"encode": model.encode, "latent_shape": model.latent_shape, "judge": BrightnessJudge(100.0)}
    trainer = make_trainer(policy=policy, num_steps=4, prompts=["a cat", "a dog"], prompts_per_round=2, **parts)
    row = trainer.round()
    assert row["comparisons"] > 0
    assert any(not torch.equal(before[name], value) for name, value in policy.adapter.items())


def test_the_real_networks_attention_projections_are_found() -> None:
    """SDXL's UNet has 70 transformer layers of two attentions with four projections each."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
        negative = Conditioning(torch.zeros(1, 77, 2048), torch.zeros(1, 1280), torch.zeros(1, 6))
        policy = LoraPolicy(GuidedNetwork(unet, negative=negative, guidance_scale=5.0), rank=64, seed=0)
    assert len(policy.adapter) == 2 * 560
    assert sum(tensor.numel() for tensor in policy.adapter.values()) == 92_897_280


def test_a_saved_adapter_makes_the_pipeline_predict_as_the_policy(
    tiny_sdxl: BaseModel, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    policy = copied_policy(tiny_sdxl, guidance_scale=1.0, trained=True)
    tiny_sdxl.save_adapter(tmp_path / "adapter", policy.adapter)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "kohya.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder)
    pipe.load_lora_weights(tmp_path / "adapter")
    x_t, t, cond = latents(), torch.tensor([951, 1]), tiny_sdxl.encode(["a cat", "a dog"])
    with torch.no_grad():
        added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
        predicted = pipe.unet(x_t, t, encoder_hidden_states=cond.tokens, added_cond_kwargs=added).sample
        expected = policy.predict(x_t, t, cond, role="policy")
        base = policy.predict(x_t, t, cond, role="reference")
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert not torch.allclose(predicted, base, atol=1e-2)
