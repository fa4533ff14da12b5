"""A judge's training from recipe to directory: what it writes, and what it makes of its data."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from judge_runs import (
    BATCH,
    NUM_STEPS,
    WEIGHTS,
    finished_run,
    recipe_of,
    rows,
    snapshot,
    summary,
    trained,
    write_pairs,
)
from judge_runs import words as command
from safetensors.torch import load_file
from torch import Tensor

from stepalign import miniature
from stepalign.cli import main
from stepalign.judges.spm import StepAwarePreferenceModel
from stepalign.runs.assemble_judge import JudgeParts, assemble_judge
from stepalign.runs.judge_recipes import load_judge_recipe
from stepalign.support.files import load_state
from stepalign.support.watcher import NullWatcher
from stepalign.training.evaluate_judge import compare_judges, score_held_out
from stepalign.training.judge_trainer import JudgeState

Factory = pytest.TempPathFactory
SHORT = "--training.num_steps 1 --evaluation.timesteps 501"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Factory) -> Path:
    return finished_run(tmp_path_factory)


def parts_of(factory: Factory, changes: str = "") -> JudgeParts:
    return assemble_judge(recipe_of(command(factory, changes)), NullWatcher())


def held_out_scores(parts: JudgeParts, timesteps: tuple[int, ...] = (0, 501)) -> dict[int, Tensor]:
    return score_held_out(parts.scorer, parts.held_out, timesteps=timesteps, seed=0, batch_size=64)


# The directory


def test_a_run_writes_all_it_promises(finished: Path) -> None:
    assert sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()) == [
        *("checkpoint.pt", "files.json"),
        *(f"judge/{name}" for name in ("README.md", "config.json", "model.safetensors")),
        *("judge/tokenizer.json", "judge/tokenizer_config.json"),
        *("metrics.jsonl", "previous-checkpoint.pt", "recipe.yaml", "report.html", "start.json", "stepalign.json"),
        "summary.json",
    ]
    assert "<html" in (finished / "report.html").read_text()
    assert "spm-miniature" in (finished / "report.html").read_text()


def test_every_step_has_its_row(finished: Path) -> None:
    assert [row["step"] for row in rows(finished)] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows(finished))
    assert [row["learning_rate"] for row in rows(finished)] == pytest.approx([5e-4, 5e-4, 5e-4 * 2 / 3, 5e-4 / 3])


def test_the_summary_says_what_was_trained_and_measured(finished: Path) -> None:
    values = summary(finished)
    assert (values["recipe"], values["seed"], values["base"], values["start"]) == (
        *("spm-miniature", 0),
        *("miniature", "miniature"),
    )
    assert (values["judge"], values["steps"]) == ("step-aware", NUM_STEPS)
    assert (values["num_pairs"], values["num_held_out"]) == (24, 8)
    assert 2 <= values["num_decided"] <= 8
    assert [row["timestep"] for row in values["accuracy"]] == [0, 501]
    assert values["data"]["num_rows"] == 24
    assert (values["data"]["num_skipped"], values["data"]["skipped"], values["data"]["num_unlabelled"]) == (0, [], 0)
    assert values["data"]["cache_bytes"] > 0
    assert values["final_loss"] == pytest.approx(sum(row["loss"] for row in rows(finished)) / NUM_STEPS)
    assert values["versions"]["torch"] == version("torch")
    timing = json.loads((finished / "summary.json").read_text())["timing"]
    assert ("reliability" in values, [*timing]) == (True, ["seconds", "training_seconds", "device"])


def test_the_summary_counts_the_trainings_work_alone(finished: Path) -> None:
    calls = summary(finished)["calls"]
    assert calls["training_base_samples"] == calls["training_judge_images"] == 2 * BATCH * NUM_STEPS
    assert NUM_STEPS <= calls["training_judge_texts"] <= BATCH * NUM_STEPS


def test_measuring_both_judges_again_gives_the_summarys_figures(finished: Path, tmp_path_factory: Factory) -> None:
    before, after = (
        held_out_scores(parts_of(tmp_path_factory, changes)) for changes in ("", f"--judge.start {finished}/judge")
    )
    saved = json.loads((finished / "start.json").read_text())
    assert all(torch.equal(torch.tensor(saved[str(t)]), scores) for t, scores in before.items())
    held_out = parts_of(tmp_path_factory).held_out
    accuracy, reliability = compare_judges(before, after, held_out.label, held_out.prompts)
    assert accuracy == summary(finished)["accuracy"]
    assert reliability == summary(finished)["reliability"]


def test_the_written_recipe_is_the_one_that_ran(finished: Path, tmp_path_factory: Factory) -> None:
    assert load_judge_recipe(str(finished / "recipe.yaml")) == recipe_of(command(tmp_path_factory))


def test_a_finished_run_given_again_changes_nothing_and_shows_its_results(
    finished: Path, tmp_path_factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    trained(command(tmp_path_factory), finished)
    assert snapshot(finished) == before
    lines = capsys.readouterr().out.splitlines()
    assert f"accuracy on {summary(finished)['num_decided']} held-out pairs" in lines[0]
    assert [line.split()[1] for line in lines if line.startswith("│")] == ["0", "501"]
    assert lines[-1] == str(finished / "report.html")


# The judge


def test_the_written_judge_is_the_checkpoints_in_full_precision(finished: Path) -> None:
    judge = StepAwarePreferenceModel.from_pretrained(finished / "judge")
    state = load_state(finished / "checkpoint.pt", JudgeState)
    assert (state.num_steps, state.model.keys()) == (NUM_STEPS, judge.state_dict().keys())
    assert all(torch.equal(tensor, state.model[name]) for name, tensor in judge.state_dict().items())
    assert judge.vision_model.adaLN_modulation[1].weight.any(), "trained"


@pytest.mark.usefixtures("without_report")
def test_the_written_judge_judges_in_a_run(finished: Path, tmp_path: Path) -> None:
    small = "--training.num_rounds 1 --training.prompts_per_round 1 --base.num_steps 2 --branching.num_candidates 2"
    words = [*small.split(), "--judge.path", str(finished / "judge"), "--evaluation.num_prompts", "2"]
    assert main(["train", "gradspo-miniature", *words, "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["scores"]["judge"]


def test_the_card_tells_the_summarys_figures_and_the_command(finished: Path) -> None:
    card, row = (finished / "judge/README.md").read_text(), summary(finished)["accuracy"][1]
    assert f"| 501 | {row['start']['accuracy']:.3f} (" in card
    assert f"| {row['difference']:+.3f} (" in card
    assert "stepalign train-judge recipe.yaml" in card
    assert f"{NUM_STEPS} steps on {4 * NUM_STEPS} of 24 labelled pairs of images (miniature (train))" in card


def test_no_folder_of_this_machine_is_on_the_card(tmp_path: Path, tmp_path_factory: Factory) -> None:
    folder = tmp_path / "mine"
    write_pairs(folder)
    places = {"model": miniature.MODEL, "judge.start": miniature.PICKSCORE, "data.relabel_with": miniature.PICKSCORE}
    for name, place in places.items():
        shutil.copytree(place, folder / name)
    flags = "".join(f"--{name} {folder / name} " for name in places)
    flags += f"--evaluation.pairs None --data.cache {tmp_path / 'cache'} --data.pairs {folder}/pairs.jsonl {SHORT}"
    output = trained(command(tmp_path_factory, flags), tmp_path / "run")
    card = (output / "judge/README.md").read_text()
    assert "pairs.jsonl" in card
    assert str(tmp_path) not in card + json.dumps(summary(output))
    assert not re.search(r"(?<![\w.~])/\w+/\w+", card.replace("https://", ""))
    assert yaml.safe_load((output / "recipe.yaml").read_text())["data"]["pairs"] == "../mine/pairs.jsonl"
    assert load_judge_recipe(str(output / "recipe.yaml")).data.pairs == f"{folder}/pairs.jsonl"


# Variants


def test_a_judge_blind_to_the_timestep_trains_and_is_written_as_such(tmp_path: Path, tmp_path_factory: Factory) -> None:
    output = trained(command(tmp_path_factory, f"--judge.timestep_conditioning false {SHORT}"), tmp_path / "run")
    judge = StepAwarePreferenceModel.from_pretrained(output / "judge")
    assert not judge.timestep_conditioning
    assert load_file(output / WEIGHTS).keys() == load_file(miniature.PICKSCORE / "model.safetensors").keys()
    assert summary(output)["judge"] == "without timesteps"
    assert rows(output)[-1]["grad_norm"] > 0


def test_preprocessing_and_precision_are_the_recipes(tmp_path: Path, tmp_path_factory: Factory) -> None:
    changes = f"--judge.preprocessing resize-first --export bf16 --training.precision bf16 {SHORT}"
    output = trained(command(tmp_path_factory, changes), tmp_path / "run")
    assert StepAwarePreferenceModel.from_pretrained(output / "judge").preprocessing == "resize-first"
    weights = load_file(output / WEIGHTS)
    assert weights.pop("logit_scale").dtype == torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    stored = load_state(output / "checkpoint.pt", JudgeState).model
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_bit(finished: Path, tmp_path: Path, tmp_path_factory: Factory) -> None:
    output = trained(command(tmp_path_factory, "--training.gradient_checkpointing true"), tmp_path / "run")
    assert rows(output) == rows(finished)


def test_pairs_that_are_all_ties_leave_nothing_to_measure(tmp_path: Path, tmp_path_factory: Factory) -> None:
    ties = "--data.relabel_with miniature --data.tie_gap 0.99999999 --evaluation.pairs None --evaluation.share 0.5"
    output = trained(command(tmp_path_factory, f"{ties} --training.num_steps 1"), tmp_path / "run", report=True)
    values = summary(output)
    assert values["num_decided"] == 0
    assert [row["difference"] for row in values["accuracy"]] == [None, None]
    assert "| 501 | – | – | – |" in (output / "judge/README.md").read_text()
