"""Claiming an output directory: its marker is written first, and a job holds its lock while it runs.

stepalign.json   the command, its settings, the identity of what it works with (`marker.py`)
.lock            there while a job runs; the system drops the lock of a process that was killed

Any moment of death leaves a directory that the same command recognises: nothing, the lock's file, an unfinished marker,
or the marker.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from stepalign.support.digests import Identity, refuse_differences
from stepalign.support.marker import (
    MARKER,
    Note,
    Owner,
    compare_settings,
    marker_of,
    new_marker,
    recognise,
    write_marker,
)
from stepalign.support.parallel import decided_by_main, processes

LOCK = ".lock"
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
"""Names of the temporary files of `files.replacing`."""
ATTEMPTS = 20
"""Tries to lock a directory that other jobs, failing at their start, remove."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A directory that belongs to this job until the block of `claim` ends."""

    output: Path
    adopted: bool
    """Whether a version without markers wrote it."""
    moved: str = ""
    """Which parts are named by another path than before, for messages."""

    def identify(self, identity: Identity) -> None:
        """Compare digests of parts, by name, with those the directory began with, and add those it does not have yet.

        Raises ValueError, in all processes, naming the parts that differ.
        """
        decided_by_main(lambda: self._identify(identity))

    def _identify(self, identity: Identity) -> None:
        marker = marker_of(self.output)
        assert marker is not None, "claiming wrote it"
        theirs = marker["identity"]
        refuse_differences(identity, theirs, whose=f"{self.output} was begun with{self.moved}")
        if identity.keys() - theirs.keys():
            write_marker(self.output, {**marker, "identity": theirs | identity})


@contextmanager
def claim(output: Path, owner: Owner, *, note: Note = lambda message: None, lock: str = LOCK) -> Iterator[Claim]:
    """Hold a directory for a job of all processes; the main one writes its marker and holds its lock.

    Raises ValueError, in all processes and with the directory as it was, unless it can be written, is empty, absent or
    of this very owner, and no other job works there. When the block ends with an error and nothing but the marker was
    written, that is removed as well. `note` takes lines for the user; `lock` names the lock's file.
    """
    held = _Held(output, lock)
    adopted, moved = decided_by_main(lambda: held.take(owner, note))
    try:
        yield Claim(output, adopted, moved)
    except BaseException:
        if processes().is_main_process:
            held.release(failed=True)
        raise
    if processes().is_main_process:
        held.release(failed=False)


@contextmanager
def locked(folder: Path, *, note: Note = lambda message: None) -> Iterator[None]:
    """Hold the lock of a folder of any owner, for one process; raises ValueError when another job is at work there."""
    held = _Held(folder, LOCK)
    held.acquire(note)
    try:
        yield
    finally:
        held.release(failed=False)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of jobs that were killed, but not below directories with an owner of their own."""
    for root, folders, files in os.walk(folder):
        for name in files:
            if LEFTOVER.fullmatch(name):
                (Path(root) / name).unlink(missing_ok=True)
        folders[:] = [name for name in folders if not _owned(Path(root) / name)]


class _Held:
    """The lock of a directory, and the folders that taking it created."""

    def __init__(self, output: Path, lock: str) -> None:
        self._output = output
        self._path = output / lock
        self._lock: FileLock | None = None
        self._marked = False
        self._folders: list[Path] = []
        """Created for the directory, innermost first."""

    def take(self, owner: Owner, note: Note) -> tuple[bool, str]:
        """Lock the directory and write its marker unless it has one.

        Returns whether a version without markers wrote it, and which parts are named by another path than before.
        """
        self._check(owner)
        try:
            self.acquire(note)
        except OSError as error:
            nearest = next(path for path in (self._output, *self._output.absolute().parents) if path.is_dir())
            self.release(failed=True)
            raise ValueError(f"output: cannot write in {nearest}: {error.strerror}") from error
        try:
            return self._mark(owner, note)
        except BaseException:
            self.release(failed=True)
            raise

    def _check(self, owner: Owner) -> None:
        """Raise ValueError where a file is in the way, or files of which none names an owner."""
        output = self._output
        for path in (output, *output.parents):
            if _is_other_than_a_directory(path):
                raise ValueError(f"output: {path} is a file; give a directory")
        unmarked = output.is_dir() and not _is_blank(output) and not (output / MARKER).exists()
        if unmarked and owner.copy(output) is None and owner.legacy(output) is None:
            raise ValueError(
                f"output: {output} holds files of something else; give a new or empty directory, or restore its "
                f"{MARKER}"
            )

    def _mark(self, owner: Owner, note: Note) -> tuple[bool, str]:
        """Compare the locked directory's owner with this one, and write the marker where there is no whole one."""
        output = self._output
        theirs = recognise(output, owner, blank=_is_blank(output))
        moved = "" if theirs is None else compare_settings(output, owner, theirs, note)
        remove_leftovers(output)
        if marker_of(output) is not None:
            return False, moved
        if (output / MARKER).exists():
            note(f"{output / MARKER} is damaged, and written anew")
        self._marked = theirs is None
        marker = new_marker(output, owner)
        if theirs is not None:
            marker["identity"] = theirs["identity"]
        write_marker(output, marker)
        return theirs is not None and not theirs["directory"], moved

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
        """Create the directory and its missing parents, which other jobs may create and remove at the same time."""
        absent = [path for path in (self._output, *self._output.parents) if not path.exists()]
        for folder in reversed(absent):
            with suppress(FileExistsError):
                folder.mkdir()
                self._folders.insert(0, folder)

    def acquire(self, note: Note) -> None:
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
                note(f"the file system of {self._output} has no locks: let no other job write there")
                return
        if isinstance(lock, SoftFileLock):
            note(f"the file system of {self._output} has no locks: after a kill, delete {self._path}")
        self._lock = lock


def _is_blank(output: Path) -> bool:
    """Whether a directory holds nothing but the files of a claim."""
    hidden: list[OSError] = []
    files = [name for _, _, found in os.walk(output, onerror=hidden.append) for name in found]
    return all(isinstance(error, FileNotFoundError) for error in hidden) and all(
        name == MARKER or name.startswith(LOCK) or LEFTOVER.fullmatch(name) for name in files
    )


def _is_other_than_a_directory(path: Path) -> bool:
    """Whether a path exists and is no directory; one system call, since another job may remove its directory."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _owned(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MARKER, LOCK))
