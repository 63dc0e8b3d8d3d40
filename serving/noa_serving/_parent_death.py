"""Die with the parent: ask the kernel to send SIGTERM when the process that started us is gone (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int | None = None) -> None:
    """Arrange it, and exit at once if the parent (`expected_parent`, if known) has died already."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    parent = os.getppid()
    if parent == 1 if expected_parent is None else parent != expected_parent:
        raise SystemExit(0)
