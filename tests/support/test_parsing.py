"""Text, JSON and YAML of anybody: every fault is a ValueError that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepalign.support.parsing import check_text, is_nothing, json_lines, parse_json, parse_yaml, read_text

LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "f is not valid YAML"),
        ("a: 2026-13-40", "f is not valid YAML: month must be in 1..12"),
        ("a: !!python/object:os.system {}", "f is not valid YAML"),
        ("{a: 1}: 2", "f is not valid YAML"),
        ("a: \x00", "f is not valid YAML"),
        ("a: 1\n---\nb: 2", "f is not valid YAML"),
        ("a: *b", "f is not valid YAML"),
        ("a: &a [*a]", "f is not valid YAML: an alias refers to what it is part of"),
        ("a: " + "[" * 100 + "]" * 100, "f is nested more than 50 levels deep"),
        ("a: " + "[" * 20000, "f is nested more than 50 levels deep"),
        (LAUGHS, "f has more than 100000 values once its aliases are written out"),
        ("a: " + "9" * 5000, "f is not valid YAML: Exceeds the limit"),
    ],
    ids=lambda text: text[:12],
)
def test_bad_yaml_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^f ") as raised:
        parse_yaml(text, "f")
    assert str(raised.value).startswith(said)


def test_aliases_of_a_reasonable_size_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}", "f") == {
        "a": {"x": 1},
        "b": [{"x": 1}, {"x": 1}],
        "c": {"x": 1, "y": 2},
    }
    assert parse_yaml("", "f") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "f is not valid JSON: "),
        ("[" * 100_000, "f is nested too deeply"),
        ('{"a":' * 100_000, "f is nested too deeply"),
        ("9" * 5000, "f is not valid JSON: Exceeds the limit"),
        ("", "f is not valid JSON: "),
    ],
    ids=lambda text: text[:6],
)
def test_bad_json_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^f ") as raised:
        parse_json(text, "f")
    assert str(raised.value).startswith(said)


def test_half_of_a_character_is_named_with_its_place() -> None:
    assert check_text("a 🙂 b", "prompt 3") == "a 🙂 b"
    with pytest.raises(ValueError, match=r"^prompt 3 holds half of a character, \\ud83d at position 2: 'a \\ud83d b'"):
        check_text("a \ud83d b", "prompt 3")


@pytest.mark.parametrize("value", [None, "none", "None", "NONE", "null", "Null", "~"])
def test_there_are_many_words_for_nothing(value: str | None) -> None:
    assert is_nothing(value)
    assert not any(map(is_nothing, ("", "0", 0, "nothing", False)))


def test_text_is_utf8_whatever_the_platform_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes("\ufeffä\r\nb\n".encode())
    assert read_text(tmp_path / "good.txt", "prompts") == "ä\nb\n"
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^prompts: .*latin.txt is not UTF-8 text.*save it as UTF-8"):
        read_text(tmp_path / "latin.txt", "prompts")
    with pytest.raises(ValueError, match=r"^prompts: there is no file .*gone.txt"):
        read_text(tmp_path / "gone.txt", "prompts")
    with pytest.raises(ValueError, match=r"^prompts: .* is a directory"):
        read_text(tmp_path, "prompts")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_named_as_what_it_is(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a cat".encode(encoding))
    with pytest.raises(ValueError, match=r"^prompts: .*a\.txt is UTF-16 or UTF-32 text; save it as UTF-8"):
        read_text(tmp_path / "a.txt", "prompts")


def test_text_that_is_too_long_or_comes_from_a_pipe_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^prompts: .*pipe' is no regular file"):
        read_text(tmp_path / "pipe", "prompts")
    (tmp_path / "a.txt").write_text("Fuß", encoding="utf-8")
    monkeypatch.setattr("stepalign.support.parsing.MAX_BYTES", 3)
    with pytest.raises(ValueError, match=r"^prompts: .*a\.txt has 4 bytes; at most 3 are read as text"):
        read_text(tmp_path / "a.txt", "prompts")


def test_lines_of_json_are_numbered_and_of_bounded_length() -> None:
    assert list(json_lines('1\n\n"b"\n', "x")) == [("x line 1", 1), ("x line 3", "b")]
    with pytest.raises(ValueError, match=r"x line 2 has 7 characters; at most 5 are read"):
        list(json_lines('1\n"abcde"', "x", longest=5))
    with pytest.raises(ValueError, match=r"x line 1 is not valid JSON"):
        list(json_lines("{", "x"))
