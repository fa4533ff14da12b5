"""Prompts longer than a text encoder reads: counted, noted once and kept in the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from stepalign.support.watcher import Watcher

Reader = Callable[[list[str]], int]
"""A text encoder, as the number of given prompts that it cuts."""


class PromptsCut(TypedDict):
    """How many of a set of distinct prompts each text encoder cuts."""

    num_prompts: int
    cut: dict[str, int]


def count_cut(readers: Mapping[str, Reader], prompts: list[str], watcher: Watcher, *, which: str = "") -> PromptsCut:
    """How many of the distinct prompts each reader cuts, and of how many; a note for each that cuts any.

    `which` prompts they are, for the note: "training".
    """
    distinct = list(dict.fromkeys(prompts))
    cut = {name: reader(distinct) for name, reader in readers.items()}
    for name, num in cut.items():
        if num:
            watcher.note(cut_words(name, num, len(distinct), which=which))
    return {"num_prompts": len(distinct), "cut": cut}


def all_cut_words(counts: Mapping[str, PromptsCut]) -> list[str]:
    """A summary's `prompts_cut` for people: a sentence for each reader that cuts any of each set of prompts."""
    return [
        cut_words(reader, num, found["num_prompts"], which=which)
        for which, found in counts.items()
        for reader, num in found["cut"].items()
        if num
    ]


def cut_words(reader: str, num: int, num_prompts: int, *, which: str = "") -> str:
    """That a reader cuts so many prompts, for people."""
    kind = f"{which} prompts" if which else "prompts"
    return f"{num} of {num_prompts} {kind} are longer than {reader} reads, and are cut"
