"""Graceful stops: SIGINT (ctrl-C), SIGTERM and SIGHUP end a command at its next safe point.

Work with something to save runs inside `finishing()` and calls `check_stop()` where it may end: the first signal is
then only recorded, and `check_stop` raises `Stopped`. Anywhere else the first signal raises `Stopped` on arrival. A
second signal ends the process at once. Only inside `stop_on_signals`, which the command line uses, are signals handled.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Windows has no SIGHUP."""
REPEATS = 0.1
"""Seconds in which one request can arrive twice: `timeout` signals its child and then its whole group."""
FORWARDED = 5.0
"""The same for a process of a launcher, which forwards signals that the terminal has already sent to the group."""
SHOW_CURSOR = "\x1b[?25h"


class Stopped(BaseException):
    """A command ended early by a signal; a BaseException, so that no `except Exception` catches it."""

    def __init__(self, signum: int, saved: str = "", *, reason: str = "") -> None:
        super().__init__(reason or f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.reason = reason
        """Why the program itself ended the command; "" where a signal did."""
        self.saved = saved
        """The saved progress, as a message: "round 3 of 16 is saved"."""

    @property
    def status(self) -> int:
        """The exit status of a process that this signal ended: 130, 143 or 129; 1 where the program itself did."""
        return 1 if self.reason else 128 + self.signum


@dataclass(slots=True)
class _Request:
    """The signals that this process has received."""

    signum: int | None = None
    since: float = 0.0
    num_finishing: int = 0
    reason: str = ""
    """Why the program itself asked."""
    reports: bool = False
    """Whether this process reports in place of a main process that is gone."""


_request = _Request()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Handle the signals while the block runs, in the main thread only; an ignored signal stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request.signum, _request.num_finishing, _request.reason, _request.reports = None, 0, "", False
    known = [getattr(signal, name) for name in NAMES if name in signal.Signals.__members__]
    before = {number: signal.getsignal(number) for number in known}
    handled = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in handled:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        _request.signum = None


@contextmanager
def finishing() -> Iterator[None]:
    """Let the work in the block reach its next `check_stop()` before a signal ends it."""
    _request.num_finishing += 1
    try:
        yield
    finally:
        _request.num_finishing -= 1


def stop_requested() -> int:
    """The number of the signal that has asked this process to stop, 0 for none."""
    return _request.signum or 0


def check_stop(saved: str = "") -> None:
    """Raise Stopped, with the saved progress, if a signal has asked this process to stop."""
    if _request.signum is not None:
        raise Stopped(_request.signum, saved, reason=_request.reason)


def end_early(reason: str) -> None:
    """Ask the main thread, from another one, to end the command at its next safe point, as a signal would."""
    _request.reason = reason
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    elif _request.signum is None:
        _request.signum = signal.SIGTERM


def report_in_place_of_main() -> None:
    """Have this process report how the command ended, in place of a main process that is gone."""
    _request.reports = True


def reports_end() -> bool:
    """Whether this process reports how the command ended."""
    return _request.reports or os.environ.get("RANK", "0") == "0"


def _on_signal(signum: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _request.signum is None:
        _request.signum, _request.since = signum, now
        if not _request.num_finishing:
            raise Stopped(signum, reason=_request.reason)
    elif now - _request.since > (FORWARDED if "LOCAL_RANK" in os.environ else REPEATS):
        _exit_now(signum)


def _exit_now(signum: int) -> None:
    """End the process without unwinding, which could wait for a network or a disk."""
    cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
    line = f"{cursor}stepalign: stopped at once by {signal.Signals(signum).name}\n"
    os.write(2, line.encode())
    os._exit(128 + signum)
