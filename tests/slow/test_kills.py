"""25 deaths of each command: given again it resumes, to the end of one that nothing disturbed, and leaves no litter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Death, End, deaths, run
from holds import note_figure

from stepalign.support.claim import LEFTOVER, LOCK
from stepalign.support.marker import MARKER

NUM = 25
TINY = "--base.num_steps 4 --branching.num_candidates 2 --training.prompts_per_round 3 --training.sample_batch 3"
TINY += " --training.num_rounds 2 --evaluation.num_prompts 3"
JUDGE = "--training.num_steps 4 --training.batch_size 4 --training.micro_batch 4 --training.num_warmup_steps 1"
JUDGE += " --data.num_rows 16 --evaluation.num_pairs 6 --evaluation.timesteps 0 501 --checkpoint_every 2"
SWEEP = {
    "recipe": "gradspo-miniature",
    "seeds": [0, 1],
    "changes": {
        "base": {"num_steps": 3},
        "branching": {"num_candidates": 2},
        "training": {"num_rounds": 1, "prompts_per_round": 2},
        "evaluation": {"num_prompts": 2},
    },
    "tables": {"t": {"a": {}}},
}


def words(command: str, folder: Path, output: Path) -> list[str]:
    """A small command, with what it reads below a folder; every judge's training prepares a cache of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("a red circle on a blue background\na cat\n")
    (folder / "sweep.yaml").write_text(json.dumps(SWEEP))
    known = {
        "train": f"train gradspo-miniature {TINY}",
        "train-judge": f"train-judge spm-miniature {JUDGE} --data.cache {output}-cache",
        "generate": f"generate miniature --prompts {folder}/prompts.txt --num_steps 3 --num_images 3 --batch_size 2",
        "sweep": f"sweep {folder}/sweep.yaml",
    }
    return [*known[command].split(), "--output", str(output)]


def content(output: Path) -> dict[str, Any]:
    """What must be equal after any interruption: weights, images, scores, summaries without the clock; by path."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        assert not LEFTOVER.fullmatch(path.name), name
        assert path.name != LOCK, name
        if path.suffix in (".safetensors", ".png") or path.name in ("scores.jsonl", "manifest.jsonl", "start.json"):
            found[name] = path.read_bytes()
        elif path.name in ("summary.json", "generation.json"):
            values = json.loads(path.read_text())
            found[name] = json.dumps({key: value for key, value in values.items() if key != "timing"})
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        elif path.is_file():
            found[name] = None
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="deaths are of forked processes")
@pytest.mark.parametrize("command", ["train", "train-judge", "generate", "sweep"])
def test_after_any_death_the_same_command_ends_as_if_nothing_had_been(command: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    inputs = tmp_path / "inputs"
    alone: End = run(words(command, inputs, tmp_path / "alone"), tmp_path / "alone")
    assert alone.status == 0, alone.output
    expected = content(tmp_path / "alone")
    failed: dict[str, str] = {}
    num_died = 0
    planned: list[Death] = deaths(alone.writes, alone.seconds, num=NUM, seed=0)
    for number, death in enumerate(planned):
        output = tmp_path / f"killed/{number}"
        given = words(command, inputs, output)
        killed = run(given, output, death)
        num_died += killed.status == -9
        again = run(given, output)
        if killed.status not in (-9, 0) or again.status != 0:
            failed[str(death)] = again.output[-300:]
            continue
        found = content(output)
        different = [name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)]
        if different:
            failed[str(death)] = f"other {sorted(different)}"
    figure = {"planned": len(planned), "died": num_died, "ended alike": len(planned) - len(failed)}
    note_figure(f"kills: {command}", figure)
    assert failed == {}
    assert num_died >= NUM - 5  # those by the clock may come after the end
    assert MARKER in expected or command == "sweep"
