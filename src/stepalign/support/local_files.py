"""Paths named in files: resolved inside their folder, in any spelling; only regular files are read."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath

MAX_PATH, MAX_PART = 4096, 255
"""Most bytes of a path and of one part, as on Linux."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""Prefixes of absolute paths on Windows."""
OR_ALLOW = "(--allow-outside, or data.allow_outside in a recipe, lifts this)"


def local_file(folder: Path, name: str, *, allow_outside: bool = False) -> Path:
    """The path of a file that a row of a file in `folder` names, spelled as on this disk.

    Backslashes separate like slashes, and a name is found in either Unicode normal form, whichever the disk has. Raises
    ValueError for a name that cannot be a path, and, unless `allow_outside`, for one that leads out of the folder: an
    absolute one, one with `..`, one through a symbolic link. The file need not exist.
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


def file_size(path: Path) -> int:
    """The bytes of a regular file; raises ValueError for anything else, and for a path that cannot be followed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:  # a ValueError for a NUL character or half a character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{str(path)!r} cannot be read: {reason}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{str(path)!r} is a directory, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{str(path)!r} is no regular file; pipes, sockets and devices are not read")
    return found.st_size


def _check_name(name: str) -> None:
    """Raise ValueError for names that no file system accepts."""
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
