"""Pictures drawn, scored and compared from the command line, and what it says when that cannot be done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from scored import save_pictures

from stepalign.cli import evaluation_commands
from stepalign.cli.evaluation_commands import show_results
from stepalign.cli.main import main
from stepalign.data.manifest import read_manifest, read_scores
from stepalign.miniature.scorers import miniature_scorer
from stepalign.miniature.world import split_captions
from stepalign.scorers.style import wrong_prompts
from stepalign.support import parallel
from stepalign.support.images import open_image

CAPTIONS = split_captions()[1][:3]
DRAW = ("--prompts", "miniature", "--num-prompts", "3", "--num_steps", "3", "--base.guidance_scale", "2")
ORACLES = ("miniature-aesthetic", "miniature-alignment")
NOTHING: dict[str, Any] = {}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures by the miniature, scored by its oracles."""
    folder = tmp_path_factory.mktemp("drawn") / "plain"
    assert run("generate", "miniature", *DRAW, "--output", folder) == 0
    assert run("evaluate", folder, "--scorers", *ORACLES, "--wrong-prompts", "--name", "the miniature") == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts drawn in fewer steps by the command that scores."""
    folder = tmp_path_factory.mktemp("drawn") / "other"
    words = (*DRAW[:4], "--num_steps", "2", *DRAW[6:])
    assert run("evaluate", folder, "--model", "miniature", "--scorers", *ORACLES, *words) == 0
    return folder


# What works


def test_generate_draws_a_picture_of_every_prompt(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_manifest(drawn)
    assert [(row.key, row.prompt, row.seed) for row in rows] == [((n, 0), CAPTIONS[n], 0) for n in range(3)]
    assert [open_image(drawn / row.file).size for row in rows] == [(32, 32)] * 3
    settings = json.loads((drawn / "generation.json").read_text())["settings"]
    assert (settings["num_steps"], settings["base"]["guidance_scale"], settings["eta"]) == (3, 2.0, 0.0)
    assert run("generate", "miniature", *DRAW, "--output", drawn) == 0
    assert capsys.readouterr().out == f"3 pictures of 3 prompts in {drawn}\n"


def test_evaluate_scores_every_picture(drawn: Path) -> None:
    images = [open_image(drawn / row.file) for row in read_manifest(drawn)]
    columns = {name: (miniature_scorer(name), CAPTIONS) for name in ORACLES}
    columns["miniature-alignment-wrong-prompt"] = (columns[ORACLES[1]][0], wrong_prompts(CAPTIONS, seed=0))
    rows = read_scores(drawn)
    assert [*rows[0].scores] == [*columns]
    for name, (scorer, prompts) in columns.items():
        assert [row.scores[name] for row in rows] == scorer.score(images, prompts).tolist()
    results = json.loads((drawn / "results.json").read_text())
    assert (results["name"], results["num_images"]) == ("the miniature", 3)
    assert results["generation"] == json.loads((drawn / "generation.json").read_text())


def test_evaluate_shows_the_means_and_where_the_card_is(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((drawn / "results.json").read_text())
    assert run("evaluate", drawn, "--scorers", "miniature-alignment", "--name", "again") == 0
    said = capsys.readouterr()
    assert said.out.endswith(f"{drawn / 'results.md'}\n")
    assert "again: 3 pictures of 3 prompts" in said.out
    assert f"{results['scores']['miniature-aesthetic']['mean']:.4f}" in said.out
    assert "miniature-alignment: scored before" in said.err
    assert run("evaluate", drawn, "--scorers", "miniature-alignment", "--name", "the miniature") == 0


def test_evaluate_draws_first_where_a_model_is_given(other: Path, drawn: Path) -> None:
    assert [row.prompt for row in read_manifest(other)] == CAPTIONS
    assert json.loads((other / "generation.json").read_text())["settings"]["num_steps"] == 2
    assert [*read_scores(other)[0].scores] == [*ORACLES]
    assert (other / "images/00000-0.png").read_bytes() != (drawn / "images/00000-0.png").read_bytes()


def test_compare_writes_a_report_of_both(
    drawn: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", drawn, other, "--output", tmp_path / "report") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report/report.html'}\n"
    comparison = json.loads((tmp_path / "report/comparison.json").read_text())
    assert comparison["models"] == ["the miniature", "other"]
    assert [*comparison["scorers"]] == [*ORACLES]
    means = json.loads((other / "results.json").read_text())["scores"]
    assert comparison["scores"][ORACLES[0]]["other"]["mean"] == pytest.approx(means[ORACLES[0]]["mean"])
    assert "the miniature" in (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert run("compare", drawn, other, "--names", "one", "two", "--output", tmp_path / "named") == 0
    assert json.loads((tmp_path / "named/comparison.json").read_text())["models"] == ["one", "two"]


def test_processes_other_than_the_main_one_draw_and_do_not_score(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = SimpleNamespace(is_main_process=False, device=torch.device("cpu"))
    monkeypatch.setattr(parallel, "processes", lambda: aside)
    drew: list[Path] = []
    monkeypatch.setattr(evaluation_commands, "_draw", lambda _, output, rest: drew.append(output) or NOTHING)
    assert run("evaluate", drawn, "--model", "miniature", *DRAW, "--scorers", "pickscore") == 0
    assert run("generate", "miniature", *DRAW, "--output", drawn) == 0
    assert drew == [drawn, drawn]
    assert capsys.readouterr().out == ""


def test_a_score_of_one_prompt_is_shown_without_an_interval() -> None:
    console = Console(width=80)
    scores = {"pickscore": {"mean": 21.5, "interval": None}, "aesthetic": {"mean": 5.25, "interval": [5.0, 5.5]}}
    with console.capture() as shown:
        show_results({"name": "mine", "num_images": 2, "num_prompts": 1, "scores": scores}, console)
    text = " ".join(shown.get().split())
    assert "mine: 2 pictures of 1 prompts" in text
    assert "pickscore │ 21.5000 │ –" in text
    assert "aesthetic │ 5.2500 │ 5.0000 to 5.5000" in text


# What does not


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """A function that runs a command, checks that it fails in one line and writes nothing; gives the line."""

    def check(*words: object) -> str:
        before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
        capsys.readouterr()
        assert run(*words) == 1
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert [line for line in lines if line.startswith("stepalign: ")] == lines[-1:]
        assert "Traceback" not in said.err
        assert said.out == ""
        assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
        return lines[-1]

    return check


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate miniature --prompts nowhere --output {0}/new", "there is no set 'nowhere'"),
        ("generate miniature --prompts {0}/no.txt --output {0}/new", "no.txt"),
        ("generate {0}/model --prompts miniature --output {0}/new", "{0}/model"),
        ("generate miniature --prompts miniature --output {0}/pictures", "holds files of something else"),
        ("generate miniature --prompts miniature --output {0}/new --num_step 3", "nearest: num_steps"),
        (
            "generate miniature --prompts miniature --output {0}/new --num_steps 0",
            "num_steps must be between 1 and 999",
        ),
        ("generate miniature --prompts miniature --output {0}/new steps", "expected --field value, got 'steps'"),
        (
            "generate miniature --prompts miniature --output {0}/new --num-prompts 0",
            "num-prompts must be at least 1, got 0",
        ),
        ("evaluate {0}/pictures --scorers hps", "there is no scorer 'hps'"),
        ("evaluate {0}/pictures --scorers pickscore pickscore=here", "pickscore is named twice"),
        ("evaluate {0}/pictures --scorers miniature-aesthetic", "the miniature's pictures of 32 pixels"),
        ("evaluate {0}/pictures --scorers pickscore={0}/none", "{0}/none"),
        ("evaluate {0}/pictures --scorers aesthetic --scoring-batch 0", "batch_size must be at least 1, got 0"),
        ("evaluate {0}/pictures --scorers aesthetic --prompts miniature", "--prompts: these say how to draw pictures"),
        ("evaluate {0}/pictures --scorers aesthetic --num-prompts 3", "--num-prompts: these say how to draw pictures"),
        ("evaluate {0}/pictures --scorers aesthetic --eta 0", "--eta 0: these say how to draw pictures"),
        ("evaluate {0}/pictures --scorers hps --model miniature --prompts miniature", "there is no scorer 'hps'"),
        ("evaluate {0}/new --scorers aesthetic --model miniature", "--model draws pictures, and needs --prompts"),
        ("evaluate {0}/new --scorers aesthetic", "there is no {0}/new/manifest.jsonl"),
        ("compare {0}/pictures --output {0}/new", "at least two evaluated folders"),
        ("compare {0}/pictures {0}/other --output {0}/new", "run `stepalign evaluate` on the folder first"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_writes_nothing(
    words: str, said: str, tmp_path: Path, refused: Refused
) -> None:
    save_pictures(tmp_path / "pictures")
    save_pictures(tmp_path / "other")
    assert said.format(tmp_path) in refused(*words.format(tmp_path).split())


def test_help_says_what_there_is_and_needs_no_model_library() -> None:
    """In a process of its own, as others of these tests have loaded everything."""
    program = (
        "import sys\nfrom stepalign.cli import main\n"
        "for command in ('generate', 'evaluate', 'compare'):\n"
        "    try:\n        main([command, '--help'])\n"
        "    except SystemExit as done:\n        assert not done.code\n"
        "print(sorted({'diffusers', 'transformers', 'peft', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert text.endswith("[]")
    assert text.count("usage: ") == 3
    for words in ("--num_images 1 (of each prompt)", "--scorers NAME[=PATH]", "the first is what the others are held"):
        assert words in text
