"""Paths that stay in their folder, however they are written, and text in UTF-8."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from stepalign.local_files import file_size, json_lines, local_file, parse_json, read_text

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Bücher/Äpfel é.png") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images/0.png, beside which lies a file that is none of its business."""
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "images" / "0.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    (tmp_path / "own" / "linked.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "own" / "linked").symlink_to(tmp_path)
    (tmp_path / "own" / "again.png").symlink_to("images/0.png")
    return tmp_path / "own"


@pytest.mark.parametrize(
    "name", ["images/0.png", "./images/0.png", "images//0.png", r"images\0.png", r".\images\0.png", "again.png"]
)
def test_a_path_inside_is_found_with_either_slash(name: str, folder: Path) -> None:
    assert local_file(folder, name).read_bytes() == b"inside"
    assert local_file(folder, name, allow_outside=True).read_bytes() == b"inside"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", "has '..' in it"),
        ("images/../../secret.png", "has '..' in it"),
        (r"images\..\..\secret.png", "has '..' in it"),
        ("images/../images/0.png", "has '..' in it"),
        ("{parent}/secret.png", "is an absolute path"),
        ("{parent}/own/images/0.png", "is an absolute path"),
        ("/dev/zero", "is an absolute path"),
        (r"C:\images\0.png", "is an absolute path"),
        ("C:/images/0.png", "is an absolute path"),
        (r"\\server\share\0.png", "is an absolute path"),
        ("linked.png", "leads out of .* through a symbolic link"),
        ("linked/secret.png", "leads out of .* through a symbolic link"),
    ],
)
def test_a_path_that_leads_out_is_refused_naming_the_flag(name: str, reason: str, folder: Path) -> None:
    name = name.replace("{parent}", str(folder.parent))
    with pytest.raises(ValueError, match=rf"{reason}.*inside .*--allow-outside, or data.allow_outside"):
        local_file(folder, name)


def test_outside_is_read_where_that_is_asked_for(folder: Path) -> None:
    for name in ("../secret.png", r"..\secret.png", str(folder.parent / "secret.png"), "linked.png"):
        assert local_file(folder, name, allow_outside=True).read_bytes() == b"outside"


def test_a_folder_that_is_itself_a_link_holds_its_files(folder: Path) -> None:
    (folder.parent / "other").symlink_to(folder)
    assert local_file(folder.parent / "other", "images/0.png").read_bytes() == b"inside"


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0.png", "holds a NUL character"),
        ("a\ud83d.png", "holds half a character"),
        ("a" * 256, "is no path: it is longer"),
        ("a/" * 3000, "is no path: it is longer"),
        ("", "an empty name"),
        (" ", "an empty name"),
    ],
)
def test_what_can_be_no_path_is_refused(name: str, reason: str, allow_outside: bool, folder: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        local_file(folder, name, allow_outside=allow_outside)


@pytest.mark.parametrize(("stored", "named"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (COMPOSED, COMPOSED)])
def test_either_unicode_normal_form_is_found(stored: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / stored
    path.parent.mkdir()
    path.touch()
    assert local_file(tmp_path, named) == path
    assert local_file(tmp_path, named.replace("/", "\\")) == path


def test_a_backslash_that_is_part_of_a_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / r"a\b.png").touch()
    assert local_file(tmp_path, r"a\b.png") == tmp_path / r"a\b.png"


def test_a_file_that_is_not_there_gets_the_path_it_would_have(tmp_path: Path) -> None:
    assert local_file(tmp_path, "Bü/x.png") == tmp_path / "Bü/x.png"
    assert local_file(tmp_path, r"images\0.png") == tmp_path / "images/0.png"


def test_only_regular_files_are_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    assert file_size(folder / "images/0.png") == 6
    for name, reason in [
        ("pipe", "is no regular file"),
        ("images", "is a directory"),
        ("gone", "there is no file"),
        ("images/0.png/x", "cannot be read: Not a directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("a" * 300, "cannot be read: File name too long"),
        ("nul\0", "cannot be read: embedded null byte"),
    ]:
        with pytest.raises(ValueError, match=reason):
            file_size(folder / name)
    with pytest.raises(ValueError, match="is no regular file"):
        read_text(Path("/dev/zero"))


# Text


def test_text_is_read_with_any_line_ending_and_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("ß\nb", "ß\r\nb", "ß\rb", "\ufeffß\nb"):
        path.write_bytes(content.encode())
        assert read_text(path) == "ß\nb"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_named_as_what_it_is(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a cat".encode(encoding))
    with pytest.raises(ValueError, match=r"^prompts: .*a\.txt is UTF-16 or UTF-32 text; save it as UTF-8"):
        read_text(tmp_path / "a.txt", field="prompts")


def test_text_in_another_encoding_or_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes("Fuß".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text: .*; save it as UTF-8"):
        read_text(tmp_path / "a.txt")
    monkeypatch.setattr("stepalign.local_files.MAX_TEXT_BYTES", 2)
    with pytest.raises(ValueError, match=r"a\.txt has 3 bytes; at most 2 are read as text"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":', "here is not valid JSON: "),
        ("[" * 200_000, "here is JSON nested too deeply"),
        ("1" * 5000, "here is not valid JSON: .*digits"),
        (b'"\xff"', "here is not valid JSON: .*utf-8"),
    ],
)
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text, "here")


def test_lines_are_numbered_and_of_bounded_length() -> None:
    assert list(json_lines('1\n\n"b"\n', "x")) == [("x line 1", 1), ("x line 3", "b")]
    with pytest.raises(ValueError, match=r"x line 2 has 7 characters; at most 5 are read"):
        list(json_lines('1\n"abcde"', "x", longest=5))
