"""A run's state as one value, saved atomically."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor

S = TypeVar("S")
TEXTS = "texts"
"""Of a checkpoint: the row files that belong to it, by name."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that decides the rest of a run, given its recipe.

    Random numbers need no state: every generator is decided by the seed and the counters here.
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
    """Consecutive skipped updates at the end, which count against training.max_skipped."""


def save_state(state: object, path: Path, *, files: Sequence[str] = (), keep_previous: bool = True) -> None:
    """Write a state, a dataclass of plain values and tensors; after a crash `path` or `previous(path)` is whole.

    The texts of `files` beside it, rows that belong to this state, are kept in it; unless `keep_previous` is off, the
    file that it replaces is kept too.
    """
    beside = (path.with_name(name) for name in files)
    texts = {file.name: file.read_text(encoding="utf-8") for file in beside if file.is_file()}
    values = {field.name: getattr(state, field.name) for field in fields(state)}  # type: ignore[arg-type]
    with replacing(path, keep=previous(path) if keep_previous else None) as temporary:
        torch.save(values | {TEXTS: texts}, temporary)


def load_state(path: Path, kind: type[S]) -> S:
    """Read a saved state of a kind; raises ValueError when the file is not one."""
    return load_checkpoint(path, kind)[0]


def load_checkpoint(path: Path, kind: type[S]) -> tuple[S, dict[str, str]]:
    """A saved state with the texts that belong to it, by file name; raises ValueError when the file is not one."""
    values, texts = _read(path)
    try:
        for name, hint in get_type_hints(kind).items():
            if name in values and not isinstance(values[name], get_origin(hint) or hint):
                raise TypeError(f"{name} is of type {type(values[name]).__name__}")
        return kind(**values), texts
    except TypeError as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of this version ({error})") from error


def load_texts(path: Path) -> dict[str, str]:
    """The texts kept with a saved state of any kind, by file name; raises ValueError when the file is damaged."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a saved state and the texts that belong to it; every byte is checked first."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        values = dict(torch.load(path, map_location="cpu", weights_only=True))
        texts = {str(name): str(text) for name, text in dict(values.pop(TEXTS, {})).items()}
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise exceptions of any kind in zipfile, pickle and torch
        raise ValueError(f"checkpoint: {path} is not a checkpoint of this version ({_reason(error)})") from error
    return values, texts


def previous(path: Path) -> Path:
    """Where the checkpoint before the last is kept."""
    return path.with_name(f"previous-{path.name}")


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    What was at `path` is kept at `keep`, if that is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _reason(error: Exception) -> str:
    """The reason why a checkpoint cannot be read, without torch's advice to run the file's code."""
    return "it holds more than tensors" if isinstance(error, UnpicklingError) else str(error)
