"""The connection between processes of a job: a farewell is an end, a close without one is a death."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from stepalign.support import peers
from stepalign.support.stopping import Stopped, check_stop, end_early, finishing, stop_on_signals

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Pair]:
    """This process's end of a connection, and the other's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments at which the watch would have ended this process."""
    moments: list[float] = []
    monkeypatch.setattr(peers, "_end", lambda *_: moments.append(time.monotonic()))
    return moments


def test_a_process_that_says_farewell_ends_no_other(ends: Pair, ended: list[float]) -> None:
    ends[1].sendall(peers.FAREWELL)
    ends[1].close()
    peers._watch([ends[0]], threading.Event())
    assert ended == []


def test_a_process_that_dies_ends_the_others_at_once(ends: Pair, ended: list[float]) -> None:
    watch = threading.Thread(target=peers._watch, args=([ends[0]], threading.Event()))
    watch.start()
    time.sleep(0.05)
    assert ended == []
    closed = time.monotonic()
    ends[1].close()
    watch.join(5)
    assert 0 <= ended[0] - closed < 1


def test_a_watch_ends_with_the_work(ends: Pair, ended: list[float]) -> None:
    done = threading.Event()
    done.set()
    peers._watch([ends[0]], done)
    assert ended == []


def test_only_connections_with_the_token_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECTING", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        clients = [socket.create_connection(server.getsockname()) for _ in range(2)]
        for client, token in zip(clients, (b"stranger", b"password"), strict=True):
            client.sendall(token)
        (link,) = peers._accepted(server, b"password", 1)
        assert link.getpeername() == clients[1].getsockname()
        for end in (*clients, link):
            end.close()


def test_the_work_ends_at_its_next_safe_point_with_status_1() -> None:
    with stop_on_signals(), finishing():
        thread = threading.Thread(target=end_early, args=("another process ended",))
        thread.start()
        thread.join()
        with pytest.raises(Stopped, match=r"^another process ended$") as stopped:
            check_stop("round 3 of 4 is saved")
    assert (stopped.value.status, stopped.value.saved) == (1, "round 3 of 4 is saved")
