"""Damage to the files of a run: it is named, and made again from the checkpoint to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scored import Notes
from spoiled import flip

import stepalign
from stepalign.runs.job import BY_CONTENT
from stepalign.runs.recipes import Recipe, load_recipe, with_absolute_paths
from stepalign.runs.run_directory import recipe_owner
from stepalign.support.claim import claim
from stepalign.support.config import change
from stepalign.support.file_record import FILE_RECORD, check_files
from stepalign.support.marker import MARKER, identity_of

ADAPTER = "adapter/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    changes: dict[str, Any] = {
        "base": {"num_steps": 2},
        "branching": {"num_candidates": 2},
        "training": {"num_rounds": 2, "prompts_per_round": 1, "sample_batch": 1},
        "evaluation": {"num_prompts": 2},
    }
    return change(load_recipe("gradspo-miniature"), changes)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "run"
    stepalign.run(recipe, output)
    return output


@pytest.fixture
def again(recipe: Recipe, finished: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A function that damages a copy of the run, runs it again and returns the notes; all must be as it was."""

    def run(*damaged: str, unfinished: bool = False, missing: bool = False) -> list[str]:
        output, notes = tmp_path / "run", Notes()
        shutil.copytree(finished, output)
        if unfinished:
            (output / "summary.json").unlink()
        for name in damaged:
            (output / name).unlink() if missing else flip(output / name)
        stepalign.run(recipe, output, watcher=notes)
        for name in (ADAPTER, "scores.jsonl"):
            assert (output / name).read_bytes() == (finished / name).read_bytes()
        assert reproducible(output) == reproducible(finished)
        assert check_files(output) == {}
        quiet = Notes()
        stepalign.run(recipe, output, watcher=quiet)
        assert quiet.notes == []
        return notes.notes

    return run


def reproducible(output: Path) -> tuple[str, list[dict[str, Any]]]:
    """Summary and rows without the clock."""
    summary = json.loads((output / "summary.json").read_text())
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    del summary["timing"]
    return json.dumps(summary), [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (ADAPTER, False),
        pytest.param("report.html", True, marks=pytest.mark.slow),
        pytest.param("checkpoint.pt", False, marks=pytest.mark.slow),
        pytest.param(FILE_RECORD, True, marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_names_what_is_damaged_and_makes_it_again(
    name: str, missing: bool, again: Callable[..., list[str]]
) -> None:
    notes = " ".join(again(name, missing=missing))
    assert f"{name} is {'missing' if missing else 'damaged'}" in notes


def test_an_unfinished_run_resumes_from_the_checkpoint_before_a_damaged_one(again: Callable[..., list[str]]) -> None:
    notes = " ".join(again("checkpoint.pt", "metrics.jsonl", "recipe.yaml", unfinished=True))
    assert "checkpoint.pt is damaged; resuming from the checkpoint before it" in notes


@pytest.mark.slow
def test_a_damaged_marker_is_named_and_written_anew(again: Callable[..., list[str]]) -> None:
    assert "stepalign.json is damaged, and written anew" in " ".join(again("stepalign.json", unfinished=True))


def test_what_cannot_be_made_again_is_an_error(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    for name in (ADAPTER, "checkpoint.pt", "previous-checkpoint.pt"):
        flip(output / name)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"{ADAPTER} is damaged, .*no whole checkpoint is left"):
        stepalign.run(recipe, output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_lost_marker_is_restored_with_its_digests_from_the_checkpoint(
    recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / MARKER).unlink()
    owner = recipe_owner("train", with_absolute_paths(recipe), Recipe(name=recipe.name), by_content=BY_CONTENT)
    with claim(output, owner) as claimed:
        assert not claimed.adopted
        assert identity_of(output) == identity_of(finished) != {}
