"""Progress of a command: what a run reports while it works, and to whom."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run gets on."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Part of a round or of the evaluation is done."""
        ...

    def round(self, row: dict[str, Any], total: int) -> None:
        """A round, or a step of a judge's training, is done; `row` is its line of metrics."""
        ...

    def note(self, message: str) -> None:
        """Something worth a line of its own."""
        ...


class NullWatcher:
    """A watcher that says nothing."""

    def phase(self, name: str, done: int, total: int) -> None: ...

    def round(self, row: dict[str, Any], total: int) -> None: ...

    def note(self, message: str) -> None: ...
