"""The files of a folder of generated images: manifest, scores, results.

manifest.jsonl     a row per image: prompt_index, image_index, prompt, file, seed, category
scores.jsonl       a row per image: prompt_index, image_index, prompt, scores (by scorer)
results.json       means with intervals, the record of every scorer, how the images were generated

A manifest written by hand needs `prompt` and `file` only: prompts are then numbered as they first appear, and the
images of one prompt in the order of their rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.local_files import local_file
from stepalign.support.parsing import json_lines, read_text
from stepalign.support.prompt_text import check_prompt

MANIFEST, SCORES, EVALUATION, GENERATION = "manifest.jsonl", "scores.jsonl", "results.json", "generation.json"


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a folder."""

    prompt_index: int
    image_index: int
    """Index among the images of its prompt."""
    prompt: str
    file: str
    """Path relative to the folder."""
    seed: int | None = None
    category: str | None = None
    """The prompt's category in its set."""

    @property
    def key(self) -> tuple[int, int]:
        """Identity of an image within its folder."""
        return self.prompt_index, self.image_index


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The scores of one image."""

    prompt_index: int
    image_index: int
    prompt: str
    scores: dict[str, float]
    """By scorer; larger is better."""

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the image within its folder."""
        return self.prompt_index, self.image_index


def write_manifest(folder: Path, rows: list[ImageRow]) -> None:
    """Write a folder's manifest atomically."""
    write_text(folder / MANIFEST, "".join(to_json(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_manifest(folder: Path, *, allow_outside: bool = False) -> list[ImageRow]:
    """A folder's images, their files as spelled on this disk.

    Raises ValueError naming an invalid line, an image listed twice, a prompt index with two prompts, or, unless
    `allow_outside`, a file outside the folder. Whether the files exist is checked by `open_image`.
    """
    numbers: dict[str, int] = {}
    counts: Counter[int] = Counter()
    files: set[tuple[int, str]] = set()
    rows = []
    for where, values in _lines(folder / MANIFEST, "write one with a row of prompt and file per image"):
        prompt = check_prompt(_field(values, "prompt", str, where), f"{where}: the prompt")
        file = _file(folder, _field(values, "file", str, where), where, allow_outside=allow_outside)
        number = numbers.setdefault(prompt, len(numbers))
        index = _number(values.get("prompt_index", number), "prompt_index", where)
        image = _number(values.get("image_index", counts[index]), "image_index", where)
        counts[index] += 1
        seed, category = values.get("seed"), values.get("category")
        if seed is not None:
            _number(seed, "seed", where)
        if not isinstance(category, str | None):
            raise ValueError(f"{where}: category must be text, got {category!r}")
        if (index, file) in files:
            raise ValueError(f"{where}: {file} is listed twice for prompt {index}")
        files.add((index, file))
        rows.append(ImageRow(index, image, prompt, file, seed, category))
    _check(rows, folder / MANIFEST)
    return rows


def write_scores(folder: Path, rows: list[ScoredRow]) -> None:
    """Write the scores of a folder's images atomically."""
    write_text(folder / SCORES, "".join(to_json(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_scores(folder: Path) -> list[ScoredRow]:
    """The scores of a folder's images; raises ValueError as `read_manifest` does."""
    rows = []
    for where, values in _lines(folder / SCORES, "run `stepalign evaluate` on the folder first"):
        scores = _field(values, "scores", dict, where)
        index, image = (_number(values.get(name), name, where) for name in ("prompt_index", "image_index"))
        for name, score in scores.items():
            if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
                raise ValueError(f"{where}: the score {name!r} is {score!r}, not a finite number")
        prompt = check_prompt(_field(values, "prompt", str, where), f"{where}: the prompt")
        rows.append(ScoredRow(index, image, prompt, {name: float(score) for name, score in scores.items()}))
    _check(rows, folder / SCORES)
    return rows


def _lines(path: Path, advice: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each row of a JSONL file, for messages, and the row."""
    if not path.is_file():
        raise ValueError(f"there is no {path}; {advice}")
    num = 0
    for where, values in json_lines(read_text(path, path.stem), str(path)):
        if not isinstance(values, dict):
            raise ValueError(f"{where} is no JSON object: {json.dumps(values)[:80]}")
        num += 1
        yield where, values
    if num == 0:
        raise ValueError(f"{path} has no rows; {advice}")


def _field(values: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = values.get(name)
    if not isinstance(value, kind) or not (value.strip() if isinstance(value, str) else value):
        raise ValueError(f"{where} has no {name}: {json.dumps(values, ensure_ascii=False)[:120]}")
    return value


def _file(folder: Path, name: str, where: str, *, allow_outside: bool) -> str:
    """A row's file as spelled on this disk, relative to the folder if it is inside."""
    try:
        path = local_file(folder, name, allow_outside=allow_outside)
    except ValueError as error:
        raise ValueError(f"{where}: file {error}") from error
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _number(value: Any, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: {name} must be a whole number from 0, got {value!r}")
    return value


def _check(rows: list[ImageRow] | list[ScoredRow], path: Path) -> None:
    prompts: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    for row in rows:
        if row.key in seen:
            raise ValueError(f"{path}: image {row.image_index} of prompt {row.prompt_index} is listed twice")
        seen.add(row.key)
        if prompts.setdefault(row.prompt_index, row.prompt) != row.prompt:
            raise ValueError(
                f"{path}: prompt {row.prompt_index} is {prompts[row.prompt_index]!r} in one row and {row.prompt!r} in "
                "another"
            )
