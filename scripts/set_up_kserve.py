"""Create `.cache/kserve`, the environment of KServe's client for the tests: `python3 scripts/set_up_kserve.py`.

KServe asks for an older psutil and pandas than noa has, so its client gets an environment of its own, from a lock of
its own. Standard library only. Idempotent, and safe to be called by several processes: a stamp holds the digest of what
was installed, and a matching stamp ends the script at once. Prints the path of its interpreter last.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "kserve"
LOCK = ROOT / "tests" / "serving" / "kserve_client.txt"
STAMP = FOLDER / "installed.sha256"
PYTHON = FOLDER / "bin" / "python"


def main() -> int:
    FOLDER.parent.mkdir(exist_ok=True)
    wanted = hashlib.sha256(LOCK.read_bytes() + str(FOLDER).encode() + sys.version.encode()).hexdigest()
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.is_file() or STAMP.read_text() != wanted:
            print("test: installing KServe's client (a minute or two the first time)", flush=True)
            if not install():
                return 1
            STAMP.write_text(wanted)
    print(PYTHON)
    return 0


def install() -> bool:
    """Make the environment anew; on failure print pip's own last lines."""
    venv.create(FOLDER, clear=True, with_pip=True)
    command = [str(PYTHON), "-m", "pip", "install", "-q", "--no-compile", "--no-deps", "-r", str(LOCK)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for step in (command, [str(PYTHON), "-m", "pip", "check"]):
        result = subprocess.run(step, capture_output=True, text=True, check=False, env=environment)
        if result.returncode != 0:
            sys.stderr.write(f"{result.stdout}{result.stderr}"[-3000:])
            print("error: KServe's client cannot be installed; see pip's message above", file=sys.stderr)
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
