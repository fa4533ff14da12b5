"""Evaluated folders with known scores and tiny images, for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stepalign.core.protocols import ScorerRecord
from stepalign.data.manifest import EVALUATION, ImageRow, ScoredRow, write_manifest, write_scores

RECORD = ScorerRecord("pickscore", "org/PickScore", "ab" * 32, "RGB", "100 cos", True, {"torch": "2.13.0"})
Score = Callable[[int, int], float]
"""Of an image by prompt_index and image_index."""


def save_folder(
    path: Path,
    *,
    scores: dict[str, Score],
    num_prompts: int = 6,
    num_images: int = 1,
    name: str | None = None,
    category: Callable[[int], str | None] = lambda number: None,
    prompt: Callable[[int], str] = lambda number: f"prompt {number}",
    colour: int = 0,
    size: int = 8,
    seed: int = 0,
    libraries: dict[str, str] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write an evaluated folder; every image's first pixel is (colour, prompt_index, image_index)."""
    (path / "images").mkdir(parents=True)
    rows, scored = [], []
    for number in range(num_prompts):
        for image in range(num_images):
            file, text = f"images/{number:05d}-{image}.png", prompt(number)
            pixels = np.full((size, size, 3), (colour, number, image), np.uint8)
            Image.fromarray(pixels).save(path / file)
            rows.append(ImageRow(number, image, text, file, seed + number, category(number)))
            values = {scorer: score(number, image) for scorer, score in scores.items()}
            scored.append(ScoredRow(number, image, text, values))
    write_manifest(path, rows)
    write_scores(path, scored)
    records = {
        scorer: asdict(replace(RECORD, name=scorer, libraries=libraries or RECORD.libraries)) for scorer in scores
    }
    save_evaluation(path, name=name, scorers=records, generation=generation, num=(num_prompts, len(rows)))
    return path


def save_evaluation(
    path: Path,
    *,
    scorers: dict[str, Any],
    name: str | None = None,
    generation: dict[str, Any] | None = None,
    num: tuple[int, int] = (6, 6),
) -> None:
    """Write what says how a folder was evaluated."""
    values = {"name": name, "num_prompts": num[0], "num_images": num[1], "scorers": scorers, "scores": {}}
    (path / EVALUATION).write_text(json.dumps({**values, "generation": generation}), encoding="utf-8")


GAINS = (0.5, -0.125, 0.875, 0.0, -0.625, 1.25)
"""Of `gained` over `level`, prompt by prompt: 3 wins, a tie, 2 losses; .3125 on average."""


def level(number: int, image: int) -> float:
    """Scores that rise from prompt to prompt."""
    return 20.0 + number


def gained(number: int, image: int) -> float:
    """The same with `GAINS`."""
    return 20.0 + number + GAINS[number]


def three(root: Path, **given: Any) -> list[Path]:
    """Three folders: b beats a, and c both, by the scorer first; by second, a and b gain on c."""
    scores = {
        "a": {"first": level, "second": gained},
        "b": {"first": gained, "second": gained},
        "c": {"first": lambda number, image: 30.0, "second": level},
    }
    return [save_folder(root / name, scores=own, **given) for name, own in scores.items()]
