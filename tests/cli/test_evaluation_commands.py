"""`stepalign generate`, `evaluate` and `compare` on a few images of the miniature."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from scored import save_images

from stepalign.cli import main
from stepalign.cli.console import show_results
from stepalign.data.manifest import read_manifest, read_scores
from stepalign.miniature.scorers import miniature_scorer
from stepalign.miniature.world import split_captions
from stepalign.scorers.style import wrong_prompts
from stepalign.support import parallel
from stepalign.support.images import open_image

CAPTIONS = split_captions()[1][:3]
SAMPLING = ("--prompts", "miniature", "--num-prompts", "3", "--num_steps", "3", "--base.guidance_scale", "2")
ORACLES = ("miniature-aesthetic", "miniature-alignment")
NOTHING: dict[str, Any] = {}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images by the miniature, scored by its oracles."""
    folder = tmp_path_factory.mktemp("generated") / "plain"
    assert run("generate", "miniature", *SAMPLING, "--output", folder) == 0
    assert run("evaluate", folder, "--scorers", *ORACLES, "--wrong-prompts", "--name", "the miniature") == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts generated in fewer steps by the command that scores."""
    folder = tmp_path_factory.mktemp("generated") / "other"
    words = (*SAMPLING[:4], "--num_steps", "2", *SAMPLING[6:])
    assert run("evaluate", folder, "--model", "miniature", "--scorers", *ORACLES, *words) == 0
    return folder


# What works


def test_generate_writes_an_image_of_every_prompt(generated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_manifest(generated)
    assert [(row.key, row.prompt, row.seed) for row in rows] == [((n, 0), CAPTIONS[n], 0) for n in range(3)]
    assert [open_image(generated / row.file).size for row in rows] == [(32, 32)] * 3
    settings = json.loads((generated / "generation.json").read_text())["settings"]
    assert (settings["num_steps"], settings["base"]["guidance_scale"], settings["eta"]) == (3, 2.0, 0.0)
    assert run("generate", "miniature", *SAMPLING, "--output", generated) == 0
    assert capsys.readouterr().out == f"3 images of 3 prompts in {generated}\n"


def test_evaluate_scores_every_image(generated: Path) -> None:
    images = [open_image(generated / row.file) for row in read_manifest(generated)]
    columns = {name: (miniature_scorer(name), CAPTIONS) for name in ORACLES}
    columns["miniature-alignment-wrong-prompt"] = (columns[ORACLES[1]][0], wrong_prompts(CAPTIONS, seed=0))
    rows = read_scores(generated)
    assert [*rows[0].scores] == [*columns]
    for name, (scorer, prompts) in columns.items():
        assert [row.scores[name] for row in rows] == scorer.score(images, prompts).tolist()
    results = json.loads((generated / "results.json").read_text())
    assert (results["name"], results["num_images"]) == ("the miniature", 3)
    assert results["generation"] == json.loads((generated / "generation.json").read_text())


def test_evaluate_shows_the_means_and_where_the_card_is(generated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((generated / "results.json").read_text())
    assert run("evaluate", generated, "--scorers", "miniature-alignment", "--name", "again") == 0
    said = capsys.readouterr()
    assert said.out.endswith(f"{generated / 'results.md'}\n")
    assert "again: 3 images of 3 prompts" in said.out
    assert f"{results['scores']['miniature-aesthetic']['mean']:.4f}" in said.out
    assert "miniature-alignment: scored before" in said.err
    assert run("evaluate", generated, "--scorers", "miniature-alignment", "--name", "the miniature") == 0


def test_evaluate_generates_first_where_a_model_is_given(other: Path, generated: Path) -> None:
    assert [row.prompt for row in read_manifest(other)] == CAPTIONS
    assert json.loads((other / "generation.json").read_text())["settings"]["num_steps"] == 2
    assert [*read_scores(other)[0].scores] == [*ORACLES]
    assert (other / "images/00000-0.png").read_bytes() != (generated / "images/00000-0.png").read_bytes()


def test_compare_writes_a_report_of_both(
    generated: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", generated, other, "--output", tmp_path / "report") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report/report.html'}\n"
    comparison = json.loads((tmp_path / "report/comparison.json").read_text())
    assert comparison["models"] == ["the miniature", "other"]
    assert [*comparison["scorers"]] == [*ORACLES]
    means = json.loads((other / "results.json").read_text())["scores"]
    assert comparison["scores"][ORACLES[0]]["other"]["mean"] == pytest.approx(means[ORACLES[0]]["mean"])
    assert "the miniature" in (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert run("compare", generated, other, "--names", "one", "two", "--output", tmp_path / "named") == 0
    assert json.loads((tmp_path / "named/comparison.json").read_text())["models"] == ["one", "two"]


def test_processes_other_than_the_main_one_generate_and_do_not_score(
    generated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = SimpleNamespace(is_main_process=False, device=torch.device("cpu"))
    monkeypatch.setattr(parallel, "processes", lambda: aside)
    written: list[Path] = []
    for command in ("generate", "evaluate"):
        monkeypatch.setattr(
            f"stepalign.cli.{command}.generate_images", lambda _, output: written.append(output) or NOTHING
        )
    assert run("evaluate", generated, "--model", "miniature", *SAMPLING, "--scorers", "pickscore") == 0
    assert run("generate", "miniature", *SAMPLING, "--output", generated) == 0
    assert written == [generated, generated]
    assert capsys.readouterr().out == ""


def test_a_score_of_one_prompt_is_shown_without_an_interval() -> None:
    console = Console(width=80)
    scores = {"pickscore": {"mean": 21.5, "interval": None}, "aesthetic": {"mean": 5.25, "interval": [5.0, 5.5]}}
    with console.capture() as shown:
        show_results({"name": "mine", "num_images": 2, "num_prompts": 1, "scores": scores}, console)
    text = " ".join(shown.get().split())
    assert "mine: 2 images of 1 prompts" in text
    assert "pickscore │ 21.5000 │ –" in text
    assert "aesthetic │ 5.2500 │ 5.0000 to 5.5000" in text


# What only loaded files show; `wrong_inputs` has all other


def test_a_scorer_that_does_not_fit_the_images_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "images")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run("evaluate", tmp_path / "images", "--scorers", "miniature-aesthetic") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.startswith("stepalign: ")] == said.err.splitlines()[-1:]
    assert "the miniature's images of 32 pixels" in said.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
