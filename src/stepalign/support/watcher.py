"""Watchers: objects that a run reports its progress to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from stepalign.support.stopping import check_stop


@runtime_checkable
class Watcher(Protocol):
    """Receives the progress of a run."""

    def phase(self, name: str, done: int, total: int) -> None:
        """A part of a round or of the evaluation is done."""
        ...

    def round(self, row: dict[str, Any], total: int) -> None:
        """Report a finished round, or step of a judge's training; `row` is its line of metrics."""
        ...

    def note(self, message: str) -> None:
        """Report a message for the user."""
        ...


class NullWatcher:
    """A watcher that reports nothing."""

    def phase(self, name: str, done: int, total: int) -> None: ...

    def round(self, row: dict[str, Any], total: int) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass(slots=True)
class StoppingWatcher:
    """A watcher at whose phases a signal ends the work; the work runs inside `stopping.finishing`."""

    inner: Watcher
    saved: str = ""
    """The results that are on disk, for the line that ends the command."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Report progress, then raise Stopped where a signal asked for it."""
        self.inner.phase(name, done, total)
        check_stop(self.saved)

    def round(self, row: dict[str, Any], total: int) -> None:
        """Report a round."""
        self.inner.round(row, total)

    def note(self, message: str) -> None:
        """Pass on a line."""
        self.inner.note(message)
