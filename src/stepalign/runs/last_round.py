"""The end of a run's last finished round, saved when the run ends in the middle of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.runs.run_directory import CHECKPOINT, write_rows
from stepalign.support.files import RunState, save_state
from stepalign.support.stopping import Stopped, check_stop, finishing
from stepalign.training.trainer import Trainer


@dataclass(slots=True)
class LastRound:
    """The state after the last finished round, where it is newer than the checkpoint on disk."""

    state: RunState | None = None


@contextmanager
def saving_last_round(
    trainer: Trainer, total: int, output: Path, rows: list[dict[str, Any]], *, files: tuple[str, ...]
) -> Iterator[LastRound]:
    """Let signals end the rounds in the block at their next step, and save the last finished one.

    A round that a signal, another process's end or a lack of memory cuts short is done again by the same command, from
    the same bits. `files` are kept with the checkpoint; `total` is the number of the run's rounds.
    """
    last = LastRound()
    with finishing():
        try:
            yield last
        except (Stopped, RuntimeError, MemoryError) as error:
            if last.state is not None:
                write_rows(output, rows[: last.state.num_rounds])
                save_state(last.state, output / CHECKPOINT, files=files)
            if isinstance(error, Stopped):
                num = trainer.num_rounds
                error.saved = f"round {num} of {total} is saved" if num else "no round was finished"
            raise


def with_stops(tick: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """A tick after which the work ends where a signal has asked for it."""

    def ticked(phase: str, done: int, total: int) -> None:
        tick(phase, done, total)
        check_stop()

    return ticked
