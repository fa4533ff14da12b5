"""Distributed state (accelerate's PartialState) and collective decisions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from stepalign.support.finite import NotFinite
from stepalign.support.reproducibility import warn_about_mkl
from stepalign.support.stopping import stop_requested

T = TypeVar("T")
TIMEOUT = timedelta(hours=6)
"""Of a collective operation: longer than one process may work while the others wait. `peers.py` sees dead processes."""


def processes() -> PartialState:
    """The distributed state of this process, as started by `accelerate launch` or `torchrun`, or of a single process.

    Without a GPU the processes communicate through gloo, which accelerate needs as an option.
    """
    warn_about_mkl()
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)


def any_asked_to_stop() -> int:
    """The number of the signal that requested a stop in any process, the same in all; 0 for none."""
    if processes().num_processes == 1:
        return stop_requested()
    return max(gather_object([stop_requested()]))


def decided_by_main(decide: Callable[[], T]) -> T:
    """The main process's result, broadcast to all; its exception is raised in all, in the others as ValueError."""
    if processes().num_processes == 1:
        return decide()
    verdict: list[Any] = [None, None]
    failed: Exception | None = None
    if processes().is_main_process:
        try:
            verdict[0] = decide()
        except Exception as error:
            verdict[1], failed = str(error), error
    broadcast_object_list(verdict)
    if failed is not None:
        raise failed
    if verdict[1] is not None:
        raise ValueError(verdict[1])
    return verdict[0]


def together(work: Callable[[], T]) -> T:
    """The result of this process's share of some work; a NotFinite of one process is raised on all of them.

    The work must not wait for other processes.
    """
    try:
        result, faults = [work()], []
    except NotFinite as error:
        result, faults = [], [error]
    found: list[NotFinite] = faults if processes().num_processes == 1 else gather_object(faults)
    if found:
        raise found[0]
    return result[0]
