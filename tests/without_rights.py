"""Runs Python as somebody whom permissions bind: root, as which tests may run, reads everything."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_DROP_FROM_BOUNDING_SET: Final = 24  # PR_CAPBSET_DROP
_OVERRIDES: Final = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def run_script_bound(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of Python with arguments, bound by the permissions of files."""
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, preexec_fn=bind, check=False, capture_output=True, text=True, timeout=120)


def bind() -> None:
    """Give up what root is allowed beyond permissions; it counts from the next program that this process becomes."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _OVERRIDES:
            if libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "this root can do nothing about its rights")


@contextmanager
def closed_for_writing(folder: Path) -> Generator[None]:
    """Take the right to write away from everything below a folder, and give it back to the owner at the end."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
