"""A judge's training that was stopped, at any moment, ends with the bits of one left alone when its command is given
again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_runs import NUM_STEPS, WEIGHTS, finished_run, recipe_of, rows, snapshot, summary, trained, write_pairs
from judge_runs import words as command

from stepalign.cli import main
from stepalign.runs.judge_job import run_judge
from stepalign.runs.judge_recipes import load_judge_recipe
from stepalign.support.config import to_yaml
from stepalign.support.files import load_state
from stepalign.support.watcher import NullWatcher
from stepalign.training.judge_trainer import JudgeState, JudgeTrainer

Factory = pytest.TempPathFactory
SUICIDE = """
import os, signal, sys, torch
from stepalign.runs.judge_job import run_judge
from stepalign.runs.judge_recipes import load_judge_recipe
from stepalign.support.watcher import NullWatcher

class Suicide(NullWatcher):
    def round(self, row, total):
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
run_judge(load_judge_recipe(sys.argv[1]), sys.argv[2], watcher=Suicide())
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Factory) -> Path:
    return finished_run(tmp_path_factory)


class Stopper(NullWatcher):
    """Interrupts a run at a moment: "step" or a phase, and which one of them."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.left = moment, count

    def phase(self, name: str, done: int, total: int) -> None:
        self._tick(name)

    def round(self, row: dict[str, Any], total: int) -> None:
        self._tick("step")

    def _tick(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0:
            raise KeyboardInterrupt


def stopped(words: list[str], output: Path, moment: str, count: int) -> Path:
    """The directory of a run that was interrupted."""
    with pytest.raises(KeyboardInterrupt):
        run_judge(recipe_of(words), output, watcher=Stopper(moment, count))
    assert not (output / "summary.json").exists()
    return output


def assert_same(one: Path, other: Path) -> None:
    """Check that two runs ended with the same bits, and say the same of themselves."""
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    for name in ("judge/config.json", "judge/README.md", "start.json"):
        assert (one / name).read_text() == (other / name).read_text()
    first, second = (load_judge_recipe(str(folder / "recipe.yaml")) for folder in (one, other))
    assert first == second
    assert rows(one) == rows(other)
    assert json.dumps(summary(one)) == json.dumps(summary(other))


def test_the_same_seed_trains_the_same_judge(finished: Path, tmp_path: Path) -> None:
    assert_same(trained(["train-judge", str(finished / "recipe.yaml")], tmp_path / "again"), finished)


@pytest.mark.parametrize(
    ("stops", "num_steps_left"),
    [([("step", 1), ("step", 3), ("step", 2)], 2), pytest.param([("evaluate", 2)], 0, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_stopped_run_goes_on_from_its_last_checkpoint_to_the_same_end(
    stops: list[tuple[str, int]],
    num_steps_left: int,
    finished: Path,
    tmp_path: Path,
    tmp_path_factory: Factory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints are after steps 2 and 4; the model is measured before the first step and after the last.

    Stopped in step 1, in step 3, and in step 4, the second since the checkpoint; a row without its checkpoint is
    done again.
    """
    for moment, count in stops:
        output = stopped(command(tmp_path_factory), tmp_path / "run", moment, count)
    if num_steps_left == 2:
        with (output / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3}\n')
    one_step, done = JudgeTrainer.step, []
    monkeypatch.setattr(JudgeTrainer, "step", lambda *given: done.append(1) or one_step(*given))
    assert_same(trained(command(tmp_path_factory), output), finished)
    assert len(done) == num_steps_left


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_same_command_goes_on_from(
    finished: Path, tmp_path: Path, tmp_path_factory: Factory
) -> None:
    output, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(recipe_of(command(tmp_path_factory))))
    words = [sys.executable, "-c", SUICIDE, str(recipe), str(output)]
    killed = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert load_state(output / "checkpoint.pt", JudgeState).num_steps == 2
    assert_same(trained(command(tmp_path_factory), output), finished)


def test_a_checkpoint_holds_weights_moments_and_position(finished: Path) -> None:
    state = load_state(finished / "checkpoint.pt", JudgeState)
    assert state.num_steps == NUM_STEPS
    moments = state.optimizer["state"].values()
    assert len(moments) == len(state.model)
    assert all(entry["exp_avg_sq"].dtype == torch.float32 and entry["step"] == NUM_STEPS for entry in moments)


def refusal(words: list[str], output: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused that leaves its directory as it was."""
    before = snapshot(output)
    capfd.readouterr()
    assert main([*words, "--output", str(output)]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stepalign: ")]
    assert snapshot(output) == before
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("--seed 1", "its seed is 0, this recipe's 1"),
        ("--training.learning_rate 1e-3", "its training.learning_rate is 0.0005, this recipe's 0.001"),
        ("--evaluation.timesteps 0", "its evaluation.timesteps is [0, 501], this recipe's [0]"),
    ],
)
def test_the_directory_of_another_recipe_is_refused(
    changes: str, said: str, finished: Path, tmp_path_factory: Factory, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refusal(command(tmp_path_factory, changes), finished, capfd)
    assert "is another run's: " in line
    assert said in line


def test_a_run_does_not_go_on_with_other_labels_or_a_damaged_checkpoint(
    tmp_path: Path, tmp_path_factory: Factory, capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "mine")
    words = command(tmp_path_factory, f"--data.pairs {pairs} --evaluation.pairs None --evaluation.share 0.3")
    output = stopped(words, tmp_path / "run", "step", 3)
    labelled = pairs.read_text()
    pairs.write_text(labelled.replace('"label": 0,', '"label": 1,'))
    assert "was begun with; restore what it was" in refusal(words, output, capfd)
    pairs.write_text(labelled)
    content = (output / "checkpoint.pt").read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        (output / "checkpoint.pt").write_bytes(damaged)
        assert "checkpoint.pt is not a checkpoint" in refusal(words, output, capfd)
