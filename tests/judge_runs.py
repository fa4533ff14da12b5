"""Trainings of the miniature's judge that take a second, and what their directories hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stepalign.cli import main
from stepalign.runs.judge_recipes import JudgeRecipe, load_judge_recipe
from stepalign.support.config import change, parse_flags

NUM_STEPS, BATCH = 4, 4
SETTINGS = {
    "--training.num_steps": str(NUM_STEPS),
    "--training.batch_size": str(BATCH),
    "--training.micro_batch": "3",
    "--training.num_warmup_steps": "1",
    "--data.num_rows": "24",
    "--evaluation.num_pairs": "8",
    "--evaluation.timesteps": "0 501",
    "--checkpoint_every": "2",
}
MEASURED = ("accuracy", "reliability", "num_decided")
WEIGHTS = "judge/model.safetensors"


def cache(factory: pytest.TempPathFactory) -> Path:
    """The cache that the runs of a session share."""
    return factory.getbasetemp() / "judges/cache"


def words(factory: pytest.TempPathFactory, changes: str = "", *, recipe: str = "spm-miniature") -> list[str]:
    """A command with some flags changed."""
    flags = {**SETTINGS, "--data.cache": str(cache(factory))}
    for flag in changes.split("--")[1:]:
        name, _, value = flag.strip().partition(" ")
        flags[f"--{name}"] = value
    return ["train-judge", recipe, *" ".join(f"{name} {value}" for name, value in flags.items()).split()]


def recipe_of(command: list[str]) -> JudgeRecipe:
    """What a command runs."""
    return change(load_judge_recipe(command[1]), parse_flags(command[2:]))


def trained(command: list[str], output: Path, *, report: bool = False) -> Path:
    """The directory of a command that ran, or had run; the report, a third of the time, is left out by default."""
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr("stepalign.runs.judge_job.write_judge_report", lambda *_, **__: None)
        assert main([*command, "--output", str(output)]) == 0
    return output


def finished_run(factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing has disturbed; not to be changed."""
    output = factory.getbasetemp() / "judges/finished"
    return output if output.exists() else trained(words(factory), output, report=True)


def snapshot(folder: Path) -> dict[str, bytes] | None:
    """The content of every file below a folder; None when there is no folder."""
    if not folder.exists():
        return None
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def summary(output: Path) -> dict[str, Any]:
    """What a run says of itself but for the time it took; NaN and infinity, which JSON does not have, are errors."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    values = json.loads((output / "summary.json").read_text(), parse_constant=refuse)
    return {key: value for key, value in values.items() if key != "timing"}


def rows(output: Path) -> list[dict[str, Any]]:
    """The rows of metrics but for the time they took."""
    read = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read]


def write_pairs(folder: Path, *, num_prompts: int = 10, per_prompt: int = 2) -> Path:
    """A .jsonl file of pairs of noisy images, every prompt with as many; the last pair is a tie."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, lines = np.random.default_rng(0), []
    for number in range(num_prompts * per_prompt):
        images = [f"{number}{side}.png" for side in "ab"]
        for name in images:
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        label = 0.5 if number == num_prompts * per_prompt - 1 else number % 2
        row = {"prompt": f"a ring, number {number % num_prompts}", "label": label}
        lines.append(json.dumps(row | {"image_0": images[0], "image_1": images[1]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"
