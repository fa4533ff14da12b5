"""Progress as lines of text, for logs and pipes: one per round, and one every half minute within a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console

EVERY = 30.0
"""Seconds between lines within a round."""
WORTH_A_LINE = 2.0
"""Seconds of work after which its end gets a line of its own."""


class ProgressLines:
    """A watcher that prints what progress bars show, each line at once."""

    def __init__(
        self, console: Console, phases: dict[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._phases = phases
        self._clock = clock
        self._printed = clock()
        """Time of the last line."""
        self._phase = ""
        self._began = (0, clock())
        """Progress and time at the first call of this phase."""
        self._first: tuple[int, float] | None = None
        """The same for rounds, or for a judge's steps."""
        self._loss = 0.0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def phase(self, name: str, done: int, total: int) -> None:
        """Report progress within a round or other work."""
        now = self._clock()
        if name != self._phase:
            self._phase, self._began = name, (done, now)
        ended = done >= total > 0 and now - self._began[1] >= WORTH_A_LINE and name not in ("sample", "train")
        if ended or now - self._printed >= EVERY:
            of = f" of {total}" if total else ""
            left = _left(done, total, self._began, now)
            self.note(f"{self._phases[name].strip()}: {done}{of}{left}")

    def round(self, row: dict[str, Any], total: int) -> None:
        """Report a finished round, or a step of a judge's training; steps are many, so they share lines."""
        now, unit = self._clock(), "step" if "step" in row else "round"
        done = row[unit]
        self._first = self._first or (done, now)
        left = _left(done, total, self._first, now)
        if unit == "step":
            if row["loss"] is not None:  # of a step that was not skipped
                self._loss += 0.02 * (row["loss"] - self._loss) if self._loss else row["loss"]
            if now - self._printed >= EVERY or done == total:
                self.note(f"step {done} of {total}: loss {self._loss:.3f}{left}")
            return
        found = {"judge score": _shown(row.get("judge_score"), "{:.3f}"), "kept": _shown(row.get("kept"), "{:.0%}")}
        words = ", ".join(f"{name} {value}" for name, value in found.items() if value)
        self.note(f"round {done} of {total}{words and f': {words}'}{left}")

    def note(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
        self._printed = self._clock()


def _left(done: int, total: int, began: tuple[int, float], now: float) -> str:
    """The time left at the pace so far, as text; empty before any progress and at the end."""
    first, since = began
    if not first < done < total:
        return ""
    seconds = (now - since) / (done - first) * (total - done)
    return f", {timedelta(seconds=round(seconds))} left"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
