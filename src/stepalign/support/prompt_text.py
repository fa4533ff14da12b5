"""Checks of prompt text: refuses text that no tokenizer accepts, and detects syntax of other programs."""

from __future__ import annotations

import re

from stepalign.support.parsing import check_text

MAX_PROMPT = 10_000
"""Most characters of a prompt; CLIP reads about 300 of them, T5 about 2000."""
WEIGHTING = re.compile(
    r"""
    <(?:lora|lyco|lycoris|hypernet|ti):[^<>]+>         # networks of AUTOMATIC1111's web interface
    | \([^()]*[^\W\d_][^()]*:\s*[+-]?\d*\.?\d+\s*\)    # (word:1.3)
    | \(\([^()]+\)\)                                   # ((word))
    | \[[^\[\]]*[^\W\d_][^\[\]]*\]                     # [word], [from:to:when], [one|other]
    | \([^()]+\)\++(?!\w) | [^\W\d_]{2,}\+{2,}(?!\w)   # compel's (two words)+ and word++
    """,
    re.VERBOSE,
)
WORDS = re.compile(r"\b(?:BREAK|AND|ADDCOMM|ADDROW|ADDCOL)\b")
"""Separators of regions and compositions, in capitals among other words."""


def check_prompt(prompt: object, where: str) -> str:
    """A prompt itself; raises ValueError, beginning with `where`, for values that are not text, empty or longer than
    `MAX_PROMPT`, or with a NUL character or half a surrogate pair."""
    if not isinstance(prompt, str):
        raise ValueError(f"{where} is of type {type(prompt).__name__}, not text")
    if not prompt.strip():
        raise ValueError(f"{where} is empty")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"{where} has {len(prompt):,} characters; at most {MAX_PROMPT:,} are read")
    if "\0" in prompt:
        raise ValueError(f"{where} holds a NUL character, at position {prompt.index(chr(0))}: {prompt[:60]!a}")
    return check_text(prompt, where)


def weighting_note(prompts: list[str]) -> str | None:
    """A warning with the number of prompts that use weighting or network syntax of other programs, quoting the first;
    None without any. Here every character is part of the text."""
    found = [place for prompt in prompts if (place := _weighting(prompt)) is not None]
    if not found:
        return None
    return (
        f"{len(found)} of {len(prompts)} prompts have prompt-weighting syntax, the first {found[0][:60]!r}; it is "
        "taken literally, as text"
    )


def _weighting(prompt: str) -> str | None:
    match = WEIGHTING.search(prompt) or (None if prompt.isupper() else WORDS.search(prompt))
    return match[0] if match else None
