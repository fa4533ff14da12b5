"""The end of a run's last finished round, saved when the run ends in the middle of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.runs.run_directory import save_run
from stepalign.support.files import RunState
from stepalign.support.stopping import Stopped, check_stop, finishing


@dataclass(slots=True)
class LastRound:
    """The state after the last finished round, where it is newer than the checkpoint on disk."""

    state: RunState | None = None


@contextmanager
def saving_last_round(last: LastRound, output: Path, rows: list[dict[str, Any]], *, total: int) -> Iterator[None]:
    """Let signals end the rounds in the block at their next step, and save the last finished one.

    A round that a signal, the end of another process or a lack of memory cuts short is repeated by the same command,
    from the same bits. `rows` are the metrics of the finished rounds; `total` is the number of the run's rounds.
    """
    with finishing():
        try:
            yield
        except (Stopped, RuntimeError, MemoryError) as error:
            if last.state is not None:
                save_run(output, last.state, rows[: last.state.num_rounds])
            if isinstance(error, Stopped):
                error.saved = f"round {rows[-1]['round']} of {total} is saved" if rows else "no round was finished"
            raise


def with_stops(tick: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """A tick after which the work ends where a signal has asked for it."""

    def ticked(phase: str, done: int, total: int) -> None:
        tick(phase, done, total)
        check_stop()

    return ticked
