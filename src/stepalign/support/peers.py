"""The other processes of a job: when one ends before its work is done, the others end within seconds, with one line.

Every process holds a connection to the main one, which the system closes when either end dies, however it dies. Without
it a process would notice at its next collective operation, which may be minutes away, or, with NCCL, after a timeout.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from accelerate.utils import broadcast_object_list

from stepalign.support.errors import say
from stepalign.support.parallel import processes
from stepalign.support.stopping import end_early, report_in_place_of_main

GRACE = 1.0
"""Seconds in which a process may end by itself, by an error of its own or of a collective operation."""
LAST = 6.0
"""Seconds in which it may reach a point where it can stop and save; then it is ended."""
CONNECTING = 30.0
"""Seconds in which the processes connect; those that do not are not watched."""
ENDED = "another process of this command ended"
FAREWELL = b"."
"""Sent by a process whose work is done."""
_watching = threading.Event()


@contextmanager
def ending_with_others() -> Iterator[None]:
    """End this process when another one ends before its own block does; nothing for a process alone, or inside."""
    if processes().num_processes == 1 or _watching.is_set():
        yield
        return
    links, done = _connect(), threading.Event()
    watch = threading.Thread(target=_watch, args=(links, done), name="peers", daemon=True)
    _watching.set()
    watch.start()
    try:
        yield
        for link in links:
            with suppress(OSError):
                link.sendall(FAREWELL)
    finally:
        done.set()
        _watching.clear()
        watch.join()
        for link in links:
            link.close()


def _connect() -> list[socket.socket]:
    """Connections to all other processes on the main one, and to the main one on the others."""
    host, rank = os.environ.get("MASTER_ADDR", "127.0.0.1"), processes().process_index
    server = socket.create_server(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0)) if rank == 0 else None
    place: list[Any] = [server.getsockname()[1] if server else 0, secrets.token_bytes(16)]
    broadcast_object_list(place)
    port, token = place
    if server is not None:
        with server:
            return _accepted(server, token, processes().num_processes - 1)
    with suppress(OSError):
        link = socket.create_connection((host, port), timeout=CONNECTING)
        link.sendall(token)
        return [_kept_alive(link)]
    return []


def _accepted(server: socket.socket, token: bytes, num: int) -> list[socket.socket]:
    """So many connections that begin with a token, or those that came in time."""
    links: list[socket.socket] = []
    deadline = time.monotonic() + CONNECTING
    while len(links) < num and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        with suppress(OSError):
            link = server.accept()[0]
            link.settimeout(left)
            if link.recv(len(token), socket.MSG_WAITALL) == token:
                links.append(_kept_alive(link))
            else:
                link.close()
    return links


def _kept_alive(link: socket.socket) -> socket.socket:
    """A connection that the system closes when the other machine is gone."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if name in vars(socket):  # not on every system
            link.setsockopt(socket.IPPROTO_TCP, vars(socket)[name], seconds)
    link.setblocking(False)
    return link


def _watch(links: list[socket.socket], done: threading.Event) -> None:
    """Wait until this process's work is done, or another process ends before its own is."""
    with selectors.DefaultSelector() as selector:
        for link in links:
            selector.register(link, selectors.EVENT_READ)
        while selector.get_map() and not done.is_set():
            for key, _ in selector.select(timeout=0.2):
                if not _is_open(links[links.index(key.fileobj)]):  # type: ignore[arg-type]
                    return _end(links, done)
                selector.unregister(key.fileobj)


def _is_open(link: socket.socket) -> bool:
    """Whether a readable connection holds the farewell, and is not closed."""
    try:
        return link.recv(1) == FAREWELL
    except OSError:
        return False


def _end(links: list[socket.socket], done: threading.Event) -> None:
    """End this process: by itself, at its next safe point, or at once."""
    for link in links:  # so that the processes connected to this one learn of it
        with suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)
    if processes().process_index == 1 and len(links) == 1:  # the main process is gone
        report_in_place_of_main()
    if done.wait(GRACE):
        return
    end_early(ENDED)
    if done.wait(LAST):
        return
    if processes().process_index <= 1:
        say(f"{ENDED}; the same command resumes")
    os._exit(1)
