"""Every command line in README and docs is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from stepalign.cli.table import COMMANDS, find_command
from stepalign.evaluation.generation_settings import Generation
from stepalign.runs.judge_recipes import JUDGE_RECIPES
from stepalign.runs.recipes import RECIPES
from stepalign.support.config import override, parse_flags

ROOT = Path(__file__).parents[2]
RECIPES_BY_NAME: dict[str, Any] = {**RECIPES, **JUDGE_RECIPES}


def documented() -> list[str]:
    """The command lines of the code blocks, without the program; the dots of `train ...` stand for any arguments."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^ {4}.*?(?:\.venv/bin/|-m )stepalign(?:\.cli)? (.*)$", joined, re.MULTILINE)
    return sorted({line for line in lines if "..." not in line and not line.startswith("-")})


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_is_understood(line: str) -> None:
    name, *words = shlex.split(line, comments=True)
    arguments = find_command(name).parse([word for word in words if word != "--help"])
    assert arguments is not None
    settings = Generation("miniature")
    if name in ("train", "train-judge"):
        settings = RECIPES_BY_NAME[arguments.recipe if arguments.recipe in RECIPES_BY_NAME else "gradspo-sd15"]
    override(settings, parse_flags(arguments.fields))


def test_the_documents_have_most_commands() -> None:
    names = {line.split()[0] for line in documented()}
    assert len(names) >= len(COMMANDS) - 2
