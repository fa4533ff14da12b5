"""A job of two processes of which one is killed: the other ends within seconds, with one line, and the job resumes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holds import note_figure

LIMIT = 20.0
"""Seconds, on a machine that has other work to do."""
COMMAND = "train gradspo-miniature --base.num_steps 10 --branching.num_candidates 4 --training.prompts_per_round 32"
COMMAND += " --training.sample_batch 2 --training.num_rounds 2 --evaluation.num_prompts 40 --evaluation.batch_size 2"
MOMENTS = {"sampling": "checked:", "training": "round 1 of 2", "evaluation": "round 2 of 2"}
"""The line of the main process after which one of the two is killed."""


def start(output: Path) -> list[subprocess.Popen[bytes]]:
    """The two processes of a job, without a launcher; each prints into a file beside the output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        with log_of(output, rank).open("wb") as log:
            own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = [sys.executable, "-m", "stepalign", *COMMAND.split(), "--output", str(output)]
            ranks.append(subprocess.Popen(words, env=own, stdout=log, stderr=log))
    return ranks


def log_of(output: Path, rank: int) -> Path:
    return output.with_name(f"{output.name}.{rank}.log")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["sampling", "training", "evaluation"])
def test_the_other_process_ends_within_seconds_in_one_line(moment: str, victim: int, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ranks = start(output)
    try:
        deadline = time.monotonic() + 240
        while MOMENTS[moment] not in log_of(output, 0).read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[victim].kill()
        killed = time.monotonic()
        status = ranks[1 - victim].wait(timeout=60)
        seconds = time.monotonic() - killed
    finally:
        for rank in ranks:
            rank.kill()
    printed = log_of(output, 1 - victim).read_text(encoding="utf-8").splitlines()
    lines = [line for line in printed if line.startswith("stepalign")]
    note_figure(f"process {victim} killed in {moment}", {"seconds until the other ended": round(seconds, 1)})
    assert status == 1
    assert len(lines) == 1, printed
    assert "another process of this command ended" in lines[0]
    assert lines[0].endswith("the same command resumes")
    assert seconds < LIMIT
    if moment == "evaluation" and victim == 1:  # the main process has saved the round that it has shown
        state = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert state["round"] == 2
