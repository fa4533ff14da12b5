"""Prompt files: plain lines, JSON, or tables with a column of prompts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.support.parsing import json_lines, parse_json, read_text
from stepalign.support.prompt_text import check_prompt

ENDINGS = (".txt", ".json", ".jsonl", ".csv", ".tsv")
COLUMNS = ("prompt", "caption", "text")
"""Names of the key or column with the prompt, in any case; the first that a row has counts."""
SHOWN = 80
"""Characters of a bad row that an error quotes."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of a file in their order."""

    prompts: list[str]
    rows: list[dict[str, Any]] | None
    """The whole row of each prompt, where all are objects or lines of a table."""


def load_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, as `read_prompt_file` reads them."""
    return read_prompt_file(Path(path)).prompts


def read_prompt_file(path: Path) -> PromptFile:
    """The prompts of a `.txt` file (a line each), a `.json` or `.jsonl` file (texts, or objects), or a `.csv` or `.tsv`
    file with a line of column names. Objects and tables have the prompt under one of `COLUMNS`.

    Raises ValueError, with the place, when there is no such file, it is empty, or its content is invalid.
    """
    path = path.expanduser()
    ending = path.suffix.lower()
    if path.is_file() and ending not in ENDINGS:
        kind = f"ends in {ending!r}" if ending else "has no ending"
        raise ValueError(f"prompts: {path} {kind}; {', '.join(ENDINGS[:-1])} and {ENDINGS[-1]} files are read")
    text = read_text(path, "prompts")
    match ending:
        case ".txt":
            found: list[tuple[str, object]] = [
                (f"{path} line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1)
            ]
            found = [row for row in found if row[1]]
        case ".jsonl":
            found = list(json_lines(text, f"prompts: {path}"))
        case ".json":
            rows = parse_json(text, f"prompts: {path}") if text.strip() else []
            if not isinstance(rows, list):
                raise ValueError(f"prompts: {path} holds a JSON {type(rows).__name__}; a list of prompts is expected")
            found = [(f"{path} entry {number}", row) for number, row in enumerate(rows, 1)]
        case _:
            found = list(_table(text, path))
    if not found:
        raise ValueError(f"prompts: {path} is empty; give at least one prompt")
    prompts = [_prompt_of(row, where.removeprefix("prompts: ")) for where, row in found]
    objects = [row for _, row in found if isinstance(row, dict)]
    return PromptFile(prompts, objects if len(objects) == len(prompts) else None)


def column_of(row: dict[str, Any], *names: str) -> Any:
    """The value of a row's first column of these names, in any case of letters; None without one."""
    known = {str(key).strip().lower(): value for key, value in reversed(row.items())}
    return next((known[name] for name in names if name in known), None)


def _prompt_of(row: object, where: str) -> str:
    prompt = column_of(row, *COLUMNS) if isinstance(row, dict) else row
    if not isinstance(prompt, str) or not prompt.strip():
        names = ", ".join(map(repr, COLUMNS))
        raise ValueError(f"prompts: {where} has no text under any of {names}: {json.dumps(row)[:SHOWN]}")
    return check_prompt(prompt, f"prompts: {where}")


def _table(text: str, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each row of a table, for messages, and its values by column.

    In `.csv` files values with commas, quotation marks or line breaks are quoted. In `.tsv` files nothing is, as in
    PartiPrompts; a value that is quoted whole, as spreadsheets write it, is taken out of its quotation marks.
    """
    tabs = path.suffix.lower() == ".tsv"
    kind: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    lines = csv.reader(io.StringIO(text, newline=""), **kind)
    try:
        head = next((line for line in lines if any(map(str.strip, line))), None)
        if head is None:
            return
        if not {name.strip().lower() for name in head} & set(COLUMNS):
            raise ValueError(
                f"prompts: {path} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]} in its first line, but "
                f"{', '.join(map(repr, head))[:SHOWN]}; columns are separated by {'tabs' if tabs else 'commas'}"
            )
        for line in lines:
            where = f"{path} line {lines.line_num}"
            if not any(map(str.strip, line)):
                continue
            if len(line) > len(head):
                what = "a tab" if tabs else "a comma, which must be quoted"
                raise ValueError(
                    f"prompts: {where} has {len(line)} values for {len(head)} columns; is there {what}, in a prompt?"
                )
            values = map(_unquoted, line) if tabs else line
            yield where, dict(zip(head, values, strict=False))
    except csv.Error as error:
        raise ValueError(f"prompts: {path} line {lines.line_num} is no table: {error}") from error


def _unquoted(value: str) -> str:
    inner = value[1:-1].replace('""', "")
    return value[1:-1].replace('""', '"') if value[:1] == '"' == value[-1:] and '"' not in inner and inner else value
