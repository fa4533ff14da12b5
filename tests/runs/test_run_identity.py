"""Runs know by content what they were begun with: base model, judge, prompts, pairs, whether finished or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from judge_runs import finished_run, recipe_of, words
from spoiled import edit, scale_a_weight

import stepalign
from stepalign import miniature
from stepalign.runs.gains import measure_gains
from stepalign.runs.judge_job import run_judge
from stepalign.runs.recipes import Recipe, load_recipe
from stepalign.runs.sweep import run_sweep
from stepalign.runs.sweep_file import directory, load_sweep
from stepalign.support.config import change
from stepalign.support.file_record import record_files

pytestmark = pytest.mark.usefixtures("without_report")


def recipe_for(project: Path) -> Recipe:
    """One round on the tiny models of a project."""
    changes: dict[str, Any] = {
        "model": str(project / "model"),
        "prompts": str(project / "prompts.txt"),
        "judge": {"path": str(project / "judge")},
        "base": {"num_steps": 2},
        "branching": {"num_candidates": 2},
        "training": {"num_rounds": 1, "prompts_per_round": 2, "comparisons_per_update": 8},
        "source": {"min_gap": 0.0},
        "evaluation": {"prompts": str(project / "held-out.txt")},
    }
    return change(load_recipe("gradspo-sd15"), changes)


@pytest.fixture(scope="module")
def original(tiny_sd_folder: Path, tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: models, prompts and a finished run."""
    project = tmp_path_factory.mktemp("original")
    shutil.copytree(tiny_sd_folder, project / "model")
    shutil.copytree(tiny_spm_folder, project / "judge")
    (project / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    (project / "held-out.txt").write_text("two boats\na tree\n", encoding="utf-8")
    stepalign.run(recipe_for(project), project / "run")
    return project


@pytest.fixture
def project(original: Path, tmp_path: Path) -> Path:
    """A copy of it all at another place."""
    return shutil.copytree(original, tmp_path / "project")


def spoil(project: Path) -> list[str]:
    """Change a part of each kind, and return their names."""
    scale_a_weight(project / "model/vae/diffusion_pytorch_model.safetensors")
    scale_a_weight(project / "judge/model.safetensors")
    edit(project / "judge/config.json", '"clamp-first"', '"resize-first"')
    edit(project / "prompts.txt", "a dog", "a fog")
    edit(project / "held-out.txt", "a tree", "a bree")
    return ["vae.weights", "judge.weights", "judge.config", "prompts", "held-out prompts"]


def test_a_finished_run_is_returned_only_for_what_it_was_begun_with(project: Path) -> None:
    """Moved with all it names it is the same run."""
    summary = json.loads((project / "run/summary.json").read_text(encoding="utf-8"))
    assert stepalign.run(recipe_for(project), project / "run") == summary
    parts = ", ".join(rf"{part} \(\w+ then, \w+ now\)" for part in spoil(project))
    with pytest.raises(ValueError, match=rf"^{parts}: not what .* was begun with; restore what it was, or give"):
        stepalign.run(recipe_for(project), project / "run")


def test_a_judge_at_another_path_is_the_same_judge_while_its_content_is(project: Path) -> None:
    """Of an unfinished run too; what differs is named with both paths."""
    (project / "judge").rename(project / "another judge")
    recipe = change(recipe_for(project), {"judge": {"path": str(project / "another judge")}})
    (project / "run/summary.json").unlink()
    assert stepalign.run(recipe, project / "run")["rounds"] == 1
    scale_a_weight(project / "another judge/model.safetensors")
    (project / "run/summary.json").unlink()
    expected = r"^judge\.weights .* begun with \(its judge.path is '.*/judge', this recipe's '.*/another judge'\); rest"
    with pytest.raises(ValueError, match=expected):
        stepalign.run(recipe, project / "run")


def test_gains_are_measured_only_with_what_the_run_was_trained_with(project: Path) -> None:
    scale_a_weight(project / "judge/model.safetensors")
    with pytest.raises(ValueError, match=r"^judge\.weights .*: not what .*run was trained with; restore"):
        measure_gains(project / "run")


def test_a_finished_judge_is_returned_only_for_what_it_was_begun_with(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = shutil.copytree(finished_run(tmp_path_factory), tmp_path / "run")
    start = shutil.copytree(miniature.PICKSCORE, tmp_path / "start")
    recipe = recipe_of(words(tmp_path_factory))
    recipe = replace(recipe, judge=replace(recipe.judge, start=str(start)))
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert run_judge(recipe, output) == summary
    scale_a_weight(start / "model.safetensors")
    with pytest.raises(ValueError, match=r"^judge\.start\.weights .*judge.start is 'miniature', this recipe's"):
        run_judge(recipe, output)


# Sweeps


def test_a_sweep_takes_no_finished_run_of_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that several rows share are read once."""
    (tmp_path / "sweep.yaml").write_text(
        "recipe: spo-miniature\nseeds: [0, 1]\ntables: {k: {k = 4: {}, k = 2: {branching: {num_candidates: 2}}}}\n"
    )
    sweep, read = load_sweep(tmp_path / "sweep.yaml"), []
    identity = {"judge.weights": "ab", "unet.weights": "cd"}

    def assemble(recipe: Recipe) -> SimpleNamespace:
        read.append(recipe.name)
        return SimpleNamespace(identity=identity)

    finish: Callable[..., Any] = lambda recipe, output, watcher: leave_a_run(output, identity)  # noqa: E731
    monkeypatch.setattr("stepalign.runs.sweep.assemble", assemble)
    monkeypatch.setattr("stepalign.runs.sweep.run", finish)
    run_sweep(sweep, tmp_path / "out")
    assert read == []
    run_sweep(sweep, tmp_path / "out")
    assert read == ["spo-miniature"]
    identity = identity | {"judge.weights": "ef"}
    name = directory(sweep.tables["k"]["k = 4"], 0)
    with pytest.raises(
        ValueError,
        match=rf"sweep failed: k = 4, seed 0 .judge\.weights \(ab then, ef now\): not what .*{name} was run",
    ):
        run_sweep(sweep, tmp_path / "out")


def leave_a_run(output: Path, identity: dict[str, str]) -> None:
    """What a finished run leaves, as far as a sweep reads it."""
    output.mkdir(parents=True)
    marker = {"kind": "train", "version": "0", "directory": str(output), "settings": {}, "identity": identity}
    row = {"base": {"m": 0.1}, "aligned": {"m": 0.2}}
    for name, values in (("stepalign.json", [marker]), ("summary.json", [{"seconds": 1}]), ("scores.jsonl", [row] * 4)):
        lines = [json.dumps(one | {"prompt": str(index)}) for index, one in enumerate(values)]
        (output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    record_files(output, ["summary.json", "scores.jsonl"])
