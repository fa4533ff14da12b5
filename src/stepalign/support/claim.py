"""Ownership of an output directory: a marker that is written first, a lock that a job holds while it runs.

stepalign.json   the command, its settings, the identity of what it works with
.lock            there while a job runs; the system drops the lock of a process that was killed

Any moment of death leaves a directory that the same command recognises: nothing, the lock's file, an unfinished marker,
or the marker.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from stepalign.support.digests import refuse_differences, values_digest
from stepalign.support.files import write_text
from stepalign.support.parallel import decided_by_main, processes
from stepalign.support.relative_paths import relative

MARKER, LOCK = "stepalign.json", ".lock"
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of the temporary files of `checkpoint.replacing`."""
ATTEMPTS = 20
"""Tries to lock a directory that others, failing at their start, take away."""
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a directory belongs to."""

    kind: str
    """The command: "train", "train-judge", "generate", "sweep"."""
    settings: dict[str, Any]
    """All that decides the results, as nested plain values."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Of settings that an older version's directory does not mention."""
    free: frozenset[str] = frozenset()
    """Settings, with dots, that decide no result and may differ."""
    by_content: frozenset[str] = frozenset()
    """Settings that name parts by where they lie; where the marker has digests of the parts, these are compared."""
    legacy: Callable[[Path], dict[str, Any] | None] = lambda output: None
    """Settings of a directory from before there were markers; None for one of something else."""
    noun: str = "recipe"
    """What the settings are, in messages."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A directory that belongs to this job until the block of `claim` ends."""

    output: Path
    adopted: bool
    """Whether it is of a version that wrote no marker."""
    moved: str = ""
    """Which parts are named by another place than before, for messages."""

    def identify(self, identity: dict[str, str]) -> None:
        """Compare digests of parts, by name, with those the directory began with, and add those it does not have yet.

        Raises ValueError, in all processes, naming the parts that differ.
        """
        decided_by_main(lambda: self._identify(identity))

    def _identify(self, identity: dict[str, str]) -> None:
        path = self.output / MARKER
        marker = marker_of(self.output)
        assert marker is not None, "claiming wrote it"
        theirs: dict[str, str] = marker["identity"]
        refuse_differences(identity, theirs, whose=f"{self.output} was begun with{self.moved}")
        if identity.keys() - theirs.keys():
            _write(path, marker | {"identity": theirs | identity})


@contextmanager
def claim(output: Path, owner: Owner, *, tell: Note = lambda message: None, lock: str = LOCK) -> Iterator[Claim]:
    """Hold a directory for a job of all processes; the main one writes its marker and holds its lock.

    Raises ValueError, in all processes and with the directory as it was, unless it can be written, is empty, absent or
    of this very owner, and no other job works there. When the block ends with an error and nothing but the marker was
    written, that is removed as well. `tell` takes notes for the user; `lock` names the lock's file.
    """
    held = _Held(output, lock)
    adopted, moved = decided_by_main(lambda: held.take(owner, tell))
    try:
        yield Claim(output, adopted, moved)
    except BaseException:
        if processes().is_main_process:
            held.release(failed=True)
        raise
    if processes().is_main_process:
        held.release(failed=False)


@contextmanager
def locked(folder: Path, *, tell: Note = lambda message: None) -> Iterator[None]:
    """Hold the lock of a folder of any owner, for one process; raises ValueError when another job is at work there."""
    held = _Held(folder, LOCK)
    held.acquire(tell)
    try:
        yield
    finally:
        held.release(failed=False)


def marker_of(output: Path) -> dict[str, Any] | None:
    """What a directory's marker holds; None when there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
        whole = (
            marker.pop("sha256", None) in (None, values_digest(marker))
            and isinstance(marker["kind"], str)
            and isinstance(marker["directory"], str)
        )
        if whole and all(isinstance(marker[name], dict) for name in ("settings", "identity")):
            return marker
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of jobs that were killed, but not below directories with an owner of their own."""
    for root, folders, files in os.walk(folder):
        for name in files:
            if LEFTOVER.fullmatch(name):
                (Path(root) / name).unlink(missing_ok=True)
        folders[:] = [name for name in folders if not _owned(Path(root) / name)]


class _Held:
    """The lock of a directory, and what taking it created."""

    def __init__(self, output: Path, lock: str) -> None:
        self._output = output
        self._path = output / lock
        self._lock: FileLock | None = None
        self._marked = False
        self._folders: list[Path] = []
        """Created for the directory, innermost first."""

    def take(self, owner: Owner, tell: Note) -> tuple[bool, str]:
        """Lock the directory and write its marker unless it has one.

        Returns whether it is of an older version, and which parts are named by another place than before.
        """
        output = self._output
        for path in (output, *output.parents):
            if _is_other_than_a_directory(path):
                raise ValueError(f"output: {path} is a file; give a directory")
        if (
            output.is_dir()
            and not _is_blank(output)
            and not (output / MARKER).exists()
            and owner.legacy(output) is None
        ):
            raise ValueError(f"output: {output} holds files of something else; give a new or empty directory")
        try:
            self.acquire(tell)
        except OSError as error:
            nearest = next(path for path in (output, *output.absolute().parents) if path.is_dir())
            self.release(failed=True)
            raise ValueError(f"output: cannot write in {nearest}: {error.strerror}") from error
        try:
            theirs = _recognise(output, owner)
            moved = "" if theirs is None else _compare(output, owner, theirs, tell)
            remove_leftovers(output)
            if marker_of(output) is not None:
                return False, moved
            if (output / MARKER).exists():
                tell(f"{output / MARKER} is damaged, and written anew")
            directory, settings = str(output.resolve()), json.loads(json.dumps(owner.settings))
            marker = {"kind": owner.kind, "version": version("stepalign"), "directory": directory}
            self._marked = theirs is None
            _write(output / MARKER, marker | {"settings": settings, "identity": {}})
            return theirs is not None, moved
        except BaseException:
            self.release(failed=True)
            raise

    def release(self, *, failed: bool) -> None:
        """Give the directory back; of a job that failed before it did anything, nothing is left."""
        if failed and self._marked and _is_blank(self._output):
            (self._output / MARKER).unlink(missing_ok=True)
        if self._lock is not None:
            self._path.unlink(missing_ok=True)
            self._lock.release()
        if failed:
            for folder in self._folders:
                with suppress(OSError):  # another job has begun there
                    folder.rmdir()

    def _create(self) -> None:
        """Create the directory, remembering what did not exist, while others may create and remove the same."""
        absent = [path for path in (self._output, *self._output.parents) if not path.exists()]
        for folder in reversed(absent):
            with suppress(FileExistsError):
                folder.mkdir()
                self._folders.insert(0, folder)

    def acquire(self, tell: Note) -> None:
        """Take the lock, creating the directory where there is none."""
        lock = FileLock(self._path, blocking=False)
        for attempt in range(ATTEMPTS):
            try:
                self._create()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a missing flock, which the note is about
                    lock.acquire()
                break
            except Timeout:
                raise ValueError(
                    f"output: another job is at work in {self._output}; wait for it, or give another directory"
                ) from None
            except FileNotFoundError:  # another job failed at its start, and took its directory away
                if attempt == ATTEMPTS - 1:
                    raise
            except NotImplementedError:
                tell(f"the file system of {self._output} has no locks: let no other job write there")
                return
        if isinstance(lock, SoftFileLock):
            tell(f"the file system of {self._output} has no locks: after a kill, delete {self._path}")
        self._lock = lock


def _recognise(output: Path, owner: Owner) -> dict[str, Any] | None:
    """What a locked directory says of its owner, as a marker; None for a new one. Raises ValueError for any other."""
    marker = marker_of(output)
    if marker is not None:
        if marker["kind"] != owner.kind:
            raise ValueError(f"output: {output} belongs to {marker['kind']}, not {owner.kind}; give another directory")
        return marker
    settings = owner.legacy(output)
    if settings is not None:
        return {"directory": None, "settings": settings, "identity": {}}
    if not _is_blank(output):
        raise ValueError(
            f"output: {output / MARKER} is damaged, and nothing else says whose the directory is; give another one"
        )
    return None


def _compare(output: Path, owner: Owner, theirs: dict[str, Any], tell: Note) -> str:
    """Raise ValueError, naming a setting, unless those that both know are equal, as paths here or from there.

    Returns, for messages, which parts known by content are named by another place.
    """
    here = str(output.resolve())
    there = theirs["directory"] or here
    ours, usual = (_flat(json.loads(json.dumps(values))) for values in (owner.settings, owner.defaults))
    kept = _flat(theirs["settings"])
    unknown = [key for key in kept if key not in ours]
    if unknown:
        tell(f"{output} is of another version: {', '.join(sorted(unknown))} of its {owner.noun} is ignored")
    known = usual | kept
    moved = []
    for key in sorted(ours.keys() & known.keys() - owner.free):
        if known[key] == ours[key] or relative(known[key], there) == relative(ours[key], here):
            continue
        differs = f"its {key} is {known[key]!r}, this {owner.noun}'s {ours[key]!r}"
        if key in owner.by_content and theirs["identity"] and None not in (known[key], ours[key]):
            moved.append(differs)
        else:
            raise ValueError(f"output: {output} is another run's: {differs}; give another directory")
    return f" ({'; '.join(moved)})" if moved else ""


def _is_blank(output: Path) -> bool:
    """Whether a directory holds nothing but what claiming it leaves."""
    hidden: list[OSError] = []
    files = [name for _, _, found in os.walk(output, onerror=hidden.append) for name in found]
    return all(isinstance(error, FileNotFoundError) for error in hidden) and all(
        name == MARKER or name.startswith(LOCK) or LEFTOVER.fullmatch(name) for name in files
    )


def _is_other_than_a_directory(path: Path) -> bool:
    """Whether something stands there that is no directory; in one look, since another job may remove its directory."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _owned(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MARKER, LOCK))


def _write(path: Path, marker: dict[str, Any]) -> None:
    write_text(path, json.dumps(marker | {"sha256": values_digest(marker)}, indent=1) + "\n")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows
