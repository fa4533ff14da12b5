"""Commands in forked processes that die at a chosen moment: no imports are paid twice.

A process dies inside its n-th write (its temporary file cut in half, or whole but not yet in place), right after it, at
the n-th step towards the lock, or after so many seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from stepalign.cli import main

MIDWAY, WHOLE, PLACED, LOCKING, LOCKED, SECONDS = "midway", "whole", "placed", "locking", "locked", "seconds"


@dataclass(frozen=True, slots=True)
class Death:
    """When a process dies: inside or after its n-th write, at the lock, or after some seconds."""

    moment: str
    number: float

    def __str__(self) -> str:
        return f"{self.moment} {self.number:g}"


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: its exit status, minus the signal's number where one ended it, and what it printed."""

    status: int
    output: str
    seconds: float
    writes: list[str]


def run(words: list[str], folder: Path, death: Death | None = None) -> End:
    """Run a command in a forked process, which dies as told."""
    return fork(lambda: main(words), folder, death)


def fork(work: Callable[[], int], folder: Path, death: Death | None = None) -> End:
    """Do some work in a forked process; what it prints and writes is noted beside `folder`."""
    log, writes = folder.with_name(f"{folder.name}.log"), folder.with_name(f"{folder.name}.writes")
    log.parent.mkdir(parents=True, exist_ok=True)
    writes.write_text("")
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # not pytest's
            _prepare(death, writes)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if death is not None and death.moment == SECONDS:
        time.sleep(death.number)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    return End(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), seconds, writes.read_text().split())


def deaths(writes: list[str], seconds: float, *, num: int, seed: int) -> list[Death]:
    """So many deaths of a command with these writes: at the lock, in every first write, and at seeded moments."""
    import random

    rng = random.Random(seed)
    firsts = [n for n, name in enumerate(writes) if name not in writes[:n]]
    chosen = [Death(LOCKING, 1), Death(LOCKED, 1), *(Death(rng.choice([MIDWAY, WHOLE, PLACED]), n + 1) for n in firsts)]
    chosen = chosen[: num - 5]
    while len(chosen) < num - 5:
        chosen.append(Death(rng.choice([MIDWAY, WHOLE, PLACED]), rng.randrange(len(writes)) + 1))
    return chosen + [Death(SECONDS, seconds * rng.uniform(0.02, 0.98)) for _ in range(5)]


def _prepare(death: Death | None, writes: Path) -> None:
    """Note every write by the name of its file, and die in the one that is meant."""
    sync, replace, acquire = os.fsync, Path.replace, FileLock.acquire
    count = [0]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def synced(handle: int) -> None:
        count[0] += 1
        if death == Death(MIDWAY, count[0]):
            os.truncate(handle, os.fstat(handle).st_size // 2)
            die()
        sync(handle)
        if death == Death(WHOLE, count[0]):
            die()

    def replaced(source: Path, target: Path) -> Path:
        found = replace(source, target)
        if source.name.endswith(".tmp"):
            with writes.open("a") as file:
                file.write(f"{Path(target).name.replace(' ', '_')}\n")
            if death == Death(PLACED, count[0]):
                die()
        return found

    def acquired(lock: FileLock, *given: object, **named: object) -> object:
        if death == Death(LOCKING, 1):
            die()
        found = acquire(lock, *given, **named)
        if death == Death(LOCKED, 1):
            die()
        return found

    os.fsync, Path.replace, FileLock.acquire = synced, replaced, acquired  # type: ignore[method-assign,assignment]
