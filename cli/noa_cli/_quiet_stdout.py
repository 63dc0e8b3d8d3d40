"""Keep other people's code away from our standard output: what a recipe prints goes to standard error.

Replacing `sys.stdout` is not enough: a child process, `os.write(1, ...)` and C libraries write to file descriptor 1.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout, suppress

_STDOUT, _STDERR = 1, 2


@contextmanager
def stdout_to_stderr() -> Generator[None]:
    """Send everything that this process and its children write to standard output to standard error meanwhile."""
    _flush_everything()
    try:
        saved = os.dup(_STDOUT)
    except OSError:  # we were started without one (`>&-`)
        yield
        return
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush_everything()
        os.dup2(saved, _STDOUT)
        os.close(saved)


def _flush_everything() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more, closed, or None
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # C libraries buffer too, and would print at exit
