"""Prompt files, and the order in which a run goes through them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from stepalign.seeding import EpochOrder, Purpose


def load_prompts(path: str | Path) -> list[str]:
    """The prompts of a `.txt` file (a line each), or a `.json` or `.jsonl` file (strings, or objects with `prompt` or
    `caption`).

    Raises ValueError when there is no such file, nothing in it, or something else in it; the message says where.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"prompts: there is no file {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 text: {error}; save it as UTF-8") from error
    match path.suffix.lower():
        case ".txt":
            prompts = [line.strip() for line in text.split("\n") if line.strip()]
        case ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            prompts = [
                _prompt_of(_parse(line, f"{path} line {number}"), f"{path} line {number}") for number, line in lines
            ]
        case ".json":
            rows = _parse(text, str(path)) if text.strip() else []
            if not isinstance(rows, list):
                raise ValueError(f"prompts: {path} holds a JSON {type(rows).__name__}; a list of prompts is expected")
            prompts = [_prompt_of(row, f"{path} entry {number}") for number, row in enumerate(rows, 1)]
        case other:
            raise ValueError(f"prompts: {path} ends in {other!r}; .txt, .json and .jsonl are read")
    if not prompts:
        raise ValueError(f"prompts: {path} is empty; give at least one prompt")
    return prompts


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts: {where} is not valid JSON: {error}") from error


def _prompt_of(row: object, where: str) -> str:
    prompt = row.get("prompt", row.get("caption")) if isinstance(row, dict) else row
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompts: {where} has no text under 'prompt' or 'caption': {json.dumps(row)[:80]}")
    return prompt


class PromptStream:
    """Endless epochs over prompts, each in an order of its own that the seed and the epoch decide."""

    def __init__(self, prompts: list[str], *, seed: int) -> None:
        if not prompts:
            raise ValueError("prompts: none were given")
        self.prompts = prompts
        self.digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        self._order = EpochOrder(len(prompts), seed=seed, purpose=Purpose.PROMPT_ORDER)

    def __getitem__(self, position: int) -> str:
        return self.prompts[self._order[position]]
