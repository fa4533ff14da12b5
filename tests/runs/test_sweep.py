"""Sweeps: what a file means, which runs it takes, and what is collected from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepalign.cli import main
from stepalign.runs import sweep as sweep_module
from stepalign.runs.recipes import RECIPES, Recipe
from stepalign.runs.sweep import run_sweep
from stepalign.runs.sweep_file import directory, load_sweep
from stepalign.runs.sweep_results import collect_results
from stepalign.support.watcher import NullWatcher

FILE: dict[str, Any] = {
    "recipe": "spo-miniature",
    "seeds": [0, 1],
    "changes": {"training": {"num_rounds": 3}},
    "tables": {
        "continuation": {"random": {}, "best": {"branching": {"continue_from": "best"}}},
        "k": {"k = 4": {}, "GradSPO": {"recipe": "gradspo-miniature", "seed": 5}},
    },
}
SCORES = [(0.1, 0.2), (0.3, 0.5), (0.2, 0.6), (0.4, 0.4)]
"""Of four prompts: base and aligned."""


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(FILE | changes, sort_keys=False))
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Path]]:
    """Runs do nothing but leave scores, better by a tenth of the seed, and by one where the best is followed."""
    asked: list[tuple[Recipe, Path]] = []

    def run(recipe: Recipe, output: Path, *, watcher: object = None) -> dict[str, Any]:
        asked.append((recipe, output))
        better = recipe.seed / 10 + (recipe.branching.continue_from == "best")
        rows = [
            {"prompt": f"prompt {number}", "base": {"m": base}, "aligned": {"m": aligned + better}}
            for number, (base, aligned) in enumerate(SCORES)
        ]
        output.mkdir(parents=True)
        (output / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (output / "summary.json").write_text(json.dumps({"seconds": 30}))
        return {}

    monkeypatch.setattr("stepalign.runs.sweep.run", run)
    return asked


def test_a_row_is_the_recipe_with_the_changes_for_all_and_its_own(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path))
    best = sweep.tables["continuation"]["best"]
    assert best.branching.continue_from == "best"
    assert best.training == replace(RECIPES["spo-miniature"].training, num_rounds=3)
    assert sweep.tables["k"]["GradSPO"].objective == RECIPES["gradspo-miniature"].objective
    assert sweep.tables["k"]["GradSPO"].training.num_rounds == 3
    assert sweep.seeds == (0, 1)


def test_rows_that_are_one_recipe_share_their_runs(tmp_path: Path) -> None:
    runs = load_sweep(written(tmp_path)).runs()
    assert len(runs) == 3 * 2
    assert sorted(recipe.seed for recipe in runs.values()) == [0, 0, 0, 1, 1, 1]


def test_a_runs_directory_is_of_its_recipe_and_seed() -> None:
    recipe = RECIPES["spo-miniature"]
    other = replace(recipe, training=replace(recipe.training, num_rounds=2))
    names = {directory(recipe, 0), directory(recipe, 1), directory(other, 0)}
    assert len(names) == 3
    assert directory(replace(recipe, seed=7), 0) in names


def test_every_run_is_done_once_and_none_again(tmp_path: Path, ran: list[tuple[Recipe, Path]]) -> None:
    sweep = load_sweep(written(tmp_path))
    run_sweep(sweep, tmp_path / "runs", watcher=NullWatcher())
    assert {output.name: recipe for recipe, output in ran} == sweep.runs()
    assert len(ran) == 6
    run_sweep(sweep, tmp_path / "runs")
    assert len(ran) == 6


def test_shares_split_the_runs(tmp_path: Path, ran: list[tuple[Recipe, Path]]) -> None:
    sweep = load_sweep(written(tmp_path))
    for part in (1, 2, 3, 4):
        run_sweep(sweep, tmp_path / f"share {part}", share=(part, 4))
    assert [output.name for _, output in ran] != list(sweep.runs())
    assert {output.name for _, output in ran} == sweep.runs().keys()
    assert len(ran) == 6
    with pytest.raises(ValueError, match=r"^share must be i/n with i from 1 to n, got 5/4"):
        run_sweep(sweep, tmp_path / "share 5", share=(5, 4))


def test_gains_are_averaged_over_seeds_and_compared_with_the_first_row(
    tmp_path: Path, ran: list[tuple[Recipe, Path]]
) -> None:
    """Aligned less base is .1, .2, .4, 0, on average .175, and .05 more for the mean seed, 1.05 more for the best."""
    results = run_sweep(load_sweep(written(tmp_path)), tmp_path / "runs")
    random, best = results["continuation"]
    assert random["scores"]["m"]["gain"] == pytest.approx(0.225)
    assert random["scores"]["m"]["by_seed"] == pytest.approx([0.175, 0.275])
    low, high = random["scores"]["m"]["interval"]
    assert low < 0.225 < high
    assert "against_first" not in random["scores"]["m"]
    assert best["scores"]["m"]["gain"] == pytest.approx(1.225)
    assert best["scores"]["m"]["against_first"] == {"difference": pytest.approx(1), "interval": pytest.approx([1, 1])}
    assert best["seconds"] == [30, 30]
    assert json.loads((tmp_path / "runs/sweep.json").read_text()) == results
    page = (tmp_path / "runs/sweep.md").read_text()
    assert "| best | 2 | +1.225 (" in page
    assert "| +1.000 (+1.000 to +1.000) | 1.0 |" in page


def test_a_sweep_in_the_making_says_what_is_missing(tmp_path: Path, ran: list[tuple[Recipe, Path]]) -> None:
    sweep = load_sweep(written(tmp_path))
    run_sweep(sweep, tmp_path / "runs", share=(1, 6))
    rows = [row for table in collect_results(sweep, tmp_path / "runs", {}).values() for row in table]
    assert [row["missing"] for row in rows] == [1, 2, 1, 2]
    assert [bool(row["scores"]) for row in rows] == [True, False, True, False]
    assert "| best | 0 | – | – | 0.0 |" in (tmp_path / "runs/sweep.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "must hold recipe, seeds, tables"),
        ({"seeds": "all"}, "seeds must be a list of whole numbers"),
        ({"tables": {}}, "tables must be tables of rows"),
        (
            {"tables": {"t": {"r": {"training": {"num_round": 1}}}}},
            "t, r: recipe: there is no field training.num_round",
        ),
        ({"tables": {"t": {"r": {"recipe": "spo-miniatur"}}}}, "t, r: recipe: there is none named"),
        ({"tables": {"t": {"r": 3}}}, "t, r must be changes of fields, got 3"),
        ({"tables": {"t": {"r": {"evaluation": {"prompts": None}}}}}, "evaluation.prompts must be given"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main(["sweep", str(written(tmp_path, **changes)), "--output", str(tmp_path / "runs")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stepalign: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_the_command_runs_a_sweep(
    tmp_path: Path, ran: list[tuple[Recipe, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(written(tmp_path)), "--output", str(tmp_path / "runs"), "--share", "2/2"]) == 0
    assert len(ran) == 3
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs/sweep.md")
    assert main(["sweep", str(written(tmp_path)), "--share", "half"]) == 1


def test_the_published_sweep_is_one() -> None:
    sweep = load_sweep(Path(__file__).parents[2] / "benchmarks/ablations.yaml")
    assert len(sweep.runs()) == 3 * 32


def test_only_some_tables_can_be_run(tmp_path: Path, ran: list[tuple[Recipe, Path]]) -> None:
    sweep = load_sweep(written(tmp_path))
    results = run_sweep(sweep, tmp_path / "runs", only="Continuation", share=(2, 2))
    assert [recipe.seed for recipe, _ in ran] == [1, 1]
    assert [row["seeds"] for row in results["k"]] == [[1], []]
    with pytest.raises(ValueError, match="only must be part of a table's name: continuation, k, got 'j'"):
        run_sweep(sweep, tmp_path / "runs", only="j")


def test_a_run_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, ran: list[tuple[Recipe, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given again, the sweep tries only the run that failed."""
    good = sweep_module.run

    def failing(recipe: Recipe, output: Path, *, watcher: object = None) -> Any:
        if recipe.branching.continue_from == "best" and recipe.seed == 1:
            raise ValueError("round 1: the loss: 3 of 3 are not finite numbers")
        return good(recipe, output, watcher=watcher)

    command = ["sweep", str(written(tmp_path)), "--output", str(tmp_path / "runs")]
    with monkeypatch.context() as patched:
        patched.setattr(sweep_module, "run", failing)
        assert main(command) == 1
    err = capsys.readouterr().err
    assert "runs of the sweep failed: best, seed 1 (round 1: the loss: 3 of 3 are not finite numbers); " in err
    assert len(ran) == 5
    best = json.loads((tmp_path / "runs/sweep.json").read_text())["continuation"][1]
    assert (best["seeds"], best["missing"], [*best["failed"]]) == ([0], 1, ["1"])
    assert "- best, seed 1 failed: round 1: the loss" in (tmp_path / "runs/sweep.md").read_text()
    assert main(command) == 0
    assert len(ran) == 6


def test_a_run_whose_policy_is_of_no_use_has_failed(tmp_path: Path, ran: list[tuple[Recipe, Path]]) -> None:
    sweep = load_sweep(written(tmp_path))
    run_sweep(sweep, tmp_path / "runs")
    folder = ran[0][1]
    (folder / "summary.json").write_text(json.dumps({"seconds": 30, "failed": "the policy has diverged"}))
    (folder / "scores.jsonl").unlink()
    row = collect_results(sweep, tmp_path / "runs", {})["continuation"][0]
    assert (row["seeds"], row["failed"]) == ([1], {"0": "the policy has diverged"})
