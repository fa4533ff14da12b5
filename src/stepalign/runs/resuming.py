"""Resuming a run: which checkpoint and rows it continues from, and which files of a finished one are made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from stepalign.runs.run_directory import CHECKPOINT, METRICS, PREVIOUS, SUMMARY, finished
from stepalign.support.claim import Note
from stepalign.support.file_record import FILE_RECORD, MISSING, check_files, describe_damage, forget_files, record_files
from stepalign.support.files import load_checkpoint, write_text
from stepalign.support.parallel import decided_by_main

S = TypeVar("S")


def finished_whole(output: Path, names: Sequence[str], *, adopted: bool, tell: Note) -> dict[str, Any] | None:
    """The summary of a finished run whose files are as they were written, or None where there is work to do.

    `names` are files and folders that the run makes again from a checkpoint; others that are damaged are only named.
    Raises ValueError when no whole checkpoint is left for that. `adopted`: the run is of a version without a manifest.
    """
    if not (output / FILE_RECORD).is_file():
        if not (output / SUMMARY).is_file():
            return None
        if adopted:
            record_files(output, (*names, SUMMARY))
            return finished(output)
    found = check_files(output) if (output / FILE_RECORD).is_file() else {FILE_RECORD: MISSING}
    if not found:
        return finished(output)
    if found == {SUMMARY: MISSING}:
        return None
    others = [name for name in found if name.split("/")[0] not in (*names, SUMMARY, FILE_RECORD)]
    whole = [name for name in (CHECKPOINT, PREVIOUS) if name not in found and (output / name).is_file()]
    if not whole:
        raise ValueError(
            f"output: in {output} {describe_damage(found)}, and no whole checkpoint is left to make it again from; "
            "restore it, or give another directory"
        )
    if PREVIOUS in found:  # of no use, and the last one is what counts
        (output / PREVIOUS).unlink(missing_ok=True)
    if set(found) <= {*others, PREVIOUS}:
        tell(f"in {output} {describe_damage(found)}; this run does not need it")
        forget_files(output, found)
        return finished(output)
    tell(f"in {output} {describe_damage(found)}; made again from {whole[0]}")
    return None


def newest_state(output: Path, kind: type[S], *, tell: Note) -> tuple[S, dict[str, str]] | None:
    """The newest whole checkpoint, with the rows that belong to it, by file, put back in place; None without one.

    Where the last is damaged it is the one before, and `tell` is told; raises ValueError when both are.
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
                tell(f"{output / CHECKPOINT} is {state}; resuming from the checkpoint before it")
                (output / CHECKPOINT).unlink(missing_ok=True)
            for name, text in loaded[1].items():
                if not (output / name).is_file() or (output / name).read_bytes() != text.encode():
                    write_text(output / name, text)
            return path.name
        if damaged:
            raise ValueError(f"{damaged[0]}; no whole one is before it: restore it, or give another directory")
        return None

    name = decided_by_main(choose)
    return None if name is None else loaded or load_checkpoint(output / name, kind)


def rows_of(texts: dict[str, str], output: Path, num: int) -> list[dict[str, Any]]:
    """The rows of metrics before a checkpoint: from the texts kept in it, or, of an older version's, from their file.

    Raises ValueError naming a line that is damaged.
    """
    if METRICS in texts:
        return [json.loads(line) for line in texts[METRICS].splitlines()]
    path, rows = output / METRICS, []
    lines = path.read_bytes().splitlines()[:num] if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise ValueError(
                f"output: {path} line {number} is damaged; restore the file, or delete it to resume without these rows"
            ) from error
        rows.append(row)
    return rows
