"""The directory of a run: what its files are called, whom it belongs to, what it ran on."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml

from stepalign.checkpoint import write_text
from stepalign.reproducibility import processor

RECIPE, METRICS, CHECKPOINT = "recipe.yaml", "metrics.jsonl", "checkpoint.pt"
SUMMARY, REPORT = "summary.json", "report.html"
PACKAGES = ("stepalign", "torch", "diffusers", "transformers", "peft", "accelerate")


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run gets on."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Part of a round or of the evaluation is done."""
        ...

    def round(self, row: dict[str, Any], total: int) -> None:
        """A round, or a step of a judge's training, is done; `row` is its line of metrics."""
        ...

    def note(self, message: str) -> None:
        """Something worth a line of its own."""
        ...


class Silence:
    """A watcher that says nothing."""

    def phase(self, name: str, done: int, total: int) -> None: ...

    def round(self, row: dict[str, Any], total: int) -> None: ...

    def note(self, message: str) -> None: ...


def claim(output: Path, recipe: str, *, default: str = "") -> None:
    """Raise ValueError unless the directory can be written and is empty, absent, or of a run of this very recipe.

    `recipe` is the recipe as YAML; what a directory of an older version says nothing of is as in the recipe `default`.
    """
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"output: {path} is a file; give a directory")
    nearest = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise ValueError(f"output: cannot write in {nearest}: {error.strerror}") from error
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / RECIPE).is_file():
        raise ValueError(f"output: {output} holds files of something else; give a new or empty directory")
    theirs, ours, usual = (
        _flat(yaml.safe_load(text) or {}) for text in ((output / RECIPE).read_text(), recipe, default)
    )
    theirs = usual | theirs
    different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if different:
        key = min(different)
        raise ValueError(
            f"output: {output} is another run's: its {key} is {theirs.get(key)!r}, this recipe's {ours.get(key)!r}; "
            "give another directory"
        )


def finished(output: Path) -> dict[str, Any] | None:
    """The summary of a run that is done."""
    return json.loads((output / SUMMARY).read_text()) if (output / SUMMARY).is_file() else None


def write_rows(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of metrics."""
    write_text(output / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(output: Path, num: int) -> list[dict[str, Any]]:
    """The first so many rows of metrics, those before a checkpoint."""
    lines = (output / METRICS).read_text().splitlines() if (output / METRICS).is_file() else []
    return [json.loads(line) for line in lines[:num]]


def versions() -> dict[str, str]:
    """Of stepalign and the libraries that decide numbers."""
    return {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows
