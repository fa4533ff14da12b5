"""Damage to every file of finished and unfinished jobs: it is made good with the same results, or named in one line."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import WHOLE, Death, End, run
from holds import note_figure
from test_kills import content, words

from stepalign.runs.run_directory import CHECKPOINT, PREVIOUS
from stepalign.support.file_record import FILE_RECORD, check_files

GUARD = "--guard.every 1 --guard.num_prompts 2 --guard.action stop"
KINDS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(content: bytes) -> bytes:
    """A file's content with one bit in its middle turned."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def command_of(kind: str, folder: Path, output: Path) -> list[str]:
    """A small command; a train run has a guard, whose adapters are files too."""
    given = words(kind, folder, output)
    if kind == "train-judge":  # one cache of encoded pairs for all cases
        given[given.index("--data.cache") + 1] = str(folder / "cache")
    return [*given, *(GUARD.split() if kind == "train" else [])]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands run in forked processes")
@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("kind", ["train", "train-judge", "generate", "sweep"])
def test_damage_to_any_file_is_made_good_or_named_in_one_line(kind: str, state: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    inputs, alone, output = tmp_path / "inputs", tmp_path / "alone", tmp_path / "damaged"
    if kind == "train-judge":  # which fills the cache, so that the later ones write the same files
        assert run(command_of(kind, inputs, tmp_path / "first"), tmp_path / "first").status == 0
    ended = run(command_of(kind, inputs, alone), alone)
    assert ended.status == 0, ended.output
    expected, start = content(alone), alone
    if state == "unfinished":  # all but the record of files and the summary is there
        start = tmp_path / "start"
        last = max(number for number, name in enumerate(ended.writes, 1) if name == FILE_RECORD)
        last -= kind == "sweep" and 3  # in the second run, not in the sweep's own directory
        assert run(command_of(kind, inputs, start), start, Death(WHOLE, last)).status == -9
    counts: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for path in sorted(path.relative_to(start) for path in start.rglob("*") if path.is_file()):
        if path.name.startswith("."):
            continue
        for damage, spoil in KINDS.items():
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(start, output)
            spoil(output / path)
            end = run(command_of(kind, inputs, output), output)
            verdict = judged(kind, end, output, path, expected)
            counts[verdict] += 1
            if verdict == "wrong":
                failed[f"{path} {damage}"] = end.output[-400:]
    note_figure(f"damage: {kind}, {state}", dict(counts))
    assert failed == {}


def judged(kind: str, end: End, output: Path, path: Path, expected: dict[str, object]) -> str:
    """How a damaged job ended: with the same results, or with one line that names the file; anything else is wrong."""
    lines = [line for line in end.output.splitlines() if line.startswith("stepalign: ") and "warning" not in line]
    if "Traceback" in end.output or "unexpected" in end.output:
        return "wrong"
    if end.status == 1:
        return "named" if len(lines) == 1 and path.name in lines[0] else "wrong"
    found = content(output)
    different = {name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)}
    not_needed = "does not need it" in end.output and path.name in end.output
    not_needed |= path.name == PREVIOUS or (
        kind == "sweep" and path.name == CHECKPOINT
    )  # for a damaged one, or to resume
    not_needed |= path.parts[0] == "guard" and not (output / path).exists()  # of no use without an alarm
    if different - ({path.as_posix()} if not_needed else set()) or check_files(output):
        return "wrong"
    return "not needed" if not_needed else "same results"
