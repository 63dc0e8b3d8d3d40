"""Ctrl-C and SIGTERM as a `threading.Event`, for programs that run until they are told to stop.

A handler of Python runs between any two instructions of the main thread, so it must take no lock: `Event.set` takes
one, and a handler that calls it waits for ever where the main thread, or the handler of a signal just before, holds it.
Here the handlers do nothing; the byte that the interpreter writes for each signal (`signal.set_wakeup_fd`) wakes a
thread, and that one sets the event.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Generator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set, however often they come; only in the main thread.

    Afterwards the handlers are as they were. But if a signal came, both are ignored from there on: the program is at
    its end, and an impatient second Ctrl-C must not make an interruption of it.

    Raises:
        ValueError: this is not the main thread.
    """
    stop = threading.Event()
    watcher = _Watcher(stop)
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, _do_nothing) for number in STOP_SIGNALS}
        watcher.start(reader)
        try:
            yield stop
        finally:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(wakeup)
            writer.close()
            watcher.join()  # it ends when the writing end is closed
            if not watcher.has_seen_one:
                for number, handler in before.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Watcher:
    """The thread that reads the numbers of signals from a socket until its other end is closed."""

    def __init__(self, stop: threading.Event) -> None:
        self.has_seen_one = False
        self._stop = stop
        self._thread: threading.Thread | None = None

    def start(self, reader: socket.socket) -> None:
        self._thread = threading.Thread(target=self._read, args=(reader,), name="noa-stop-signals", daemon=True)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _read(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            if any(number in STOP_SIGNALS for number in numbers):
                self.has_seen_one = True
                self._stop.set()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    del number, frame
