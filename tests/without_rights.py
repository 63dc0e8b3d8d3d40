"""Runs a command of noa as somebody whom permissions bind: root, as which tests may run, reads everything."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_DROP_FROM_BOUNDING_SET: Final = 24  # PR_CAPBSET_DROP
_OVERRIDES: Final = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def run_bound(*words: str, project: Path) -> subprocess.CompletedProcess[str]:
    """Run `noa ...` in a project, bound by the permissions of files."""
    command = [sys.executable, "-m", "noa_cli", *words, "--directory", str(project)]
    return subprocess.run(command, preexec_fn=_bind, check=False, capture_output=True, text=True, timeout=120)


def _bind() -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _OVERRIDES:
            if libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "this root can do nothing about its rights")
