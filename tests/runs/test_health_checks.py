"""Checks before the first round and after the last, and runs that learned nothing or fell apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded import Notes, parts_of, recipe_of, rows_of, toy_runs
from torch import Tensor
from worlds import BrightnessJudge

from stepalign.models.base import BaseModel
from stepalign.runs import job
from stepalign.runs.assemble import Parts
from stepalign.runs.health_checks import add_falls, check_end, start_health
from stepalign.runs.recipes import Recipe
from stepalign.support.config import change
from stepalign.support.finite import NotFinite
from stepalign.training.settings import Watch
from stepalign.training.trainer import Trainer
from stepalign.training.watch import HealthWatch

UNWATCHED = {"every": 0, "action": "warn"}


@pytest.fixture
def recipe() -> Recipe:
    return recipe_of(guard=UNWATCHED)


@pytest.fixture
def parts(tiny_sd: BaseModel, recipe: Recipe) -> Parts:
    return parts_of(replace(tiny_sd, latent_shape=(4, 4, 4)), recipe)


def checked(recipe: Recipe, parts: Parts) -> tuple[list[str], list[dict[str, Any]]]:
    """The notes and the signs of the checks before the first round."""
    notes = Notes()
    return notes.notes, start_health(replace(parts, recipe=recipe), [], notes).summary()


# Before the first round


def test_a_sound_run_passes_in_one_line_that_counts_no_work(recipe: Recipe, parts: Parts) -> None:
    parts = replace(parts, judge=TimedJudge())
    notes, signs = checked(recipe, parts)
    (line,) = notes
    assert "reaches 1 modules" in line
    assert "predict the same bits" in line
    assert "1 of 1 tensors B have a gradient" in line
    assert signs == []
    assert not parts.policy.calls
    assert all(parameter.grad is None for parameter in parts.trainer.updater.parameters)


class TimedJudge(BrightnessJudge):
    def __call__(self, x_t: Tensor, x_0: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        return super().__call__(x_t, x_0, t, prompts) + t / 1000


def test_a_judge_blind_to_timesteps_is_noted_unless_its_kind_says_so(recipe: Recipe, parts: Parts) -> None:
    notes, signs = checked(recipe, parts)
    assert [sign["name"] for sign in signs] == ["judge blind to timesteps"]
    assert notes[0].startswith("watch: the judge scores an image alike at timesteps")
    assert checked(change(recipe, {"judge": {"kind": "pickscore"}}), parts)[1] == []


@pytest.mark.parametrize(
    ("score", "named"),
    [
        (lambda x_0, _: torch.ones(len(x_0)), r"^start: the judge gives different images of a prompt the same score"),
        (lambda x_0, _: torch.full((len(x_0),), math.nan), r"^the judge's scores at timestep \d+: 2 of 2"),
    ],
    ids=["constant", "nan"],
)
def test_a_judge_that_tells_no_images_apart_is_refused(score: Any, named: str, recipe: Recipe, parts: Parts) -> None:
    class Judge(BrightnessJudge):
        def __call__(self, x_t: Tensor, x_0: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
            return score(x_0, t)

    with pytest.raises(ValueError, match=named):
        checked(recipe, replace(parts, judge=Judge()))


def test_a_policy_that_is_not_the_base_model_is_refused(recipe: Recipe, parts: Parts) -> None:
    with torch.no_grad():
        next(value for name, value in parts.policy.adapter.items() if "lora_B" in name).fill_(1e-3)
    with pytest.raises(ValueError, match=r"^start: before any update the policy differs from the base model by rms"):
        checked(recipe, parts)


def test_a_loss_without_a_gradient_is_refused(recipe: Recipe, parts: Parts) -> None:
    objective = parts.trainer.objective

    def flat(*given: Any) -> Any:
        losses, metrics = objective(*given)
        return losses * 0, metrics

    parts.trainer.objective = flat
    with pytest.raises(ValueError, match=r"^start: the first backward pass gives the adapter no gradient at all"):
        checked(recipe, parts)


@pytest.mark.parametrize(
    ("factor", "found"),
    [(0.0, "refused"), (math.nan, "not finite"), (100.0, "decoded range"), (1.0, "")],
)
def test_the_decoded_range_is_looked_at(
    factor: float, found: str, recipe: Recipe, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = parts.model.pipeline.vae
    decode = vae.decode

    def scaled(latents: Tensor) -> Any:
        output = decode(latents)
        output.sample = output.sample * factor
        return output

    monkeypatch.setattr(vae, "decode", scaled)
    recipe = change(recipe, {"judge": {"kind": "pickscore"}})
    if found == "refused":
        with pytest.raises(ValueError, match=r"^start: the VAE decodes latents to images of one colour"):
            checked(recipe, parts)
    elif found == "not finite":
        with pytest.raises(NotFinite, match=r"^the images decoded by the VAE: 2 of 2"):
            checked(recipe, parts)
    else:
        assert [sign["name"] for sign in checked(recipe, parts)[1]] == ([found] if found else [])


# After the last round


def ended(recipe: Recipe, parts: Parts, *, weights: float, num_failures: int = 0) -> tuple[str | None, list[str]]:
    """What is said of a run that ended with these weights."""
    with torch.no_grad():
        for tensor in (*parts.policy.adapter.values(), *parts.policy.ema.values()):
            tensor.fill_(weights)
    parts.trainer.updater.num_updates, parts.trainer.updater.num_failures = 3, num_failures
    health = HealthWatch(Watch(), [], lambda _: None)
    return check_end(replace(parts, recipe=recipe), health), [sign["name"] for sign in health.summary()]


@pytest.mark.parametrize(
    ("weights", "names", "failed"),
    [
        (0.1, [], None),
        (1e-5, ["nothing moves"], None),
        (2.0, ["policy diverged"], None),
        (1e30, ["policy not finite"], "the trained policy is of no use: the prediction of the UNet with the trained"),
    ],
)
def test_what_an_adapter_does_is_measured_at_the_end(
    weights: float, names: list[str], failed: str | None, recipe: Recipe, parts: Parts
) -> None:
    found, signs = ended(recipe, parts, weights=weights)
    assert signs == names
    assert found is None if failed is None else found.startswith(failed)


def test_a_run_that_ends_in_skipped_updates_has_failed(recipe: Recipe, parts: Parts) -> None:
    found, _ = ended(recipe, parts, weights=0.1, num_failures=2)
    assert found.startswith("training ended with 2 updates in a row whose gradient is not finite")


def test_held_out_scores_that_fell_are_signs() -> None:
    health = HealthWatch(Watch(), [], lambda _: None)
    row = {"base": 0.0, "aligned": 0.0}
    scores = {
        "judge": row | {"difference": 0.4, "interval": (0.1, 0.7)},
        "aesthetic": row | {"difference": -0.4, "interval": (-0.9, 0.1)},
        "alignment": row | {"difference": -0.6, "interval": (-0.7, -0.5)},
    }
    add_falls(health, scores, 16)
    (sign,) = health.summary()
    assert (sign["name"], sign["round"]) == ("held-out alignment fell", 16)
    assert "lowered alignment on held-out prompts by 0.6 (95 % interval 0.5 to 0.7)" in sign["message"]


# Runs


def test_a_run_in_which_nothing_was_trained_says_so(tiny_sd: BaseModel, recipe: Recipe, tmp_path: Path) -> None:
    notes = Notes()
    with toy_runs(tiny_sd, min_gap=1.0):
        summary = job.run(recipe, tmp_path / "run", watcher=notes)
    assert [sign["name"] for sign in summary["watch"]] == [
        "judge blind to timesteps",
        "no comparisons",
        "nothing trained",
    ]
    assert json.loads((tmp_path / "run/summary.json").read_text())["watch"] == summary["watch"]
    assert sum("no optimizer update was made in 3 rounds" in note for note in notes.notes) == 1


def test_a_watch_that_stops_ends_training_and_evaluates(tiny_sd: BaseModel, recipe: Recipe, tmp_path: Path) -> None:
    recipe = change(recipe, {"watch": {"action": "stop", "num_rounds": 2}})
    with toy_runs(tiny_sd, min_gap=1.0):
        summary = job.run(recipe, tmp_path / "run")
        (tmp_path / "run/summary.json").unlink()
        again = job.run(recipe, tmp_path / "run")
    assert (summary["rounds"], len(rows_of(tmp_path / "run", "metrics.jsonl"))) == (2, 2)
    assert (again["rounds"], again["watch"], again["scores"]) == (2, summary["watch"], summary["scores"])


def test_a_policy_that_is_not_finite_at_the_end_gets_its_report(
    tiny_sd: BaseModel, recipe: Recipe, tmp_path: Path
) -> None:
    """One update at an absurd learning rate; finished, the run says the same again."""
    recipe = change(recipe, {"training": {"num_rounds": 1}})
    named = r"cannot be evaluated: the latents to decode reach .* lower training\.learning_rate .*report\.html"
    with toy_runs(tiny_sd, learning_rate=1e14, weight_decay=0.0):
        for _ in range(2):
            with pytest.raises(ValueError, match=named):
                job.run(recipe, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["scores"] == {}
    assert "policy diverged" in [sign["name"] for sign in summary["watch"]]
    assert len(rows_of(tmp_path / "run", "metrics.jsonl")) == 1


def test_a_run_that_diverges_keeps_its_comparisons_and_its_checkpoint(
    tiny_sd: BaseModel, recipe: Recipe, tmp_path: Path
) -> None:
    recipe = change(recipe, {"training": {"num_rounds": 9}})

    class Spoiled:
        def __init__(self, trainer: Trainer) -> None:
            self.trainer, self.objective = trainer, trainer.objective

        def __call__(self, *given: Any) -> Any:
            losses, metrics = self.objective(*given)
            return losses * (math.nan if self.trainer.num_rounds else 1.0), metrics

    with toy_runs(tiny_sd, wrap=Spoiled, max_skipped=2):
        named = r"^round 2: the loss: .*; its comparisons are in .*not-finite\.pt; the checkpoint in .* is from before"
        with pytest.raises(ValueError, match=named):
            job.run(recipe, tmp_path / "run")
    bad = torch.load(tmp_path / "run/not-finite.pt", weights_only=True)
    assert (bad["round"], len(bad["batches"])) == (2, 1)
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["num_rounds"] == 1
