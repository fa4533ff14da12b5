"""Resuming a run: the checkpoint and rows it continues from, and the files of a finished run that are made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from stepalign.reports.summaries import SUMMARY
from stepalign.runs.run_directory import CHECKPOINT, GUARD_ADAPTERS, METRICS, PREVIOUS
from stepalign.support.file_record import (
    FILE_RECORD,
    MISSING,
    check_files,
    describe_damage,
    record_files,
    remove_from_record,
)
from stepalign.support.files import load_checkpoint, write_text
from stepalign.support.marker import MARKER, Note
from stepalign.support.parallel import decided_by_main
from stepalign.support.parsing import json_lines, read_text

S = TypeVar("S")


def is_finished(output: Path, names: Sequence[str], *, adopted: bool, note: Note) -> bool:
    """Whether a run is finished and its files are as they were written.

    `names` are files and folders that the run makes again from a checkpoint; others that are damaged are only named.
    Raises ValueError when no whole checkpoint is left for that. `adopted`: the run is of a version without a record.
    """
    if not (output / FILE_RECORD).is_file():
        if not (output / SUMMARY).is_file():
            return False
        if adopted:
            record_files(output, (*names, SUMMARY))
            return True
    found = check_files(output) if (output / FILE_RECORD).is_file() else {FILE_RECORD: MISSING}
    if not found:
        return True
    if found == {SUMMARY: MISSING}:
        return False
    again = {*names, SUMMARY, FILE_RECORD} - {GUARD_ADAPTERS}  # which only training that continues could restore
    others = [name for name in found if name.split("/")[0] not in again]
    whole = [name for name in (CHECKPOINT, PREVIOUS) if name not in found and (output / name).is_file()]
    if not whole:
        raise ValueError(
            f"output: in {output} {describe_damage(found)}, and no whole checkpoint is left to make it again from; "
            "restore it, or give another directory"
        )
    if PREVIOUS in found:  # the last checkpoint is the one that counts
        (output / PREVIOUS).unlink(missing_ok=True)
    if set(found) <= {*others, PREVIOUS}:
        note(f"in {output} {describe_damage(found)}; this run does not need it")
        remove_from_record(output, found)
        return True
    note(f"in {output} {describe_damage(found)}; made again from {whole[0]}")
    return False


def newest_state(output: Path, kind: type[S], *, note: Note) -> tuple[S, dict[str, str]] | None:
    """The newest whole checkpoint, with the rows that belong to it, by file, put back in place; None without one.

    Where the last is damaged it is the one before, with a note; raises ValueError when both are.
    """
    loaded: tuple[S, dict[str, str]] | None = None

    def choose() -> str | None:
        nonlocal loaded
        damaged: list[ValueError] = []
        for path in (output / CHECKPOINT, output / PREVIOUS):
            if not path.is_file():
                continue
            try:
                loaded = load_checkpoint(path, kind)
            except ValueError as error:
                damaged.append(error)
                continue
            if path.name == PREVIOUS:
                state = "damaged" if damaged else "missing"
                note(f"{output / CHECKPOINT} is {state}; resuming from the checkpoint before it")
                (output / CHECKPOINT).unlink(missing_ok=True)
            _restore_texts(output, loaded[1])
            return path.name
        if damaged:
            raise ValueError(f"{damaged[0]}; no whole one is before it: restore it, or give another directory")
        return None

    name = decided_by_main(choose)
    return None if name is None else loaded or load_checkpoint(output / name, kind)


def _restore_texts(output: Path, texts: dict[str, str]) -> None:
    """Write the rows that belong to a checkpoint where the files do not hold them; the marker has its own rules."""
    for name, text in texts.items():
        path = output / name
        if name != MARKER and not (path.is_file() and path.read_bytes() == text.encode()):
            write_text(path, text)


def rows_of(texts: dict[str, str], output: Path, num: int) -> list[dict[str, Any]]:
    """The rows of metrics before a checkpoint: from the texts kept in it, or, of an older version's, from their file.

    Raises ValueError naming a line that is damaged.
    """
    path = output / METRICS
    if METRICS in texts:
        return [row for _, row in json_lines(texts[METRICS], f"output: {path}")]
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    advice = "restore the file, or delete it to resume without these rows"
    try:
        for where, row in json_lines(read_text(path, "output"), f"output: {path}"):
            if not isinstance(row, dict):
                raise ValueError(f"{where} is no JSON object")
            rows.append(row)
            if len(rows) == num:
                break
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    return rows
