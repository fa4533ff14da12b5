"""Starts of eight processes at once: as ranks of one job all begin, as jobs of their own one begins."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from holds import note_figure

from stepalign.support.claim import claim
from stepalign.support.marker import MARKER, Owner

NUM_STARTS, NUM_RANKS = 30, 8


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
@pytest.mark.parametrize("existing", [True, False], ids=["into an empty directory", "into none"])
def test_every_start_of_eight_ranks_succeeds(existing: bool, tmp_path: Path) -> None:
    begun = 0
    for start in range(NUM_STARTS):
        output = tmp_path / f"{start}/run"
        if existing:
            output.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        works = [rank_of(output, shared, rank) for rank in range(NUM_RANKS)]
        begun += all(status == 0 for status in together(works))
        assert (output / MARKER).exists()
    name = "existing" if existing else "new"
    note_figure(f"starts of {NUM_RANKS} ranks, {name} output", {"starts": NUM_STARTS, "all ranks began": begun})
    assert begun == NUM_STARTS


def rank_of(output: Path, shared: dict[str, str], rank: int) -> Callable[[], int]:
    """One rank of a job that claims a directory and works in it with the others."""

    def work() -> int:
        os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"})
        from stepalign.support.parallel import processes

        with claim(output, Owner("train", {"seed": 0})):
            (output / f"rank-{rank}.txt").write_text("work")
            processes().wait_for_everyone()
        return 0

    return work


def together(works: list[Callable[[], int]]) -> list[int]:
    """The exit statuses of pieces of work done in forked processes at once."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = work()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
