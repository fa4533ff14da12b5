"""Prompts longer than a text encoder reads: counted, noted once and kept in the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from stepalign.support.watcher import Watcher

Reader = Callable[[list[str]], int]
"""Counts the prompts that a text encoder cuts."""


class PromptsCut(TypedDict):
    """The number of distinct prompts that each text encoder cuts."""

    num_prompts: int
    cut: dict[str, int]


def count_cut(readers: Mapping[str, Reader], prompts: list[str], watcher: Watcher, *, which: str = "") -> PromptsCut:
    """Count the distinct prompts that each text encoder cuts, with a note for each that cuts any.

    `which` names the prompts in the note, such as "training".
    """
    distinct = list(dict.fromkeys(prompts))
    cut = {name: reader(distinct) for name, reader in readers.items()}
    for name, num in cut.items():
        if num:
            watcher.note(cut_words(name, num, len(distinct), which=which))
    return {"num_prompts": len(distinct), "cut": cut}


def all_cut_words(counts: Mapping[str, PromptsCut]) -> list[str]:
    """A summary's `prompts_cut` as sentences, one for each set of prompts and text encoder that cuts any."""
    return [
        cut_words(reader, num, found["num_prompts"], which=which)
        for which, found in counts.items()
        for reader, num in found["cut"].items()
        if num
    ]


def cut_words(reader: str, num: int, num_prompts: int, *, which: str = "") -> str:
    """The sentence on the prompts that a text encoder cuts."""
    kind = f"{which} prompts" if which else "prompts"
    return f"{num} of {num_prompts} {kind} are longer than {reader} reads, and are cut"
