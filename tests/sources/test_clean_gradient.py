"""Comparisons from the exact gradient of a judge: their direction, their length, what they cost, that they teach."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import normal
from torch import Tensor
from transformers import CLIPTokenizer
from worlds import LATENT_SHAPE, BrightnessJudge, ShiftPolicy, encode, make_sampler, make_trainer

from stepalign.core.protocols import DifferentiableJudge
from stepalign.core.sampling import sample, times_at
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.judges.image import ImageJudge
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.judges.step_aware import StepAwareJudge
from stepalign.models.base import BaseModel
from stepalign.objectives.settings import GRADSPO, SPO, Stepwise
from stepalign.runs.recipes import RECIPES
from stepalign.sources.clean_gradient import gradient_rollout
from stepalign.sources.settings import Branching, CleanGradient
from stepalign.support.config import change

WEIGHTS = normal(*LATENT_SHAPE, seed=9, dtype=torch.float32)
PROMPTS = ["a cat", "a dog", "two boats"]


class SlopeJudge(BrightnessJudge):
    """Likes what lies along WEIGHTS, the more the later in the trajectory."""

    def gradient(self, x_0: Tensor, t: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        self.seen.extend(zip(t.tolist(), prompts, strict=True))
        factor = (1000.0 - t)[:, None, None, None]
        return (factor * WEIGHTS * x_0).sum((1, 2, 3)), factor * WEIGHTS.expand_as(x_0)


def noise(num: int = len(PROMPTS)) -> PromptNoise:
    return PromptNoise([generator_for(0, Purpose.ROLLOUT, row) for row in range(num)])


def rolled(judge: DifferentiableJudge, policy: ShiftPolicy | None = None) -> list:
    comparisons, _ = gradient_rollout(
        (policy or ShiftPolicy()).denoiser("policy"),
        make_sampler(),
        judge,
        cond=encode(PROMPTS),
        prompts=PROMPTS,
        latent_shape=LATENT_SHAPE,
        noise=noise(),
        branching=Branching(),
    )
    return comparisons


def test_a_comparison_points_up_the_gradient_and_is_as_long_as_two_noises_are_apart() -> None:
    """|z⁺ - z⁻| is sqrt(2 D) on average: 4 for the 8 entries here."""
    for comparison in rolled(SlopeJudge()):
        difference = comparison.noise[:, 0] - comparison.noise[:, 1]
        torch.testing.assert_close(difference.flatten(1).norm(dim=1), torch.full((3,), 4.0))
        assert torch.cosine_similarity(difference.flatten(1), WEIGHTS.flatten()[None]).min() > 1 - 1e-6
        assert torch.equal(comparison.noise[:, 0], -comparison.noise[:, 1])


def test_every_step_that_branches_gives_one_comparison_on_the_plain_trajectory() -> None:
    """The trajectory is what `sample` walks from the same noise; its points and predictions are the comparisons'."""
    policy, judge, sampler = ShiftPolicy(), SlopeJudge(), make_sampler()
    comparisons = rolled(judge, policy)
    assert [int(comparison.step[0]) for comparison in comparisons] == list(range(4, 20))
    assert judge.seen == [(t, prompt) for t in range(751, 0, -50) for prompt in PROMPTS]
    assert policy.calls == {"policy": 20 * 3}
    last = comparisons[-1]
    transition = sampler.transition(last.prediction[:, 0], last.x_t[:, 0], last.step)
    expected = sample(
        policy.denoiser("policy"), sampler, cond=encode(PROMPTS), latent_shape=LATENT_SHAPE, noise=noise()
    )
    assert ((transition.mean - expected).square().mean().sqrt() / transition.std[0]).item() == pytest.approx(1, abs=0.5)
    assert torch.equal(
        last.prediction[:, 0], policy.predict(last.x_t[:, 0], times_at(sampler, last.step), last.cond, role="policy")
    )


def test_a_judge_without_a_slope_gives_nothing_to_train_on() -> None:
    class Flat(SlopeJudge):
        def gradient(self, x_0: Tensor, t: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(x_0)), torch.zeros_like(x_0)

    trainer = make_trainer(judge=Flat(), source=CleanGradient())
    row = trainer.round()
    assert (row["comparisons"], row["updates"]) == (0, 0)


def test_a_gradient_that_is_no_number_stops_the_run() -> None:
    class Broken(SlopeJudge):
        def gradient(self, x_0: Tensor, t: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(x_0)), torch.full_like(x_0, math.nan)

    with pytest.raises(ValueError, match="the gradient of the judge's score at timestep 751: 3 of 3 are not finite"):
        rolled(Broken())


@pytest.mark.parametrize("objective", [SPO, GRADSPO, Stepwise()], ids=["spo", "gradspo", "rms"])
def test_training_climbs_the_judges_slope(objective: Stepwise) -> None:
    trainer = make_trainer(
        judge=SlopeJudge(),
        objective=objective,
        source=CleanGradient(),
        prompts_per_round=12,
        sample_batch=12,
        comparisons_per_update=48,
        train_batch=48,
        learning_rate=0.02,
    )
    for _ in range(3):
        trainer.round()
    fixed = {"cond": encode(["a cat"] * 64), "latent_shape": LATENT_SHAPE, "noise": noise(64)}
    scores = [
        (WEIGHTS * sample(trainer.policy.denoiser(role), trainer.sampler, **(fixed | {"noise": noise(64)}))).sum(
            (1, 2, 3)
        )
        for role in ("reference", "policy")
    ]
    assert (scores[1] - scores[0]).mean() > 0.5


def test_a_judge_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^source\.kind: clean-gradient needs a judge with a gradient"):
        make_trainer(source=CleanGradient()).round()


def test_windows_are_refused_in_a_recipe() -> None:
    changes = {"source": {"kind": "clean-gradient"}, "branching": {"num_inner_steps": [2]}}
    with pytest.raises(ValueError, match=r"branching\.num_inner_steps must be 1 with a clean gradient"):
        change(RECIPES["gradspo-miniature"], changes)


@pytest.mark.parametrize("max_batch", [None, 2])
def test_the_judges_gradient_is_that_of_their_scores(
    tiny_sd: BaseModel, tiny_spm_folder: Path, tokenizer: CLIPTokenizer, max_batch: int | None
) -> None:
    """Along a direction, central differences of the score; every sample's gradient is its own score's."""
    spm = StepAwarePreferenceModel.from_pretrained(tiny_spm_folder)

    def mean(images: Tensor, prompts: list[str]) -> Tensor:
        return images.square().mean((1, 2, 3)) * 100

    judges = [
        StepAwareJudge(spm, tokenizer, tiny_sd.decode, max_batch=max_batch),
        ImageJudge(mean, tiny_sd.decode, max_batch=max_batch),
    ]
    x_0, t = normal(3, *tiny_sd.latent_shape, dtype=torch.float32), torch.tensor([1, 501, 951])
    direction = normal(3, *tiny_sd.latent_shape, seed=1, dtype=torch.float32)
    for judge in judges:
        assert isinstance(judge, DifferentiableJudge)
        scores, gradient = judge.gradient(x_0, t, PROMPTS)
        torch.testing.assert_close(scores, judge(x_0, x_0, t, PROMPTS))
        assert not scores.requires_grad
        above, below = (judge(x_0, x_0 + step * direction, t, PROMPTS) for step in (0.01, -0.01))
        slope = (gradient * direction).sum((1, 2, 3))
        torch.testing.assert_close(slope, (above - below) / 0.02, rtol=0.05, atol=0.05)
