"""What a finished job wrote: files.json holds the size and the SHA-256 of every file, to find those that changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepalign.support.files import write_text

FILE_RECORD = "files.json"
DAMAGED, MISSING = "damaged", "missing"


def record_files(output: Path, names: Iterable[str], *, pending: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a directory's files, or of the files below named folders, that are there.

    `pending` holds texts of files that are written only afterwards, such as the summary that says that all is done.
    """
    files = {name: _measured(output / name) for name in _expanded(output, names)}
    files |= {
        name: {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for name, text in (pending or {}).items()
    }
    write_text(output / FILE_RECORD, json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n")


def update_record(output: Path, names: Iterable[str]) -> None:
    """Record some files anew in a directory that has a manifest."""
    files = _read(output)
    if files is not None:
        changed = {name: _measured(output / name) for name in _expanded(output, names)}
        write_text(
            output / FILE_RECORD, json.dumps({"files": dict(sorted((files | changed).items()))}, indent=1) + "\n"
        )


def forget_files(output: Path, names: Iterable[str]) -> None:
    """Take files out of a directory's manifest."""
    gone = set(names)
    files = {name: entry for name, entry in (_read(output) or {}).items() if name not in gone}
    write_text(output / FILE_RECORD, json.dumps({"files": files}, indent=1) + "\n")


def check_files(output: Path) -> dict[str, str]:
    """By name, the files of a finished job that are "damaged" or "missing"; of older versions' nothing is known."""
    if not (output / FILE_RECORD).is_file():
        return {}
    files = _read(output)
    if files is None:
        return {FILE_RECORD: DAMAGED}
    found = {name: _state(output / name, entry) for name, entry in files.items()}
    return {name: state for name, state in found.items() if state}


def describe_damage(found: Mapping[str, str]) -> str:
    """Files and what has become of them, as a part of a sentence."""
    return ", ".join(f"{name} is {state}" for name, state in found.items())


def _expanded(output: Path, names: Iterable[str]) -> list[str]:
    """Files by name, and those below the folders among the names."""
    paths = [
        path for name in names for path in ((output / name).rglob("*") if (output / name).is_dir() else [output / name])
    ]
    return [path.relative_to(output).as_posix() for path in paths if path.is_file()]


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _state(path: Path, entry: dict[str, Any]) -> str:
    if not path.is_file():
        return MISSING
    if path.stat().st_size != entry["bytes"]:
        return DAMAGED
    with path.open("rb") as file:
        return "" if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"] else DAMAGED


def _read(output: Path) -> dict[str, dict[str, Any]] | None:
    try:
        files = json.loads((output / FILE_RECORD).read_text(encoding="utf-8"))["files"]
        return {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
