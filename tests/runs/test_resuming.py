"""A miniature run whose process is killed and whose command is given again ends with the bits of one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stepalign.support.files import RunState, load_state

COMMAND = (
    *(sys.executable, "-m", "stepalign.cli", "train", "gradspo-miniature"),
    *("--training.num_rounds", "4", "--training.prompts_per_round", "3", "--training.comparisons_per_update", "16"),
    *("--branching.num_candidates", "2", "--training.learning_rate", "1e-3", "--evaluation.num_prompts", "2"),
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMPARED = ("recipe.yaml", "adapter/pytorch_lora_weights.safetensors")


def start(output: Path) -> subprocess.Popen[bytes]:
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen([*COMMAND, "--output", str(output)], env=ENVIRONMENT, stdout=log, stderr=log)


@pytest.mark.slow
def test_a_killed_run_given_again_ends_bit_identical_to_one_left_alone(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    undisturbed, doomed = start(alone), start(killed)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").is_file() and doomed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert 1 <= load_state(killed / "checkpoint.pt", RunState).num_rounds < 4
    assert not (killed / "summary.json").exists()

    assert start(killed).wait(timeout=120) == 0
    assert undisturbed.wait(timeout=120) == 0
    for name in COMPARED:
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    states = [load_state(run / "checkpoint.pt", RunState) for run in (alone, killed)]
    assert states[0].num_updates == states[1].num_updates == 12
    for name in ("adapter", "ema"):
        first, second = (getattr(state, name) for state in states)
        assert all(torch.equal(first[key], second[key]) for key in first)
    moments = [[entry["exp_avg_sq"] for entry in state.optimizer["state"].values()] for state in states]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))
