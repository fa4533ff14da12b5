"""A Stable Diffusion folder or file: encoded, decoded and scheduled as diffusers does it, and adapters it can load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import copied_policy
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler, StableDiffusionPipeline
from original_layout import original_layout
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepalign.models import sd
from stepalign.models.sd import StableDiffusion

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
def fresh(tiny_sd: StableDiffusion) -> StableDiffusion:
    """The tiny model before anything was encoded."""
    return StableDiffusion(tiny_sd.pipeline, tiny_sd.latent_shape, tiny_sd.name)


def latents(num: int = 2) -> Tensor:
    return torch.randn(num, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_same_model(one: DiffusionPipeline, other: DiffusionPipeline) -> None:
    for name in ("unet", "vae", "text_encoder"):
        weights, expected = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], value) for key, value in expected.items()), name


# Loading


def test_a_folder_is_loaded_frozen_in_float32(tiny_sd_folder: Path, pipeline: DiffusionPipeline) -> None:
    model = sd.load(str(tiny_sd_folder))
    assert_same_model(model.pipeline, pipeline)
    assert model.latent_shape == (4, 8, 8)
    assert model.network is model.pipeline.unet
    for module in (model.pipeline.unet, model.pipeline.vae, model.pipeline.text_encoder):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weights_can_be_loaded_in_half_precision(tiny_sd_folder: Path) -> None:
    model = sd.load(str(tiny_sd_folder), dtype=torch.bfloat16)
    assert model.network.dtype == torch.bfloat16
    assert model.decode(latents()).dtype == torch.float32


def test_a_resolution_sets_the_size_of_the_latents(tiny_sd_folder: Path) -> None:
    assert sd.load(str(tiny_sd_folder), resolution=96).latent_shape == (4, 12, 12)


@pytest.mark.parametrize("resolution", [100, 0, -64])
def test_a_resolution_that_does_not_fit_is_refused(tiny_sd_folder: Path, resolution: int) -> None:
    with pytest.raises(ValueError, match=rf"resolution must be .*8.* got {resolution}"):
        sd.load(str(tiny_sd_folder), resolution=resolution)


def test_a_file_in_the_original_layout_is_the_same_model(
    single_file: Path, tiny_sd_folder: Path, tiny_sd: StableDiffusion
) -> None:
    model = sd.load(str(single_file), config=str(tiny_sd_folder))
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


# Text


def test_encoding_is_what_the_pipeline_conditions_on(fresh: StableDiffusion, pipeline: DiffusionPipeline) -> None:
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, [""] * 3)
    assert torch.allclose(fresh.encode(PROMPTS).tokens, positive, atol=1e-6)
    assert torch.allclose(fresh.negative().tokens, negative[:1], atol=1e-6)


def test_each_distinct_prompt_is_encoded_once(fresh: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Images


def test_decoding_is_what_the_pipeline_draws(tiny_sd: StableDiffusion, pipeline: DiffusionPipeline) -> None:
    def draw(output_type: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return pipeline("a cat", num_inference_steps=2, generator=generator, output_type=output_type).images

    with torch.no_grad():
        images = tiny_sd.decode(draw("latent"))
    assert images.shape == (1, 3, 64, 64)
    assert torch.allclose((images / 2 + 0.5).clamp(0, 1), draw("pt"), atol=1e-6)


def test_decoding_can_be_differentiated(tiny_sd: StableDiffusion) -> None:
    x_0 = latents().requires_grad_()
    tiny_sd.decode(x_0).sum().backward()
    assert x_0.grad.abs().sum() > 0


def test_images_are_encoded_to_the_scale_latents_have(tiny_sd: StableDiffusion, pipeline: DiffusionPipeline) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = tiny_sd.encode_images(images)
    with torch.no_grad():
        expected = pipeline.vae.encode(images).latent_dist.mode() * 0.18215
    assert encoded.shape == (2, 4, 8, 8)
    assert torch.allclose(encoded, expected, atol=1e-6)


# Schedule


def test_the_schedule_is_the_models_own_on_a_ddim_grid(tiny_sd: StableDiffusion) -> None:
    assert isinstance(tiny_sd.pipeline.scheduler, PNDMScheduler)
    schedule = tiny_sd.schedule(20)
    assert schedule.timesteps == tuple(range(951, 0, -50))
    assert schedule.prediction_type == "epsilon"
    assert schedule.final_alpha_cumprod == pytest.approx(0.99915, abs=1e-6)
    expected = DDIMScheduler.from_config(tiny_sd.pipeline.scheduler.config).alphas_cumprod
    assert torch.equal(schedule.alphas_cumprod, expected.double())


def test_the_schedule_follows_the_models_config(tiny_sd_folder: Path) -> None:
    model = sd.load(str(tiny_sd_folder))
    model.pipeline.scheduler = PNDMScheduler.from_config(
        model.pipeline.scheduler.config, prediction_type="v_prediction", set_alpha_to_one=True, steps_offset=0
    )
    schedule = model.schedule(10)
    assert (schedule.prediction_type, schedule.final_alpha_cumprod) == ("v_prediction", 1.0)
    assert schedule.timesteps == tuple(range(900, -1, -100))


# Adapters


@pytest.mark.parametrize("which", ["adapter", "ema"])
def test_a_saved_adapter_makes_the_pipeline_predict_as_the_policy(
    which: str, tiny_sd: StableDiffusion, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    policy = copied_policy(tiny_sd, guidance_scale=1.0, trained=True)
    tiny_sd.save_adapter(tmp_path / "adapter", getattr(policy, which))
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    x_t, t, cond = latents(), torch.tensor([951, 1]), tiny_sd.encode(["a cat", "a dog"])
    with torch.no_grad():
        base = pipe.unet(x_t, t, encoder_hidden_states=cond.tokens).sample
        pipe.load_lora_weights(tmp_path / "adapter")
        predicted = pipe.unet(x_t, t, encoder_hidden_states=cond.tokens).sample
        expected = policy.predict(x_t, t, cond, role="policy" if which == "adapter" else "ema")
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert not torch.allclose(predicted, base, atol=1e-2)


# Refusals


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
        sd.load(name, config=config)
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


def test_a_config_that_is_not_there_is_refused(single_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(str(single_file), config="no-such-owner/no-such-model")
