"""The record of a finished job's files: files.json holds each file's size and SHA-256, to find those that changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from stepalign.support.files import write_text
from stepalign.support.json_text import to_json
from stepalign.support.parsing import parse_json, read_text

FILE_RECORD = "files.json"
DAMAGED, MISSING = "damaged", "missing"


class FileEntry(TypedDict):
    """Size and digest of one file."""

    bytes: int
    sha256: str


def record_files(output: Path, names: Iterable[str], *, pending: Mapping[str, str] | None = None) -> None:
    """Write the record of a directory's files, or of the files below named folders, that exist.

    `pending` holds texts of files that are written only afterwards, such as the summary of a finished job.
    """
    files = {name: _measured(output / name) for name in _expanded(output, names)}
    for name, text in (pending or {}).items():
        files[name] = FileEntry(bytes=len(text.encode()), sha256=hashlib.sha256(text.encode()).hexdigest())
    _write(output, files)


def update_record(output: Path, names: Iterable[str]) -> None:
    """Record some files anew in a directory that has a record."""
    files = _read(output)
    if files is not None:
        _write(output, files | {name: _measured(output / name) for name in _expanded(output, names)})


def remove_from_record(output: Path, names: Iterable[str]) -> None:
    """Remove files from a directory's record."""
    gone = set(names)
    _write(output, {name: entry for name, entry in (_read(output) or {}).items() if name not in gone})


def check_files(output: Path) -> dict[str, str]:
    """By name, the files of a finished job that are "damaged" or "missing"; empty where there is no record."""
    if not (output / FILE_RECORD).is_file():
        return {}
    files = _read(output)
    if files is None:
        return {FILE_RECORD: DAMAGED}
    found = {name: _state(output / name, entry) for name, entry in files.items()}
    return {name: state for name, state in found.items() if state}


def describe_damage(found: Mapping[str, str]) -> str:
    """Damaged and missing files as a part of a sentence."""
    return ", ".join(f"{name} is {state}" for name, state in found.items())


def _expanded(output: Path, names: Iterable[str]) -> list[str]:
    """Files by name, and those below the folders among the names."""
    paths = [
        path for name in names for path in ((output / name).rglob("*") if (output / name).is_dir() else [output / name])
    ]
    return [path.relative_to(output).as_posix() for path in paths if path.is_file()]


def _measured(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _state(path: Path, entry: FileEntry) -> str:
    if not path.is_file():
        return MISSING
    if path.stat().st_size != entry["bytes"]:
        return DAMAGED
    return "" if _measured(path) == entry else DAMAGED


def _write(output: Path, files: Mapping[str, FileEntry]) -> None:
    write_text(output / FILE_RECORD, to_json({"files": dict(sorted(files.items()))}, indent=1) + "\n")


def _read(output: Path) -> dict[str, FileEntry] | None:
    """The entries of a directory's record; None where it is missing or damaged."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        files = parse_json(read_text(output / FILE_RECORD, FILE_RECORD), FILE_RECORD)["files"]
        return {
            str(name): FileEntry(bytes=int(entry["bytes"]), sha256=str(entry["sha256"]))
            for name, entry in files.items()
        }
    return None
