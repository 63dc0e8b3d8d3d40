"""SIGTERM and a terminal that goes away as Ctrl-C: a command tidies up and says how to continue."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_NUMBERS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_sigterm() -> Generator[None, None, None]:
    """Raise KeyboardInterrupt in the main thread for SIGTERM and SIGHUP; what somebody ignores (`nohup`) stays so."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _NUMBERS}
    taken = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
