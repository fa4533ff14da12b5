"""`stepalign train`: whole runs, resumed runs, and files that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import stepalign
from stepalign.cli import main
from stepalign.runs.job import NullWatcher
from stepalign.runs.recipes import RECIPES, Recipe, load_recipe
from stepalign.support.config import change, parse_flags
from stepalign.training.trainer import Trainer

ADAPTER = "adapter/pytorch_lora_weights.safetensors"
FILES = [
    "adapter/kohya.safetensors",
    ADAPTER,
    "checkpoint.pt",
    "files.json",
    "metrics.jsonl",
    "previous-checkpoint.pt",
    "recipe.yaml",
]
FILES += ["report.html", "scores.jsonl", "stepalign.json", "summary.json"]
SETTINGS = {
    "--base.num_steps": "3",
    "--branching.num_candidates": "2",
    "--checkpoint_every": "2",
    "--training.num_rounds": "3",
    "--training.prompts_per_round": "2",
    "--training.comparisons_per_update": "3",
    "--source.min_gap": "0",
    "--training.learning_rate": "1e-3",
}
Flags = dict[str, str]


@pytest.fixture(scope="module")
def flags(tiny_sd_folder: Path, tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Flags:
    """What makes `gradspo-sd15` a run of a second."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a cat\na dog\ntwo boats\n")
    parts = {"--model": str(tiny_sd_folder), "--judge.path": str(tiny_spm_folder)}
    return {**parts, "--prompts": str(prompts), "--evaluation.prompts": str(prompts), **SETTINGS}


def train(flags: Flags, changes: str = "") -> list[str]:
    """The words of a command with some flags changed."""
    changed = dict(flags)
    for change_of in changes.split("--")[1:]:
        name, _, value = change_of.strip().partition(" ")
        changed[f"--{name}"] = value
    return ["train", "gradspo-sd15", *" ".join(f"{name} {value}" for name, value in changed.items()).split()]


@pytest.fixture(scope="module")
def finished(flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run left alone; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert main([*train(flags), "--output", str(output)]) == 0
    return output


Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """A function that runs a command, checks that it is refused in one line and changes nothing; gives the line."""

    def run(*words: str, output: Path | None = None) -> str:
        output = output or tmp_path / "run"
        before = snapshot(output)
        capfd.readouterr()
        status = main([*words, "--output", str(output)])
        lines = capfd.readouterr().err.splitlines()
        assert status != 0
        assert snapshot(output) == before
        assert [line for line in lines if line.startswith("stepalign: ")] == lines[-1:]
        assert lines[:-1] == []
        return lines[0]

    return run


def snapshot(folder: Path) -> dict[str, bytes] | None:
    """The content of every file below a folder; None when there is no folder."""
    if not folder.exists():
        return None
    files = [folder] if folder.is_file() else [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def rows(output: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read]


def summary(output: Path) -> dict[str, Any]:
    """All of a summary that another run of the same repeats."""
    values = json.loads((output / "summary.json").read_text())
    assert list(values["timing"]) == ["seconds", "training_seconds", "device"]
    return {key: value for key, value in values.items() if key != "timing"}


# Whole runs


def test_a_run_writes_its_files(finished: Path) -> None:
    assert [str(path.relative_to(finished)) for path in sorted(finished.rglob("*")) if path.is_file()] == FILES
    assert [row["round"] for row in rows(finished)] == [1, 2, 3]
    assert all(row["comparisons"] == 2 * 3 and row["updates"] == 2 for row in rows(finished))
    weights = load_file(finished / ADAPTER)
    assert all(name.startswith("unet.") for name in weights)
    assert all(tensor.any() for tensor in weights.values())
    assert "<html" in (finished / "report.html").read_text()


def test_the_summary_reports_scores_and_counts(finished: Path, flags: Flags) -> None:
    values = summary(finished)
    assert (values["recipe"], values["seed"], values["num_prompts"], values["rounds"]) == ("gradspo-sd15", 0, 3, 3)
    judge = values["scores"]["judge"]
    assert judge["difference"] == pytest.approx(judge["aligned"] - judge["base"], abs=1e-5)
    assert judge["interval"][0] <= judge["difference"] <= judge["interval"][1]
    assert (values["comparisons_trained"], values["updates"]) == (3 * 6, 6)
    calls = values["calls"]
    assert calls["sampling_ema"] == 3 * 2 * 2 * (1 + 2 * 2)
    assert calls["training_policy"] == calls["training_reference"] == calls["training_ema"] == 2 * 18
    assert (calls["judge_texts"], calls["base_texts"]) == (3, 3 + 1)
    assert values["versions"]["torch"] == version("torch")


def test_the_written_recipe_is_the_one_that_ran(finished: Path, flags: Flags) -> None:
    assert load_recipe(str(finished / "recipe.yaml")) == change(
        load_recipe("gradspo-sd15"), parse_flags(train(flags)[2:])
    )


def test_the_same_command_again_changes_nothing(finished: Path, flags: Flags) -> None:
    before = snapshot(finished)
    assert main([*train(flags), "--output", str(finished)]) == 0
    assert snapshot(finished) == before


@pytest.mark.slow
def test_the_written_recipe_runs_again_to_the_same_adapter(finished: Path, tmp_path: Path) -> None:
    assert main(["train", str(finished / "recipe.yaml"), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / ADAPTER).read_bytes() == (finished / ADAPTER).read_bytes()
    assert rows(tmp_path / "again") == rows(finished)


class Killer(NullWatcher):
    """Interrupts a run at a moment: "round" or a phase, and which one of them."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.left = moment, count

    def _tick(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0:
            raise KeyboardInterrupt

    def phase(self, name: str, done: int, total: int) -> None:
        self._tick(name)

    def round(self, row: dict[str, Any], total: int) -> None:
        self._tick("round")


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "count", "rounds_left"), [("sample", 5, 3), ("train", 6, 1), ("evaluate", 2, 0)])
def test_a_killed_run_resumes_from_its_checkpoint_to_the_same_end(
    moment: str,
    count: int,
    rounds_left: int,
    finished: Path,
    flags: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = change(load_recipe("gradspo-sd15"), parse_flags(train(flags)[2:]))
    with pytest.raises(KeyboardInterrupt):
        stepalign.run(recipe, tmp_path / "run", watcher=Killer(moment, count))
    assert not (tmp_path / "run/summary.json").exists()
    if moment == "train":  # after the metrics of a round and before its checkpoint, as it were
        with (tmp_path / "run/metrics.jsonl").open("a") as file:
            file.write('{"round": 3}\n')
    one_round, done = Trainer.round, []
    monkeypatch.setattr(Trainer, "round", lambda *given: done.append(1) or one_round(*given))
    assert main([*train(flags), "--output", str(tmp_path / "run")]) == 0
    assert len(done) == rounds_left
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (finished / ADAPTER).read_bytes()
    assert rows(tmp_path / "run") == rows(finished)
    assert json.dumps(summary(tmp_path / "run")) == json.dumps(summary(finished))


def test_an_interrupted_run_reports_how_to_resume(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stepalign.runs.job.run", interrupted)
    assert "the same command resumes" in refused("train", "gradspo-sd15")


def test_the_demo_runs_the_miniature_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[Recipe, Path]] = []

    def record(recipe: Recipe, output: Path, **_: object) -> dict[str, Any]:
        ran.append((recipe, output))
        return {"recipe": recipe.name, "seed": recipe.seed, "num_prompts": 0, "scores": {}}

    monkeypatch.setattr("stepalign.runs.job.run", record)
    assert main(["demo", "--output", str(tmp_path), "--seed", "7"]) == 0
    assert ran == [(change(RECIPES["gradspo-miniature"], {"seed": 7}), tmp_path)]


# Bad input that only loaded files show; `wrong_inputs` has all other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model {folder}", "model_index.json"),
        ("--judge.path {folder}/nan", "not finite numbers"),
        ("--judge.path {folder}/mute", "tokenizer"),
        ("--base.resolution 100", "resolution"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    words: str, said: str, flags: Flags, tiny_spm_folder: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(tiny_spm_folder, tmp_path / "nan")
    weights = load_file(tiny_spm_folder / "model.safetensors")
    nothing = {name: tensor * float("nan") for name, tensor in weights.items()}
    save_file(nothing, tmp_path / "nan/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_spm_folder / name, tmp_path / "mute")
    assert said in refused(*train(flags, words.format(folder=tmp_path)))


def test_the_directory_of_another_run_is_refused(finished: Path, flags: Flags, refused: Refused) -> None:
    line = refused(*train(flags, "--seed 1"), output=finished)
    assert "is another run's: its seed is 0, this recipe's 1; give another directory" in line


def test_two_damaged_checkpoints_are_refused(flags: Flags, finished: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    for name in ("checkpoint.pt", "previous-checkpoint.pt"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes()[:1000])
    assert "no whole checkpoint is left to make it again from" in refused(*train(flags), output=tmp_path / "run")
