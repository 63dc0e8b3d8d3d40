"""The end of a process that ran a user's code: bounded in time, whatever threads and processes that code has left."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

LEAVE_WITHIN_S = 5.0
_HELPERS = ("resource_tracker", "multiprocessing.forkserver")  # these end by themselves once we are gone


def leave_within(code: int, *, warn: Callable[[str], None], seconds: float = LEAVE_WITHIN_S) -> None:
    """See to it that this process, which ends now, has ended with `code` after so many seconds.

    Python waits at its end for threads that are no daemons and for child processes of `multiprocessing`. What still
    runs after `seconds` is told to `warn` by name and is left; nothing of this process runs after that. All that is
    worth keeping must be on disk before.
    """

    def guard() -> None:
        time.sleep(seconds)
        with suppress(Exception):
            what = ", ".join(remaining()) or "what runs at the end of Python"
            warn(f"still running {seconds:g} s after the end, and ended by force: {what}")
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=guard, name="noa-leaving", daemon=True).start()


def remaining() -> list[str]:
    """Name the threads for which Python waits at its end, and the child processes."""
    found = [
        f"thread `{thread.name}`"
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if not any(helper in command for helper in _HELPERS):
                    found.append(f"process {process.pid} (`{(command or process.name())[:80]}`)")
    return found
