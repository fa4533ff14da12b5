"""Folders of small images, and scorers that remember what they were shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import an_image
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stepalign.core.protocols import Scorer
from stepalign.data.manifest import ImageRow, write_manifest
from stepalign.evaluation import scoring
from stepalign.evaluation.scoring import Scoring, evaluate_folder
from stepalign.scorers.record import scorer_record
from stepalign.support.watcher import NullWatcher

FILES = ("results.json", "results.md", "scores.jsonl", "scores.parquet", "summary.json")
PROMPTS = ["two boats", "ein Fuß, ☃ und 猫", "a cat | a dog"]


def save_images(
    folder: Path, prompts: list[str] = PROMPTS, *, num_images: int = 2, categories: list[str] | None = None
) -> list[ImageRow]:
    """Write images of noise, all different, and their manifest."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for p, prompt in enumerate(prompts):
        for n in range(num_images):
            rows.append(ImageRow(p, n, prompt, f"images/{p}-{n}.png", 7, None if categories is None else categories[p]))
            an_image(8, 8, seed=10 * p + n).save(folder / rows[-1].file)
    write_manifest(folder, rows)
    return rows


def level(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


class Spy:
    """A scorer whose number is the image's mean level, a thousand more for every letter of a prompt it needs."""

    def __init__(self, name: str, *, needs_prompt: bool, weights: str = "") -> None:
        given = {"preprocessing": "none", "scale": f"levels of {name}", "needs_prompt": needs_prompt}
        self.record = scorer_record(
            name, weights="owner/levels", files=[], tensors={name + weights: torch.zeros(1)}, **given
        )
        self.shown: list[tuple[float, str]] = []
        self.batches: list[int] = []

    def num_cut(self, prompts: list[str]) -> int:
        """Those of more than 100 characters, where they are read."""
        return sum(len(prompt) > 100 for prompt in prompts if self.record.needs_prompt)

    def score(self, images: list[Image.Image], prompts: list[str]) -> Float[Tensor, " b"]:
        self.shown += [(level(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        self.batches.append(len(images))
        return torch.tensor([value(self.record.needs_prompt, *pair) for pair in self.shown[-len(images) :]])


def value(needs_prompt: bool, brightness: float, prompt: str) -> float:
    """What the spy says."""
    return brightness + 1000 * len(prompt) * needs_prompt


class Spies:
    """Every scorer that was loaded, in order, by how it was asked for; `aesthetic` needs no prompt."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, Spy]] = []

    def load(self, entry: str, *, device: str) -> Scorer:
        name, _, weights = entry.partition("=")
        self.loaded.append((entry, Spy(name, needs_prompt=name != "aesthetic", weights=weights)))
        return self.loaded[-1][1]

    @property
    def scored(self) -> dict[str, int]:
        """How many images each has scored."""
        counts: dict[str, int] = {}
        for entry, spy in self.loaded:
            counts[entry] = counts.get(entry, 0) + len(spy.shown)
        return {entry: count for entry, count in counts.items() if count}


@contextmanager
def spies() -> Iterator[Spies]:
    """Every scorer is a spy."""
    found = Spies()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "load_scorer", found.load)
        yield found


class Notes(NullWatcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[str, int, int]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def phase(self, name: str, done: int, total: int) -> None:
        self.phases.append((name, done, total))


def evaluate(folder: Path, *scorers: str, name: str | None = None, **given: Any) -> dict[str, Any]:
    return evaluate_folder(folder, Scoring(scorers, **given), name=name)
