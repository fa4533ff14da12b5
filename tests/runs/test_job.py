"""A run from Python: what it measures, which adapter it exports, and what its seed decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from scored import Notes
from worlds import assert_same

import stepalign
from stepalign.core.sampler import DDIM
from stepalign.core.sampling import sample
from stepalign.core.seeding import PromptNoise, Purpose, generator_for
from stepalign.runs.assemble import assemble
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.support.config import change
from stepalign.support.files import RunState, load_state

pytestmark = pytest.mark.usefixtures("without_report")
PROMPTS = ["a cat", "a dog", "two boats " * 40]
ROLES = {"adapter": "policy", "ema": "ema"}


@pytest.fixture(scope="module")
def recipe(tiny_sd_folder: Path, tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """One round on the tiny models, evaluated on its own prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    changes: dict[str, Any] = {
        "model": str(tiny_sd_folder),
        "prompts": str(path),
        "judge": {"path": str(tiny_spm_folder)},
        "base": {"num_steps": 3},
        "branching": {"num_candidates": 2},
        "training": {"num_rounds": 1, "prompts_per_round": 3, "comparisons_per_update": 3, "learning_rate": 1e-3},
        "evaluation": {"prompts": str(path)},
    }
    changes["source"] = {"min_gap": 0.0}
    return change(load_recipe("gradspo-sd15"), changes)


@pytest.fixture(scope="module")
def run_of(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Directory and summary of the run that exports the adapter, and of the one that exports its average."""
    runs = {}
    for which, role in ROLES.items():
        output = tmp_path_factory.mktemp(which)
        runs[which] = output, stepalign.run(change(recipe, {"exported_role": role}), output, watcher=NOTES)
    return runs


NOTES = Notes()
Runs = dict[str, tuple[Path, dict[str, Any]]]


def test_the_summary_returned_is_the_one_written(run_of: Runs) -> None:
    output, summary = run_of["adapter"]
    assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_prompts_that_the_base_model_and_the_judge_cut_are_noted_and_in_the_summary(run_of: Runs) -> None:
    for output, summary in run_of.values():
        one = {"num_prompts": 3, "cut": {"text_encoder": 1, "the judge": 1}}
        assert summary["prompts_cut"] == {"training": one, "held-out": one}
        assert json.loads((output / "summary.json").read_text())["prompts_cut"] == summary["prompts_cut"]
    assert [note for note in NOTES.notes if "are cut" in note] == len(run_of) * [
        f"1 of 3 {which} prompts are longer than {reader} reads, and are cut"
        for which in ("training", "held-out")
        for reader in ("text_encoder", "the judge")
    ]


@pytest.mark.parametrize("which", ROLES)
def test_the_exported_adapter_is_the_one_asked_for(which: str, run_of: Runs) -> None:
    output, _ = run_of[which]
    exported = load_file(output / "adapter/pytorch_lora_weights.safetensors")
    trained = getattr(load_state(output / "checkpoint.pt", RunState), which)
    assert_same(exported, {f"unet.{name}": tensor for name, tensor in trained.items()})


def test_what_is_exported_is_what_is_measured(run_of: Runs) -> None:
    scores = {which: run_of[which][1]["scores"]["judge"] for which in ROLES}
    assert scores["adapter"]["base"] == scores["ema"]["base"]
    assert scores["adapter"]["aligned"] != scores["ema"]["aligned"]


@pytest.mark.parametrize("which", ROLES)
def test_the_scores_are_of_samples_of_base_and_trained_model_from_the_same_seeds(
    which: str, recipe: Recipe, run_of: Runs
) -> None:
    output, summary = run_of[which]
    parts, state = assemble(recipe), load_state(output / "checkpoint.pt", RunState)
    parts.policy.load(adapter=state.adapter, ema=state.ema)
    sampler = DDIM(parts.sampler.schedule, eta=0.0)
    for name, role in (("base", "reference"), ("aligned", ROLES[which])):
        noise = PromptNoise([generator_for(0, Purpose.EVALUATION, row) for row in range(3)])
        cond, shape = parts.model.encode(PROMPTS), parts.model.latent_shape
        x_0 = sample(parts.policy.denoiser(role), sampler, cond=cond, latent_shape=shape, noise=noise)
        scores = parts.judge(x_0, x_0, torch.zeros(3, dtype=torch.long), PROMPTS)
        assert summary["scores"]["judge"][name] == pytest.approx(scores.mean().item(), abs=1e-5)


def test_the_seed_decides_where_the_adapter_starts(recipe: Recipe) -> None:
    first, other = (assemble(change(recipe, {"seed": seed})).policy.adapter for seed in (0, 1))
    assert not any(torch.equal(other[name], tensor) for name, tensor in first.items() if tensor.any())


@pytest.mark.slow
def test_the_written_recipe_runs_from_any_directory(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)
    stepalign.run(change(recipe, {"prompts": "prompts.txt", "evaluation": {"prompts": None}}), "run")
    monkeypatch.chdir("/")
    written = load_recipe(str(tmp_path / "run/recipe.yaml"))
    assert Path(written.prompts or "").read_text() == "a cat\n"
    stepalign.run(written, tmp_path / "run")
    stepalign.run(written, tmp_path / "again")
    first, second = (tmp_path / name / "adapter/pytorch_lora_weights.safetensors" for name in ("run", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_directory_from_before_a_field_goes_on_where_the_field_is_as_by_default(recipe: Recipe, run_of: Runs) -> None:
    finished, summary = run_of["adapter"]
    output = shutil.copytree(finished, finished.with_name(f"{finished.name}-older"))  # its paths are relative
    written = yaml.safe_load((output / "recipe.yaml").read_text())
    del written["guard"], written["evaluation"]["scorers"]
    for path in ("stepalign.json", "files.json"):
        (output / path).unlink()
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    del state["texts"]["stepalign.json"]
    torch.save(state, output / "checkpoint.pt")
    (output / "recipe.yaml").write_text(yaml.safe_dump(written))
    assert stepalign.run(recipe, output) == json.loads(json.dumps(summary))
    (output / "stepalign.json").unlink()
    with pytest.raises(ValueError, match="its exported_role is 'policy', this recipe's 'ema'"):
        stepalign.run(change(recipe, {"exported_role": "ema"}), output)
    assert not (output / "stepalign.json").exists()
    del written["exported_role"]
    (output / "recipe.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(ValueError, match="its exported_role is 'policy', this recipe's 'ema'"):
        stepalign.run(change(recipe, {"exported_role": "ema"}), output)


def test_a_scorer_may_not_take_an_oracles_name() -> None:
    recipe = change(load_recipe("gradspo-miniature"), {"evaluation": {"scorers": ["aesthetic"]}})
    with pytest.raises(ValueError, match=r"evaluation.scorers: aesthetic is the name of an oracle too"):
        assemble(recipe)


def test_a_runs_scorers_may_be_the_miniatures(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "base": {"num_steps": 2},
        "branching": {"num_candidates": 2},
        "training": {"num_rounds": 1, "prompts_per_round": 1},
        "evaluation": {"num_prompts": 2, "scorers": ["miniature-aesthetic", "miniature-pickscore"]},
    }
    scores = stepalign.run(change(load_recipe("gradspo-miniature"), changes), tmp_path / "run")["scores"]
    assert scores["miniature-aesthetic"]["base"] == pytest.approx(scores["aesthetic"]["base"], abs=0.02)
    assert "miniature-pickscore" in scores
