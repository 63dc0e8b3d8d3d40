"""Create `.venv` and install noa from the lock: `python3 scripts/set_up.py [--extras dev] [--python python3.12]`.

Standard library only: it runs before anything is installed. Idempotent: a stamp in the environment holds the digest of
what was installed, and a matching stamp ends the script at once. Prints one line per step, with a progress bar on a
terminal and a line every ten seconds elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "constraints.txt"
STAMP = VENV / "noa-installed.sha256"
OLDEST_PYTHON = (3, 11)
BAR_WIDTH = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="dev", help="extras to install, comma-separated (default: dev)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the environment (default: this one)")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        print(f"error: noa needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    wanted = fingerprint(arguments.extras)
    if STAMP.is_file() and STAMP.read_text() == wanted and (VENV / "bin" / "noa").exists():
        print("setup: .venv is up to date")
        return 0
    if not (VENV / "bin" / "python").exists():
        print("setup: creating .venv")
        subprocess.run([arguments.python, "-m", "venv", str(VENV)], check=True)
    packages = sum(1 for line in LOCK.read_text().splitlines() if "==" in line)
    print(f"setup: installing noa[{arguments.extras}] and {packages} locked packages (some minutes the first time)")
    # torch first: from the lock it is the CPU build where one is on disk; a dependency's range could pick another.
    torch = [line for line in LOCK.read_text().splitlines() if line.startswith("torch==")]
    everything = ["-e", f"{ROOT}[{arguments.extras}]"]
    for label, what, count in (("installing torch", torch, 10), ("installing the rest", everything, packages)):
        if not install(what, count, label):
            return 1
    print("setup: compiling byte code")
    with heartbeat("setup: compiling") as progress:
        progress.update(count=count_files(".py"), suffix=".pyc", word="files")
        subprocess.run(
            [str(VENV / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib")],
            check=False,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    if not check():
        return 1
    STAMP.write_text(wanted)
    print("setup: done")
    return 0


def fingerprint(extras: str) -> str:
    """Return the digest of everything an installation depends on."""
    digest = hashlib.sha256(extras.encode())
    digest.update(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", LOCK, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def clean_environment() -> dict[str, str]:
    """Return this environment without the switch that makes every import slow."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def install(what: list[str], packages: int, label: str) -> bool:
    """Install with pip from the lock; on failure print pip's own last lines."""
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--no-compile",
        "-c",
        str(LOCK),
        *what,
    ]
    lines: list[str] = []
    collected = 0
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment()
        ) as process,
        heartbeat(f"setup: {label}") as progress,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"\s*(Collecting|Requirement already satisfied)", line):
                collected += 1
            progress["text"] = f"{min(collected, packages)} of about {packages} packages resolved"
            if line.startswith("Installing collected packages"):
                progress["text"] = "all packages fetched, unpacking"
                progress["count"] = line.count(",") + 1
    if process.returncode != 0:
        sys.stderr.write("".join(lines[-25:]))
        print(
            "error: the installation failed; see pip's message above, then run the same command again", file=sys.stderr
        )
        return False
    return True


def check() -> bool:
    """Refuse an environment whose packages contradict each other."""
    result = subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "pip", "check"],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        print("error: the installed packages contradict each other; run `make clean` and try again", file=sys.stderr)
    return result.returncode == 0


@contextlib.contextmanager
def heartbeat(label: str) -> Generator[dict[str, object]]:
    """Show that work goes on: a bar on a terminal, else a line every ten seconds."""
    progress: dict[str, object] = {"text": ""}
    done = threading.Event()
    started = time.monotonic()
    on_terminal = sys.stdout.isatty()
    before = {".dist-info": count_files(".dist-info")}

    def show() -> None:
        while not done.wait(1 if on_terminal else 10):
            seconds = int(time.monotonic() - started)
            text = str(progress["text"])
            total = progress.get("count")
            if isinstance(total, int):
                suffix, word = str(progress.get("suffix", ".dist-info")), str(progress.get("word", "installed"))
                count = max(0, min(count_files(suffix) - before.get(suffix, 0), total))
                filled = BAR_WIDTH * count // max(total, 1)
                text = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {count}/{total} {word}"
            line = f"{label} {text} ({seconds // 60}:{seconds % 60:02})"
            print(f"\r\033[K{line}" if on_terminal else line, end="" if on_terminal else "\n", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        done.set()
        thread.join()
        if on_terminal:
            print("\r\033[K", end="", flush=True)


def count_files(suffix: str) -> int:
    """Return how many distributions (`.dist-info`) or files of a kind the environment holds."""
    if suffix == ".dist-info":
        return sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info"))
    return sum(name.endswith(suffix) for _, _, names in os.walk(VENV / "lib") for name in names)


if __name__ == "__main__":
    sys.exit(main())
