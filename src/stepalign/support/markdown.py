"""Escaping of text from files and users in Markdown."""

from __future__ import annotations

import re

MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""HTML is part of Markdown."""
BACKTICKS = re.compile(r"`+")


def markdown_text(text: str) -> str:
    """Text as one line without markup: HTML, links, emphasis, code and table cells are escaped.

    Control characters, which a terminal would interpret, are spelled out.
    """
    line = _one_line(text).translate(ENTITIES)
    return MARKUP.sub(lambda found: "\\" + found[0], line)


def code_span(text: str) -> str:
    """Text as one line of code, in more backticks than it has in a row."""
    line = _one_line(text)
    marks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{marks}{space}{line}{space}{marks}"


def code_block(text: str, language: str = "") -> str:
    """Lines as a block of code, between fences longer than any row of backticks in them."""
    fence = "`" * max(3, _longest_run(text) + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(text.split()))


def _longest_run(text: str) -> int:
    return max(map(len, BACKTICKS.findall(text)), default=0)
