"""A run's state as one value, saved atomically."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that decides the rest of a run, given its recipe.

    Random numbers need no state: every draw comes from a generator that the seed and the counters here decide.
    """

    prompts: str
    """A digest of the training prompts; the order they come in is decided by seed and position."""
    num_rounds: int
    """Rounds finished; the position in the prompts follows from it."""
    num_updates: int
    num_comparisons: int
    seconds: float
    calls: dict[str, int]
    """Work done so far, by kind."""
    adapter: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """Of fp16's loss scaling; empty otherwise."""
    num_skipped: int = 0
    """Updates left out because their gradient was not finite."""
    num_failures: int = 0
    """Of those, the ones at the end in a row that count against training.max_skipped."""


def save_state(state: object, path: Path) -> None:
    """Write a state, a dataclass of plain values and tensors; a crash leaves either the old file or the new one."""
    with replacing(path) as temporary:
        torch.save({field.name: getattr(state, field.name) for field in fields(state)}, temporary)  # type: ignore[arg-type]


def load_state(path: Path, kind: type[S]) -> S:
    """Read a saved state of a kind; raises ValueError when the file is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        return kind(**torch.load(path, map_location="cpu", weights_only=True))
    except (TypeError, RuntimeError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of this version ({error})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
