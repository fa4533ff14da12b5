"""Paths in recipes and settings, relative to the directory that holds them, so that both can be moved together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEAR = 3
"""Levels above a recipe within which paths are written relative to it; other paths stay absolute."""


def relative(value: Any, folder: str) -> Any:
    """Nested plain values with absolute paths, alone or in NAME=PATH, written relative to a folder."""

    def move(text: str) -> str:
        name, path = _split(text)
        return f"{name}{_step(Path(os.path.relpath(path, folder)))}" if Path(path).is_absolute() else text

    return _map(value, move)


def near(value: Any, folder: str) -> Any:
    """The same for paths at most NEAR levels up, and not through the root."""

    def move(text: str) -> str:
        path = _split(text)[1]
        if not Path(path).is_absolute() or len(Path(os.path.commonpath([path, folder])).parts) == 1:
            return text
        moved: str = relative(text, folder)
        return moved if moved.count("../") <= NEAR else text

    return _map(value, move)


def absolute(value: Any, folder: Path) -> Any:
    """Nested plain values with ./ and ../ paths that exist as seen from a folder written absolute."""

    def move(text: str) -> str:
        name, path = _split(text)
        found = path.startswith(("./", "../")) and (folder / path).exists()
        return f"{name}{(folder / path).resolve()}" if found else text

    return _map(value, move)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """Nested plain values with a function applied to all texts."""
    match value:
        case dict():
            return {key: _map(item, change) for key, item in value.items()}
        case list():
            return [_map(item, change) for item in value]
        case str():
            return change(value)
    return value


def _split(text: str) -> tuple[str, str]:
    """NAME= and PATH of a text NAME=PATH; "" and the text otherwise."""
    name, sign, path = text.partition("=")
    return (name + sign, path) if sign and "/" not in name else ("", text)


def _step(path: Path) -> str:
    """A relative path that begins with ./ or ../, which distinguishes it from a name."""
    return path.as_posix() if path.parts[:1] == ("..",) else f"./{path.as_posix()}"
