"""The frame of every job: claim the output directory, load a finished result or work, and write the result last.

A kind of job is its owner (`marker.py`), the names of its files, and the functions it hands to `carry_out`; a job whose
finished files are not checked against a checkpoint, such as generation, works inside `open_run` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stepalign.runs.resuming import is_finished
from stepalign.support.claim import LOCK, Claim, claim
from stepalign.support.digests import Identity
from stepalign.support.file_record import record_files
from stepalign.support.files import write_text
from stepalign.support.marker import Owner
from stepalign.support.parallel import decided_by_main, processes
from stepalign.support.peers import ending_with_others
from stepalign.support.watcher import Watcher

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Run:
    """A job at work in its output directory."""

    claimed: Claim
    watcher: Watcher
    files: tuple[str, ...]
    """Files and folders that the job writes besides its result."""

    @property
    def output(self) -> Path:
        """The directory."""
        return self.claimed.output

    def identify(self, identity: Identity) -> None:
        """Compare digests of the job's parts with those the directory began with; raises ValueError where they
        differ."""
        self.claimed.identify(identity)

    def finish(self, result: str, text: str) -> None:
        """Record the files and write the file `result`, which marks the job as finished."""
        record_files(self.output, self.files, pending={result: text})
        write_text(self.output / result, text)


@contextmanager
def open_run(
    output: Path, owner: Owner, *, files: tuple[str, ...], watcher: Watcher, lock: str = LOCK
) -> Iterator[Run]:
    """Claim a directory for a job of all processes until the block ends; raises ValueError as `claim` does."""
    with ending_with_others(), claim(output, owner, note=watcher.note, lock=lock) as claimed:
        yield Run(claimed, watcher, files)


def carry_out(
    output: Path,
    owner: Owner,
    *,
    files: tuple[str, ...],
    watcher: Watcher,
    load: Callable[[Path], S | None],
    identity: Callable[[], Identity],
    work: Callable[[Run], S | None],
) -> S | None:
    """The summary of a job, on the main process; None on the others.

    A finished job whose files are whole is not done again: `load` reads its summary once the digests that `identity`
    computes are those it began with. Otherwise `work` resumes, or begins, and returns the summary.
    """
    with open_run(output, owner, files=files, watcher=watcher) as run:
        adopted = run.claimed.adopted
        if not decided_by_main(lambda: is_finished(output, files, adopted=adopted, note=watcher.note)):
            return work(run)
        is_main = processes().is_main_process
        run.identify(identity() if is_main else {})
        return load(output) if is_main else None
