"""Signals that ask a program to end: it ends, however often and however closely they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from noa.stop_signals import STOP_SIGNALS, stop_on_signals

# One signal comes at the N-th line that the main thread runs inside `threading`, and one more at each line after it,
# so that each also comes while the handler of the one before still runs. Where a handler takes a lock, it stands still.
PROGRAM = """
import os, signal, sys, threading, time
from noa.stop_signals import stop_on_signals
first, number, lines = int(sys.argv[1]), signal.Signals(int(sys.argv[2])), 0
def at_line(frame, what, value):
    global lines
    if what == "line":
        lines += 1
        if lines >= first:
            os.kill(os.getpid(), number)
    return at_line
def at_call(frame, what, value):
    return at_line if frame.f_code.co_filename == threading.__file__ else None
with stop_on_signals() as stop:
    sys.settrace(at_call)
    while not stop.wait(0.001):
        pass
    sys.settrace(None)
sys.exit(7)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("first", range(1, 20, 3))
def test_signals_one_upon_the_other_end_the_wait_wherever_it_is(first: int, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(first), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_without_a_signal_everything_is_as_before() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    threads = threading.active_count()
    with stop_on_signals() as stop:
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
        assert not stop.is_set()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup
    assert threading.active_count() == threads


def test_an_error_inside_leaves_everything_as_before() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    threads = threading.active_count()
    with pytest.raises(LookupError), stop_on_signals():
        raise LookupError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert threading.active_count() == threads


def test_outside_of_the_main_thread_it_is_refused_and_leaves_nothing() -> None:
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with stop_on_signals():
                os.abort()
        except ValueError as exc:
            failures.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert [type(failure) for failure in failures] == [ValueError]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_each_of_the_signals_sets_the_event_and_what_ends_the_process_is_its_own_end(number: signal.Signals) -> None:
    program = (
        "import os, sys\n"
        "from noa.stop_signals import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    assert stop.wait(30)\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (7, "")
