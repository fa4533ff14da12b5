"""Paths that stay in their folder, however they are written, and files that are regular."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from stepalign.support.local_files import file_size, local_file

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
        file_size(Path("/dev/zero"))
