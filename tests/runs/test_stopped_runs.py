"""Runs that a signal stops: the last finished round is saved, and the same command ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stepalign.cli import main
from stepalign.runs.job import NullWatcher

pytestmark = pytest.mark.usefixtures("without_report", "signals_arrive")
TINY = {
    "--base.num_steps": "3",
    "--branching.num_candidates": "2",
    "--checkpoint_every": "4",
    "--training.num_rounds": "4",
    "--training.prompts_per_round": "2",
    "--source.min_gap": "0",
    "--training.learning_rate": "1e-3",
}
ADAPTER = "adapter/pytorch_lora_weights.safetensors"


class Signaller(NullWatcher):
    """Sends this process a signal at a moment: "round" or a phase, and which one of them."""

    def __init__(self, moment: str, count: int, number: signal.Signals) -> None:
        self.moment, self.left, self.number = moment, count, number

    def __enter__(self) -> Signaller:
        return self

    def __exit__(self, *_: object) -> None: ...

    def phase(self, name: str, done: int, total: int) -> None:
        self._tick(name)

    def round(self, row: dict[str, Any], total: int) -> None:
        self._tick("round")

    def _tick(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0:
            os.kill(os.getpid(), self.number)
            self.left = -1


@pytest.fixture(scope="module")
def words(tiny_sd_folder: Path, tiny_spm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a cat\na dog\ntwo boats\n", encoding="utf-8")
    parts = {"--model": str(tiny_sd_folder), "--judge.path": str(tiny_spm_folder), "--prompts": str(prompts), **TINY}
    return ["train", "gradspo-sd15", *(word for pair in parts.items() for word in pair)]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run left alone."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert main([*words, "--output", str(output)]) == 0
    return output


def results(output: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """The adapter, and rows and summary without the clock."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    del summary["timing"]
    return (output / ADAPTER).read_bytes(), rows, summary


@pytest.mark.parametrize(
    ("moment", "count", "number", "said"),
    [
        pytest.param("sample", 7, signal.SIGTERM, "by SIGTERM; round 2 of 4 is saved", marks=pytest.mark.slow),
        ("train", 4, signal.SIGINT, "by SIGINT; round 3 of 4 is saved"),
    ],
)
def test_a_stopped_run_saves_its_last_round_and_ends_with_the_same_bits(
    moment: str,
    count: int,
    number: signal.Signals,
    said: str,
    words: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*words, "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr("stepalign.cli.console.progress_bars", lambda: Signaller(moment, count, number))
        assert main(command) == 128 + number
    err = capsys.readouterr().err
    assert err == f"stepalign: stopped {said}; the same command resumes\n"
    num = int(said.split("round ")[1].split()[0])
    assert len((tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()) == num
    with (tmp_path / "run/metrics.jsonl").open("a", encoding="utf-8") as file:  # as of a round without its checkpoint
        file.write(f'{{"round": {num + 1}}}\n')
    rounds: list[int] = []
    with monkeypatch.context() as patched:
        watcher = Signaller("", 1, number)
        watcher.round = lambda row, total: rounds.append(row["round"])  # type: ignore[method-assign]
        patched.setattr("stepalign.cli.console.progress_bars", lambda: watcher)
        assert main(command) == 0
    assert rounds == list(range(num + 1, 5))
    assert results(tmp_path / "run") == results(whole)


def test_a_run_stopped_in_its_first_round_leaves_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stepalign.cli.console.progress_bars", lambda: Signaller("sample", 1, signal.SIGTERM))
    assert main([*words, "--output", str(tmp_path / "run")]) == 143
    assert "no round was finished" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_lack_of_memory_saves_the_last_round_too(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Exhausted(Signaller):
        def _tick(self, moment: str) -> None:
            self.left -= moment == self.moment
            if self.left == 0:
                raise MemoryError

    monkeypatch.setattr("stepalign.cli.console.progress_bars", lambda: Exhausted("sample", 5, signal.SIGTERM))
    assert main([*words, "--output", str(tmp_path / "run")]) == 1
    assert "memory ran out (MemoryError); try --base.max_batch 1" in capsys.readouterr().err
    assert len((tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert (tmp_path / "run/checkpoint.pt").is_file()


def test_generating_finishes_the_batch_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"--prompts": "miniature", "--num-prompts": "4", "--num_steps": "2", "--batch_size": "2"}
    words = [word for pair in flags.items() for word in pair]
    command = ["generate", "miniature", *words, "--base.guidance_scale", "2", "--output", str(tmp_path / "images")]
    with monkeypatch.context() as patched:
        watcher = Signaller("sample", 1, signal.SIGTERM)
        patched.setattr("stepalign.cli.console.progress_bars", lambda **_: watcher)
        assert main(command) == 143
    assert "stopped by SIGTERM; 2 of 4 images are saved; the same command resumes" in capsys.readouterr().err
    assert len(list((tmp_path / "images/images").glob("*.png"))) == 2
    assert main(command) == 0
    assert len(list((tmp_path / "images/images").glob("*.png"))) == 4


def test_a_judges_training_saves_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--data.num_rows 24 --evaluation.num_pairs 4 --evaluation.timesteps 0 --training.num_steps 3 "
        f"--training.batch_size 2 --checkpoint_every 3 --data.cache {tmp_path / 'cache'}"
    ).split()
    command = ["train-judge", "spm-miniature", *flags, "--output", str(tmp_path / "judge")]
    with monkeypatch.context() as patched:
        patched.setattr("stepalign.cli.console.progress_bars", lambda: Signaller("round", 1, signal.SIGTERM))
        assert main(command) == 143
    assert "stopped by SIGTERM; step 1 of 3 is saved" in capsys.readouterr().err
    assert (tmp_path / "judge/checkpoint.pt").is_file()


def test_an_evaluation_finishes_the_batch_and_keeps_the_scores_of_the_scorer_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    flags = ["--num-prompts", "4", "--num_steps", "2", "--base.guidance_scale", "2"]
    assert main(["generate", "miniature", "--prompts", "miniature", *flags, "--output", str(folder)]) == 0
    scorers = ["--scorers", "miniature-aesthetic", "miniature-alignment", "--scoring-batch", "2"]
    with monkeypatch.context() as patched:
        watcher = Signaller("score", 3, signal.SIGTERM)
        patched.setattr("stepalign.cli.console.progress_bars", lambda **_: watcher)
        assert main(["evaluate", str(folder), *scorers]) == 143
    told = "stopped by SIGTERM; the scores of 1 of 2 scorers are saved; the same command resumes"
    assert told in capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["scores"].keys() for row in rows] == [{"miniature-aesthetic"}] * 4
    assert main(["evaluate", str(folder), *scorers]) == 0


@pytest.mark.slow
def test_a_sweep_stops_in_a_run_and_names_the_runs_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"base": {"num_steps": 3}, "branching": {"num_candidates": 2}, "evaluation": {"num_prompts": 2}}
    settings["training"] = {"num_rounds": 2, "prompts_per_round": 2}
    sweep = {"recipe": "spo-miniature", "seeds": [0, 1], "changes": settings, "tables": {"t": {"a": {}}}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    command = ["sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "runs")]
    with monkeypatch.context() as patched:
        watcher = Signaller("round", 3, signal.SIGTERM)
        patched.setattr("stepalign.cli.console.progress_bars", lambda: watcher)
        assert main(command) == 143
    told = "stopped by SIGTERM; 1 of 2 runs of the sweep are done; of the next, round 1 of 2 is saved; the same command"
    assert told in capsys.readouterr().err
    assert main(command) == 0
    assert len(json.loads((tmp_path / "runs/sweep.json").read_text(encoding="utf-8"))["t"][0]["seeds"]) == 2
