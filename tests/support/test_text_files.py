"""Text is read and written as UTF-8 with newlines, whatever the platform: no call leaves it to the locale.

Ruff's PLW1514 holds it where it can tell a path; this holds it for every call of such a name.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from stepalign.support.files import write_text

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("src", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def offences(source: str) -> list[int]:
    """The lines of calls that read or write text in the platform's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        opens = isinstance(node.func, ast.Name) and node.func.id == "open"
        if called in ("read_text", "write_text"):
            found.append(node.lineno)
        elif opens or (called == "open" and _is_path(node.func.value)):  # type: ignore[attr-defined]
            modes = [word for word in ast.walk(node) if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            if not any("b" in str(mode.value) for mode in modes[:2]):
                found.append(node.lineno)
    return found


def _is_path(value: ast.expr) -> bool:
    """Whether something that is opened is no module whose `open` is another."""
    return not (isinstance(value, ast.Name) and value.id in ("Image", "os", "tarfile", "webbrowser"))


def test_such_calls_are_found() -> None:
    bad = "a.read_text()\n(a / b).write_text(c)\nopen(a)\na.open('w')\n"
    good = "a.read_text(encoding='utf-8')\na.open('rb')\nopen(a, 'wb')\nImage.open(a)\nread_text(a, b)\n"
    assert (offences(bad), offences(good)) == ([1, 2, 3, 4], [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_has_its_encoding_stated(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


def test_text_is_written_with_newlines_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\nb\n".encode()
