"""Work that the processes of one job share, as `torchrun` would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from stepalign.support.parallel import processes

START = "spawn" if torch.accelerator.is_available() else "fork"
"""A forked process pays no imports again; a device that was used before the fork could not be used in it."""


def in_ranks(num: int, folder: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """The results by rank of a module's function that so many processes of one job call at once."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context(START)
    ranks = [context.Process(target=_rank, args=(rank, shared, folder, work, given)) for rank in range(num)]
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of threads, of which a forked process has none
            warnings.simplefilter("ignore", DeprecationWarning)
            for rank in ranks:
                rank.start()
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0] * num
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(num)]


def _rank(rank: int, shared: dict[str, str], folder: Path, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""})
    torch.set_num_threads(1)
    PartialState._reset_state()  # a fork begins with its parent's, which is alone
    torch.save(work(*given), folder / f"{rank}.pt")
    processes().wait_for_everyone()
    os._exit(0)  # gloo's threads now and then abort an ordinary end
