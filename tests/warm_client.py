"""The tests' side of `warm_runner.py`: short commands of noa that do not each import everything anew.

For what a command does with its project. Whatever a start of Python decides (imports, signals, a shell's environment)
is tested with processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

_RUNNER = Path(__file__).with_name("warm_runner.py")


class WarmProcess:
    """A process that forks for each command. `prepare` runs in it before it becomes Python, as `preexec_fn` does."""

    def __init__(self, prepare: Callable[[], None] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,  # noqa: PLW1509  # makes system calls and takes no lock
        )

    def noa(
        self, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `noa ...` in a folder and return how it ended and what it said; it has nothing to read."""
        return self._perform({"arguments": arguments}, folder, environment)

    def script(self, text: str, *, folder: Path, warnings: str = "error") -> subprocess.CompletedProcess[str]:
        """Run Python as `python -W WARNINGS -c TEXT` does."""
        return self._perform({"script": text, "warnings": warnings}, folder, None)

    def close(self) -> None:
        cast("IO[str]", self._process.stdin).close()
        self._process.wait(60)
        cast("IO[str]", self._process.stdout).close()

    def _perform(
        self, order: dict[str, Any], folder: Path, environment: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        with tempfile.TemporaryDirectory(prefix="noa-warm-") as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            for file in (out, err):
                file.touch()
            place = {"folder": str(folder), "environment": dict(os.environ if environment is None else environment)}
            stdin.write(json.dumps({**order, **place, "out": str(out), "err": str(err)}) + "\n")
            stdin.flush()
            answer = stdout.readline()
            assert answer, f"the runner ended with {self._process.wait(60)}: {err.read_text()}"
            return subprocess.CompletedProcess(
                args=order.get("arguments", ["-c", "..."]),
                returncode=json.loads(answer),
                stdout=out.read_text(),
                stderr=err.read_text(),
            )
