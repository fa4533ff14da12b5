"""A disk that fills up during a run: the command ends in one line and resumes when there is room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked import run
from holds import note_figure
from test_kills import content, words

COMMANDS = ["train", "train-judge", "generate", "sweep"]
NUM_SIZES = 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size `resize` changes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, num_bytes: int) -> None:
    """Give the file system so many bytes; pages of the system are its unit."""
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands run in forked processes")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_ends_in_one_line_and_the_same_command_resumes(command: str, tmp_path: Path, disk: Path) -> None:
    torch.set_num_threads(1)
    inputs = tmp_path / "inputs"
    alone = run(words(command, inputs, tmp_path / "alone"), tmp_path / "alone")
    assert alone.status == 0, alone.output
    expected = content(tmp_path / "alone")
    need = sum(path.stat().st_size for path in tmp_path.glob("alone*/**/*") if path.is_file())
    ended, resumed = 0, 0
    for number in range(NUM_SIZES):
        output = disk / f"{number}/run"
        given = words(command, inputs, output)
        used = os.statvfs(disk).f_blocks - os.statvfs(disk).f_bfree
        resize(disk, used * os.statvfs(disk).f_frsize + 8192 + need * number // NUM_SIZES)
        full = run(given, tmp_path / f"logs/{number}")
        lines = [line for line in full.output.splitlines() if "no space left" in line.lower()]
        assert full.status in (0, 1), full.output
        assert "Traceback" not in full.output, full.output
        if full.status == 1:
            assert len(lines) == 1, full.output
            ended += 1
        resize(disk, 512 << 20)
        again = run(given, tmp_path / f"logs/{number}")
        assert again.status == 0, again.output
        resumed += content(output) == expected
    note_figure(f"full disk: {command}", {"sizes": NUM_SIZES, "ended in one line": ended, "ended alike after": resumed})
    assert ended >= NUM_SIZES - 2
    assert resumed == NUM_SIZES
