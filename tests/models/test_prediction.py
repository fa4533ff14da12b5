"""What a model predicts: its folder's config, a single file's marks or the user's word, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_draws_as
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from original_layout import original_layout
from safetensors.torch import load_file, save_file
from tiny_models import save_sd2
from transformers import CLIPTokenizer

from stepalign.core.choices import PredictionType
from stepalign.models.base import BaseModel
from stepalign.models.load import load
from stepalign.models.prediction import prediction_of_file

EMPTY = torch.tensor([])
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SD1, SD2, XL = "cond_stage_model.transformer.a", "cond_stage_model.model.a", "conditioner.embedders.0.a"
V = {"prediction_type": "v_prediction"}
EPSILON = {"prediction_type": "epsilon"}


@pytest.fixture(scope="module")
def sd2_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2.x, which predicts v."""
    return save_sd2(tmp_path_factory.mktemp("sd2"), tokenizer)


@pytest.fixture(scope="module")
def sd2_file(sd2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "sd2.safetensors"
    save_file(original_layout(StableDiffusionPipeline.from_pretrained(sd2_folder, safety_checker=None)), path)
    return path


def with_schedule(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a model's folder with another noise schedule."""
    shutil.copytree(folder, target)
    path = target / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


# The marks of a single file


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ([SD1], {}, {}),
        ([XL], {}, {}),
        ([XL, "v_pred"], {}, V),
        ([XL, "v_pred", "ztsnr"], {}, V | ZERO_SNR),
        ([SD1, "v_pred"], {}, V),
        ([SD1], {"modelspec.prediction_type": "v"}, V),
        ([SD2], {"modelspec.prediction_type": "epsilon"}, EPSILON),
        ([XL], {"modelspec.predict_key": "v"}, V),
        ([SD2], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V),
        ([SD2], {"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON),
        ([XL], {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, {}),
        ([XL, "v_pred"], {"modelspec.prediction_type": "V"}, V),
    ],
)
def test_a_files_marks_say_what_it_predicts(
    keys: list[str], metadata: dict[str, str], expected: dict[str, object]
) -> None:
    assert prediction_of_file(keys, metadata, given=None, has_config=False) == expected


@pytest.mark.parametrize(
    ("keys", "metadata", "complaint"),
    [
        ([SD2], {}, "predicts v at 768 pixels and epsilon at 512"),
        ([XL, "v_pred"], {"modelspec.prediction_type": "epsilon"}, "contradict each other"),
        ([XL], {"modelspec.prediction_type": "flow"}, "its modelspec.prediction_type is 'flow'"),
    ],
)
def test_what_the_marks_leave_open_is_refused_with_the_flag_to_give(
    keys: list[str], metadata: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"{complaint}.*--base.prediction_type"):
        prediction_of_file(keys, metadata, given=None, has_config=False)
    assert prediction_of_file(keys, metadata, given="epsilon", has_config=False) == EPSILON


@pytest.mark.parametrize("mark", ["edm_mean", "edm_std", "edm_vpred.sigma_max"])
def test_edm_models_are_refused_by_name(mark: str) -> None:
    with pytest.raises(ValueError, match=rf"an EDM model \({mark}: Playground v2.5, CosXL\)"):
        prediction_of_file([XL, "v_pred", mark], {}, given="v_prediction", has_config=True)


def test_without_marks_the_config_decides() -> None:
    assert prediction_of_file([SD2], {}, given=None, has_config=True) == {}


# Whole models


def drawn_as_v(pipeline: DiffusionPipeline, model: BaseModel, *, zero_snr: bool) -> None:
    """Check that the model is sampled as diffusers samples it with the schedule that its makers advise."""
    changes = V | (ZERO_SNR if zero_snr else {})
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)
    assert_draws_as(pipeline, model, num_steps=4)  # diffusers steps by 1000 // steps, which a grid need not meet


@pytest.mark.parametrize("zero_snr", [True, False])
def test_a_file_with_v_prediction_keys_is_sampled_so_whatever_its_config_says(
    zero_snr: bool, tiny_sdxl_file: Path, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    """As NoobAI-XL's v-prediction files are marked; the config it borrows is that of SDXL, which predicts epsilon."""
    marks = {"v_pred": EMPTY, "ztsnr": EMPTY} if zero_snr else {"v_pred": EMPTY}
    save_file(load_file(tiny_sdxl_file) | marks, tmp_path / "v.safetensors")
    model = load(str(tmp_path / "v.safetensors"), config=str(tiny_sdxl_folder))
    schedule = model.schedule(4)
    assert schedule.prediction_type == "v_prediction"
    assert (schedule.alphas_cumprod[-1] == 0) == zero_snr == (schedule.timesteps[0] == 999)
    drawn_as_v(StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder), model, zero_snr=zero_snr)


def test_a_stable_diffusion_2_file_predicts_as_its_config_or_the_user_says(
    sd2_file: Path, sd2_folder: Path, tmp_path: Path
) -> None:
    epsilon = with_schedule(sd2_folder, tmp_path / "base", prediction_type="epsilon")
    given: tuple[tuple[Path, PredictionType | None, str], ...] = (
        (sd2_folder, None, "v_prediction"),
        (epsilon, None, "epsilon"),
        (epsilon, "v_prediction", "v_prediction"),
    )
    for config, word, expected in given:
        model = load(str(sd2_file), config=str(config), prediction_type=word)
        assert model.schedule(4).prediction_type == expected
    drawn_as_v(StableDiffusionPipeline.from_pretrained(sd2_folder, safety_checker=None), model, zero_snr=False)
    with pytest.raises(ValueError, match=r"^model: cannot load .*sd2.safetensors.*--base.prediction_type v_prediction"):
        load(str(sd2_file))


def test_the_users_word_holds_for_a_folder_too(tiny_sd_folder: Path) -> None:
    model = load(str(tiny_sd_folder), prediction_type="v_prediction")
    assert model.schedule(4).prediction_type == "v_prediction"
    drawn_as_v(StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None), model, zero_snr=False)


# Schedules that the network cannot be sampled on


def test_zero_terminal_snr_with_an_epsilon_model_is_refused_at_loading(tiny_sd_folder: Path, tmp_path: Path) -> None:
    folder = str(with_schedule(tiny_sd_folder, tmp_path / "model", rescale_betas_zero_snr=True))
    complaint = r"noise schedule that ends at a signal-to-noise ratio of zero \(rescale_betas_zero_snr\)"
    with pytest.raises(ValueError, match=rf"^model: '{folder}' has a {complaint}.*--base.prediction_type v_prediction"):
        load(folder)
    assert load(folder, prediction_type="v_prediction").schedule(4).alphas_cumprod[-1] == 0


def test_a_prediction_that_is_not_known_is_refused(tiny_sd_folder: Path, tmp_path: Path) -> None:
    folder = str(with_schedule(tiny_sd_folder, tmp_path / "model", prediction_type="flow_prediction"))
    with pytest.raises(
        ValueError, match=rf"^model: '{folder}' predicts 'flow_prediction'; supported are epsilon, v_pred"
    ):
        load(folder)
