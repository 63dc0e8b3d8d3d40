"""The peers' virtual environments in `.cache/serving-peers/NAME`, made from `peers/NAME.txt` when they are needed.

A stamp holds the digest of what was installed; a matching one ends the work at once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.serving.processes import PeerFailedError, log_tail

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "serving-peers"
PEERS = Path(__file__).with_name("peers")
_BEAT_S = 10.0


def python_of(name: str) -> Path:
    """Return the interpreter of an environment, installed if it is not.

    Raises:
        PeerFailedError: pip could not install it; with pip's last line.
    """
    folder, wanted = CACHE / name, PEERS / f"{name}.txt"
    python, stamp, log = folder / "bin" / "python", folder / "installed.sha256", CACHE / f"{name}.log"
    digest = hashlib.sha256(sys.version.encode() + wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    CACHE.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_PEERS}
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    with log.open("wb") as output:
        for label, command in (
            ("making the environment", [sys.executable, "-m", "venv", str(folder)]),
            ("installing", [*pip, "-r", str(wanted)]),
        ):
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            wait_shown(process, f"bench-serving: {name}: {label}")
            if process.returncode:
                raise PeerFailedError(f"not installed: {log_tail(log)}")
    stamp.write_text(digest)
    return python


def wait_shown(process: subprocess.Popen[bytes], label: str) -> None:
    """Wait for a process, and show every ten seconds that it goes on."""
    started = time.monotonic()
    while True:
        try:
            process.wait(_BEAT_S)
            return
        except subprocess.TimeoutExpired:
            print(f"{label} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)


_NOT_FOR_PEERS = frozenset({"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONHOME"})
