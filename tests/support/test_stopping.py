"""Signals: the first one ends a command at its next safe point, the second at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from stepalign.support.stopping import Stopped, check_stop, finishing, stop_on_signals, stop_requested

pytestmark = pytest.mark.usefixtures("signals_arrive")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def send(number: signal.Signals) -> None:
    """Send this process a signal and stay where it can arrive."""
    os.kill(os.getpid(), number)
    time.sleep(0.5)
    pytest.fail("the signal came to nothing")


@pytest.mark.parametrize("number", STATUS)
def test_outside_of_finishing_a_signal_ends_the_work_where_it_arrives(number: signal.Signals) -> None:
    with stop_on_signals(), pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
        send(number)
    assert stopped.value.status == STATUS[number]


@pytest.mark.parametrize("number", STATUS)
def test_inside_of_finishing_the_work_goes_to_its_next_check(number: signal.Signals) -> None:
    with stop_on_signals(), finishing():
        check_stop()
        os.kill(os.getpid(), number)
        time.sleep(0)
        assert stop_requested()
        with pytest.raises(Stopped) as stopped:
            check_stop("round 1 is saved")
    assert (stopped.value.status, stopped.value.saved) == (STATUS[number], "round 1 is saved")


def test_no_handler_for_faults_takes_it_for_one() -> None:
    def work() -> None:
        with suppress(Exception):
            send(signal.SIGTERM)

    with stop_on_signals(), pytest.raises(Stopped):
        work()


def test_after_the_block_signals_are_as_before() -> None:
    before = [signal.getsignal(number) for number in STATUS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in STATUS] != before
    assert [signal.getsignal(number) for number in STATUS] == before
    assert not stop_requested()


def test_an_ignored_signal_stays_ignored() -> None:
    """As `nohup` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert not stop_requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_changed() -> None:
    handlers = []

    def work() -> None:
        with stop_on_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


WORK = """
import sys, time
from stepalign.support.stopping import check_stop, finishing, stop_on_signals
with stop_on_signals(), finishing():
    print("at work", flush=True)
    time.sleep({before})
    print("once", flush=True)
    time.sleep(20)
"""


def signalled(*moments: float, within: float) -> tuple[int, str]:
    """Status and standard error of work that is sent SIGTERM at some moments, in seconds from one to the next."""
    words = [sys.executable, "-c", WORK.format(before=0)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        for moment in moments:
            time.sleep(moment)
            process.send_signal(signal.SIGTERM)
        try:
            _, err = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            process.kill()
            return 0, ""
    return process.returncode, err


def test_a_second_signal_ends_the_process_at_once() -> None:
    assert signalled(0, 0.3, within=5) == (143, "stepalign: stopped at once by SIGTERM\n")


def test_the_same_signal_sent_twice_by_a_launcher_is_one() -> None:
    """`timeout` signals its child and then the group that both are in."""
    assert signalled(0, 0.001, within=0.5) == (0, "")
