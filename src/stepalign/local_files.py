"""Files that other files name, and text files: found inside their folder, regular, of bounded size, in UTF-8."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

MAX_TEXT_BYTES = 2**28
"""Of a text file that is read whole."""
MAX_LINE = 2**20
"""Characters in a line of JSON."""
MAX_PATH, MAX_PART = 4096, 255
"""Bytes in a path and in one of its parts, as on Linux."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""How absolute paths begin on Windows."""
UTF_16_OR_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def local_file(folder: Path, name: str, *, allow_outside: bool = False) -> Path:
    """The path of a file that a row of a file in `folder` names, spelled as on this disk.

    Backslashes separate like slashes, and a name is found in either Unicode normal form, whichever the disk has.
    Raises ValueError for a name that can be no path, and, unless `allow_outside`, for one that leads out of the folder:
    an absolute one, one with `..`, one through a symbolic link. The file need not exist.
    """
    _check_name(name)
    if "\\" in name and not os.path.lexists(folder / name):
        spelled = name.replace("\\", "/")
    else:
        spelled = name
    absolute = PurePosixPath(spelled).is_absolute() or DRIVE.match(name) is not None
    if not allow_outside and (absolute or ".." in PurePosixPath(spelled).parts):
        kind = "is an absolute path" if absolute else "has '..' in it"
        raise ValueError(f"{name!r} {kind}; paths must stay inside {folder} {OR_ALLOW}")
    path = _as_on_disk(folder, spelled)
    if not allow_outside and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{name!r} leads out of {folder} through a symbolic link; paths must stay inside {OR_ALLOW}")
    return path


OR_ALLOW = "(--allow-outside, or data.allow_outside in a recipe, lifts this)"


def file_size(path: Path) -> int:
    """The bytes of a regular file; raises ValueError for anything else, and for a path that cannot be followed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # a ValueError for a NUL character or half a character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{str(path)!r} cannot be read: {reason}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is a directory, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file; pipes, sockets and devices are not read")
    return found.st_size


def read_text(path: Path, *, field: str = "") -> str:
    """The text of a UTF-8 file with or without a byte order mark; every kind of line ending is read as a newline.

    Raises ValueError, beginning with `field`, for what is missing, not regular, larger than `MAX_TEXT_BYTES`, or in
    another encoding, which it names where the file says it.
    """
    lead = f"{field}: " if field else ""
    try:
        size = file_size(path)
    except ValueError as error:
        raise ValueError(f"{lead}{error}") from error
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"{lead}{path} has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read as text")
    content = path.read_bytes()
    wide = content.startswith(UTF_16_OR_32) or (b"\0" in content[:2] and len(content) > 1)
    if wide:
        raise ValueError(f"{lead}{path} is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{lead}{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; raises ValueError naming `where`, also for what is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is JSON nested too deeply") from None
    except ValueError as error:  # also a number of more than 4300 digits, and bytes that are not UTF-8
        raise ValueError(f"{where} is not valid JSON: {error}") from error


def json_lines(text: str, name: object, *, longest: int = MAX_LINE) -> Iterator[tuple[str, Any]]:
    """Where each line of a JSONL text stands, such as "FILE line 3", and its value; blank lines are left out.

    Raises ValueError naming the line that is no JSON or has more than `longest` characters.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        if len(line) > longest:
            raise ValueError(f"{where} has {len(line):,} characters; at most {longest:,} are read")
        yield where, parse_json(line, where)


def _check_name(name: str) -> None:
    """Raise ValueError for what no disk takes as a path."""
    try:
        parts = [len(part) for part in re.split(rb"[\\/]", name.encode())]
    except UnicodeEncodeError:
        raise ValueError(f"{name[:80]!r} holds half a character, and is no path") from None
    if not name.strip():
        raise ValueError("an empty name is no path")
    if "\0" in name:
        raise ValueError(f"{name[:80]!r} holds a NUL character, and is no path")
    if max(parts) > MAX_PART or sum(parts) + len(parts) > MAX_PATH:
        raise ValueError(f"{name[:80]!r}... is no path: it is longer than {MAX_PATH} bytes, or a part than {MAX_PART}")


def _as_on_disk(folder: Path, name: str) -> Path:
    """A path below a folder, each part in the Unicode normal form in which it exists, as given where it does not."""
    path = folder / name
    if name.isascii() or os.path.lexists(path):
        return path
    path = folder
    for part in PurePosixPath(name).parts:
        spellings = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        path /= next((spelled for spelled in spellings if os.path.lexists(path / spelled)), part)
    return path
