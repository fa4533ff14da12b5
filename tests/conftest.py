"""The toy world of the tests: tiny models built in code, nothing downloaded."""

from __future__ import annotations

import stepalign  # noqa: F401  # isort: skip  # before torch: it sets the mode of MKL

import copy
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from original_layout import original_layout
from safetensors.torch import save_file
from tiny_models import save_sd, save_sdxl
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepalign.core.batch import Conditioning, StepComparisons
from stepalign.core.choices import Role
from stepalign.core.protocols import Metrics
from stepalign.core.sampler import DDIM, NoiseSchedule
from stepalign.core.sampling import times_at
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.miniature.base import MAX_TOKENS, make_scheduler, make_tokenizer
from stepalign.models.base import BaseModel
from stepalign.models.load import load
from stepalign.models.policy import GuidedNetwork, LoraPolicy
from stepalign.objectives.settings import Stepwise
from stepalign.objectives.stepwise import stepwise_loss

torch.set_num_threads(1)
# Whoever runs the tests in the background ignores signals (`nohup`, a shell's `&`), which these processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def stable_diffusion_schedule(
    num_steps: int = 20, *, prediction_type: str = "epsilon", set_alpha_to_one: bool = False
) -> NoiseSchedule:
    """Stable Diffusion's schedule on a DDIM grid, from diffusers."""
    scheduler = make_scheduler()
    scheduler.register_to_config(prediction_type=prediction_type)
    scheduler.set_timesteps(num_steps)
    final = 1.0 if set_alpha_to_one else float(scheduler.alphas_cumprod[0])
    return NoiseSchedule(scheduler.alphas_cumprod.double(), final, prediction_type, tuple(scheduler.timesteps.tolist()))


@pytest.fixture
def sampler() -> DDIM:
    return DDIM(stable_diffusion_schedule())


@pytest.fixture(autouse=True)
def hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub counts as asked and there: what tests put in its place is not preceded by an attempt to reach it."""
    monkeypatch.setattr("stepalign.support.hub._answers", [""])


@pytest.fixture(scope="module")
def without_report() -> Iterator[None]:
    """Alignment runs of a module's tests leave out the report's plots and page, a third of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepalign.runs.job.weights_panels", lambda *_: [])
        patch.setattr("stepalign.runs.job.write_report", lambda *_, **__: None)
        yield


@pytest.fixture
def signals_arrive() -> Iterator[None]:
    """Signals that whoever started the tests has them ignore, as `nohup` and `&` do, arrive in this test."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class ToyPolicy:
    """A policy in float64 whose predictions are chosen in advance: role -> prediction, whatever is asked."""

    def __init__(self, **predictions: Tensor) -> None:
        self.predictions = predictions
        self.calls: Counter[Role] = Counter()

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning, *, role: Role) -> Tensor:
        self.calls[role] += len(x_t)
        return self.predictions[role]


def random_conditioning(b: int) -> Conditioning:
    return Conditioning(torch.randn(b, 3, 4))


def tiny_clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(
        text_config={**common, **text, "hidden_act": "gelu"},
        vision_config={**common, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=8,
    )


@pytest.fixture(scope="session")
def tiny_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(tiny_clip_config(tokenizer)).eval()


@pytest.fixture(scope="session")
def tiny_spm_folder(tiny_clip: CLIPModel, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step-aware preference model with random modulations, saved as `judge.path` takes it."""
    folder = tmp_path_factory.mktemp("spm")
    model = StepAwarePreferenceModel.from_clip(tiny_clip)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN_modulation" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd15"), tokenizer)


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("sdxl"), tokenizer)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    weights, expected = one.state_dict(), other.state_dict()
    return weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that the seed decides, whatever was drawn before."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rounds_to(value: float, printed: str) -> bool:
    """Whether a number, rounded to as many decimals as the printed one has, is that one."""
    decimals = len(printed.partition(".")[2])
    return f"{value:.{decimals}f}" == f"{float(printed):.{decimals}f}"


LATENT = (2, 3, 3)
STEPS = torch.arange(20)
GRID = 951 - 50 * STEPS
"""The timesteps of Stable Diffusion's schedule in 20 steps."""


def steps_at(*timesteps: int) -> Tensor:
    """The steps that begin at some of GRID."""
    return torch.tensor([GRID.tolist().index(t) for t in timesteps])


def comparisons(
    step: Tensor = STEPS, *, noise: Tensor | None = None, prediction: Tensor | None = None
) -> StepComparisons:
    """One comparison per step in float64, random where nothing is given."""
    b = len(step)
    noise = normal(b, 2, *LATENT, seed=1) if noise is None else noise
    prediction = normal(b, *noise.shape[2:], seed=3) if prediction is None else prediction
    x_t = normal(b, 1, *noise.shape[2:], seed=2)
    return StepComparisons(random_conditioning(b), step, x_t, prediction[:, None], noise)


def toy_predictions(b: int = len(GRID), *, distance: float = 0.1) -> dict[str, Tensor]:
    """What each role predicts: near one another, and the policy's a leaf that can have a gradient."""
    policy = normal(b, *LATENT, seed=4)
    reference = policy + distance * normal(b, *LATENT, seed=5)
    average = policy + distance * normal(b, *LATENT, seed=6)
    return {"policy": policy.clone().requires_grad_(), "reference": reference, "ema": average}


def evaluate(objective: Stepwise, sampler: DDIM, batch: StepComparisons, **roles: Tensor) -> tuple[Tensor, Metrics]:
    """An objective's losses and metrics under chosen predictions."""
    return stepwise_loss(objective, ToyPolicy(**roles), sampler, batch)


@pytest.fixture(scope="session")
def tiny_sd(tiny_sd_folder: Path) -> BaseModel:
    """The tiny Stable Diffusion, loaded; adapters go on copies of its network."""
    return load(str(tiny_sd_folder))


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_sdxl_folder: Path) -> BaseModel:
    """The tiny SDXL, loaded; adapters go on copies of its network."""
    return load(str(tiny_sdxl_folder))


@pytest.fixture(scope="session")
def tiny_sdxl_file(tiny_sdxl: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one file in the original layout."""
    path = tmp_path_factory.mktemp("original") / "sd_xl_base.safetensors"
    save_file(original_layout(tiny_sdxl.pipeline), path)
    return path


def assert_draws_as(
    pipeline: DiffusionPipeline, model: BaseModel, *, guidance_scale: float = 3.0, num_steps: int = 3
) -> None:
    """Check that our sampler, guidance and conditioning end at the latents of the pipeline's own DDIM, eta = 0."""
    prompts, (_, height, width) = ["a cat", "two boats"], model.latent_shape
    x_t = normal(2, *model.latent_shape, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    given = {"height": 8 * height, "width": 8 * width, "latents": x_t, "guidance_scale": guidance_scale}
    expected = pipeline(prompts, num_inference_steps=num_steps, output_type="latent", **given).images
    guided = GuidedNetwork(model.network, negative=model.negative(), guidance_scale=guidance_scale)
    sampler, cond = DDIM(model.schedule(num_steps), eta=0.0), model.encode(prompts)
    with torch.no_grad():
        for step in torch.arange(num_steps).repeat(2, 1).T:
            x_t = sampler.transition(guided(x_t, times_at(sampler, step), cond), x_t, step).mean
    torch.testing.assert_close(x_t, expected, rtol=1e-4, atol=1e-4)


def copied_policy(
    model: BaseModel, *, rank: int = 2, seed: int = 0, guidance_scale: float = 2.0, trained: bool = False
) -> LoraPolicy:
    """A policy over a copy of the model's UNet; "trained" gives policy and average weights of their own."""
    guided = GuidedNetwork(copy.deepcopy(model.network), negative=model.negative(), guidance_scale=guidance_scale)
    policy = LoraPolicy(guided, rank=rank, seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weights in (policy.adapter, policy.ema):
                for tensor in weights.values():
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return policy
