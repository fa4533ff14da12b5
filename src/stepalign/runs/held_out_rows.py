"""The file scores.jsonl of a run: a line per held-out prompt with the scores of the base and the aligned model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.parsing import json_lines, read_text

SCORES = "scores.jsonl"


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One held-out prompt's scores by metric, of the base and of the aligned model."""

    prompt: str
    base: dict[str, float]
    aligned: dict[str, float]


def write_held_out(output: Path, rows: list[HeldOutRow]) -> None:
    """Write a run's scores, rounded to six decimals."""
    lines = [
        to_json({"prompt": row.prompt, "base": _rounded(row.base), "aligned": _rounded(row.aligned)}) for row in rows
    ]
    write_text(output / SCORES, "\n".join(lines) + "\n")


def read_held_out(output: Path) -> list[HeldOutRow]:
    """The scores of a run; raises ValueError naming the file and the line that is no row of scores."""
    path = output / SCORES
    advice = "the command that wrote it makes it again"
    try:
        rows = [_row(values, where) for where, values in json_lines(read_text(path, "output"), f"output: {path}")]
        if not rows:
            raise ValueError(f"output: {path} is empty")
        if any(row.base.keys() != rows[0].base.keys() for row in rows):
            raise ValueError(f"output: {path} has rows with different metrics")
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    return rows


def _row(values: Any, where: str) -> HeldOutRow:
    if isinstance(values, dict) and values.keys() == {"prompt", "base", "aligned"}:
        sides = (values["base"], values["aligned"])
        if isinstance(values["prompt"], str) and all(map(_are_scores, sides)) and sides[0].keys() == sides[1].keys():
            return HeldOutRow(**values)
    raise ValueError(f"{where} is no row of a prompt's scores")


def _are_scores(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(score, int | float) and math.isfinite(score) for score in values.values()
    )


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.items()}
