"""A Stable Diffusion folder or file: encoded, decoded and scheduled as diffusers does it, and adapters it can load."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_draws_as, copied_policy, same_weights
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler, StableDiffusionPipeline
from original_layout import original_layout
from safetensors.torch import load_file, save_file
from tiny_models import save_sd2
from torch import Tensor
from transformers import CLIPTokenizer

from stepalign.models.base import BaseModel
from stepalign.models.load import load

PROMPTS = ["a cat", "a dog on a mat", "ä " * 40]


@pytest.fixture(scope="module")
def pipeline(tiny_sd_folder: Path) -> DiffusionPipeline:
    """The same folder as its users load it."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def single_file(pipeline: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one file in Stable Diffusion's original layout."""
    path = tmp_path_factory.mktemp("original") / "v1-5.safetensors"
    save_file(original_layout(pipeline), path)
    return path


@pytest.fixture
def fresh(tiny_sd: BaseModel) -> BaseModel:
    """The tiny model before anything was encoded."""
    return dataclasses.replace(tiny_sd)


def latents(num: int = 2) -> Tensor:
    return torch.randn(num, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_same_model(one: DiffusionPipeline, other: DiffusionPipeline) -> None:
    for name in ("unet", "vae", "text_encoder"):
        weights, expected = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], value) for key, value in expected.items()), name


# Loading


def test_a_folder_is_loaded_frozen_in_float32(tiny_sd_folder: Path, pipeline: DiffusionPipeline) -> None:
    model = load(str(tiny_sd_folder))
    assert_same_model(model.pipeline, pipeline)
    assert model.latent_shape == (4, 8, 8)
    assert model.network is model.pipeline.unet
    for module in (model.pipeline.unet, model.pipeline.vae, model.pipeline.text_encoder):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weights_can_be_loaded_in_half_precision(tiny_sd_folder: Path) -> None:
    model = load(str(tiny_sd_folder), dtype=torch.bfloat16)
    assert model.network.dtype == torch.bfloat16
    assert model.decode(latents()).dtype == torch.float32


def test_a_resolution_sets_the_size_of_the_latents(tiny_sd_folder: Path) -> None:
    assert load(str(tiny_sd_folder), resolution=96).latent_shape == (4, 12, 12)


@pytest.mark.parametrize("resolution", [100, 0, -64])
def test_a_resolution_that_does_not_fit_is_refused(tiny_sd_folder: Path, resolution: int) -> None:
    with pytest.raises(ValueError, match=rf"resolution must be .*8.* got {resolution}"):
        load(str(tiny_sd_folder), resolution=resolution)


def test_a_file_in_the_original_layout_is_the_same_model(
    single_file: Path, tiny_sd_folder: Path, tiny_sd: BaseModel
) -> None:
    model = load(str(single_file), config=str(tiny_sd_folder))
    assert_same_model(model.pipeline, tiny_sd.pipeline)
    cond, expected_cond = model.encode(PROMPTS[:2]), tiny_sd.encode(PROMPTS[:2])
    assert torch.equal(cond.tokens, expected_cond.tokens)
    t = torch.tensor([951, 1])
    with torch.no_grad():
        predicted = model.network(latents(), t, encoder_hidden_states=cond.tokens).sample
        expected = tiny_sd.network(latents(), t, encoder_hidden_states=expected_cond.tokens).sample
        assert torch.equal(predicted, expected)
        assert torch.equal(model.decode(latents()), tiny_sd.decode(latents()))
    assert model.schedule(20).timesteps == tiny_sd.schedule(20).timesteps
    assert model.latent_shape == tiny_sd.latent_shape


def test_tensors_under_the_names_of_published_folders_are_found(
    tiny_sd_folder: Path, tiny_sd: BaseModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "model")
    weights = folder / "text_encoder/model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(weights).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert same_weights(load(str(folder)).pipeline.text_encoder, tiny_sd.pipeline.text_encoder)


def test_stable_diffusion_2_predicts_v(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    folder = save_sd2(tmp_path, tokenizer)
    model, pipeline = load(str(folder)), StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert model.schedule(10).prediction_type == "v_prediction"
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, [""] * 3)
    assert torch.allclose(model.encode(PROMPTS).tokens, positive, atol=1e-6)
    assert torch.allclose(model.negative().tokens, negative[:1], atol=1e-6)
    assert_draws_as(pipeline, model)


# Text


def test_encoding_is_what_the_pipeline_conditions_on(fresh: BaseModel, pipeline: DiffusionPipeline) -> None:
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, [""] * 3)
    assert torch.allclose(fresh.encode(PROMPTS).tokens, positive, atol=1e-6)
    assert torch.allclose(fresh.negative().tokens, negative[:1], atol=1e-6)


def test_each_distinct_prompt_is_encoded_once(fresh: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    forward = fresh.pipeline.text_encoder.forward

    def counted(input_ids: Tensor, **rest: object) -> object:
        rows.append(len(input_ids))
        return forward(input_ids, **rest)

    monkeypatch.setattr(fresh.pipeline.text_encoder, "forward", counted)
    first = fresh.encode(["a cat", "a dog", "a cat"])
    second = fresh.encode(["a dog", "two boats"])
    assert (rows, fresh.num_encoded) == ([2, 1], 3)
    assert torch.equal(first.tokens[0], first.tokens[2])
    assert torch.equal(first.tokens[1], second.tokens[0])


def test_forgotten_prompts_are_encoded_again_and_counted_again(fresh: BaseModel) -> None:
    first = fresh.encode(["a cat", "a dog"])
    fresh.clear_cache()
    assert fresh.num_encoded == 2
    assert torch.equal(fresh.encode(["a cat", "a dog"]).tokens, first.tokens)
    assert fresh.num_encoded == 4


# Images


def test_decoding_is_what_the_pipeline_draws(tiny_sd: BaseModel, pipeline: DiffusionPipeline) -> None:
    def draw(output_type: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return pipeline("a cat", num_inference_steps=2, generator=generator, output_type=output_type).images

    with torch.no_grad():
        images = tiny_sd.decode(draw("latent"))
    assert images.shape == (1, 3, 64, 64)
    assert torch.allclose((images / 2 + 0.5).clamp(0, 1), draw("pt"), atol=1e-6)


def test_decoding_can_be_differentiated(tiny_sd: BaseModel) -> None:
    x_0 = latents().requires_grad_()
    tiny_sd.decode(x_0).sum().backward()
    assert x_0.grad.abs().sum() > 0


def test_images_are_encoded_to_the_scale_latents_have(tiny_sd: BaseModel, pipeline: DiffusionPipeline) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = tiny_sd.encode_images(images)
    with torch.no_grad():
        expected = pipeline.vae.encode(images).latent_dist.mode() * 0.18215
    assert encoded.shape == (2, 4, 8, 8)
    assert torch.allclose(encoded, expected, atol=1e-6)


def test_images_need_not_be_square(tiny_sd_folder: Path, pipeline: DiffusionPipeline) -> None:
    model = load(str(tiny_sd_folder), resolution=(96, 64))
    assert model.latent_shape == (4, 12, 8)
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = model.encode_images(images)
    assert encoded.shape == (1, 4, 12, 8)
    assert model.decode(encoded).shape == images.shape
    assert_draws_as(pipeline, model)


# Schedule


def test_the_schedule_is_the_models_own_on_a_ddim_grid(tiny_sd: BaseModel) -> None:
    assert isinstance(tiny_sd.pipeline.scheduler, PNDMScheduler)
    schedule = tiny_sd.schedule(20)
    assert schedule.timesteps == tuple(range(951, 0, -50))
    assert schedule.prediction_type == "epsilon"
    assert schedule.final_alpha_cumprod == pytest.approx(0.99915, abs=1e-6)
    expected = DDIMScheduler.from_config(tiny_sd.pipeline.scheduler.config).alphas_cumprod
    assert torch.equal(schedule.alphas_cumprod, expected.double())


def test_the_schedule_follows_the_models_config(tiny_sd_folder: Path) -> None:
    model = load(str(tiny_sd_folder))
    model.pipeline.scheduler = PNDMScheduler.from_config(
        model.pipeline.scheduler.config, prediction_type="v_prediction", set_alpha_to_one=True, steps_offset=0
    )
    schedule = model.schedule(10)
    assert (schedule.prediction_type, schedule.final_alpha_cumprod) == ("v_prediction", 1.0)
    assert schedule.timesteps == tuple(range(900, -1, -100))


# Adapters


@pytest.mark.parametrize("which", ["adapter", "ema"])
def test_a_saved_adapter_makes_the_pipeline_predict_as_the_policy(
    which: str, tiny_sd: BaseModel, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=1.0, trained=True)
    tiny_sd.save_adapter(tmp_path / "adapter", getattr(policy, which))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "kohya.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    x_t, t, cond = latents(), torch.tensor([951, 1]), tiny_sd.encode(["a cat", "a dog"])
    with torch.no_grad():
        base = pipe.unet(x_t, t, encoder_hidden_states=cond.tokens).sample
        pipe.load_lora_weights(tmp_path / "adapter")
        predicted = pipe.unet(x_t, t, encoder_hidden_states=cond.tokens).sample
        expected = policy.predict(x_t, t, cond, role="policy" if which == "adapter" else "ema")
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert not torch.allclose(predicted, base, atol=1e-2)
