"""The tests' side of `fault_runner.py`: a process with one registry, in which operations are hit by faults."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from noa.settings import RegistrySettings

RUNNER = Path(__file__).with_name("registry") / "fault_runner.py"
EVERY_POINT = bool(os.environ.get("NOA_TEST_EVERY_POINT"))
_ROOM_BYTES = 256 << 20


class FaultRunner:
    """The process. `command` goes in front of its own command line; `empty` is a SQLite file to begin with."""

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        state: Path,
        scratch: Path,
        empty: Path | None = None,
        command: Sequence[str] = (),
    ) -> None:
        request = {"state": str(state), "inputs": str(scratch / "inputs"), "settings": settings.model_dump(mode="json")}
        if empty is not None:
            request["empty"] = str(empty)
        self._log = (scratch / "log").open("w+")
        self._process = subprocess.Popen(
            [*command, sys.executable, str(RUNNER), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def kill(self, operation: str, *, sample: int | None) -> dict[str, Any]:
        """Return the points of an operation, and what was wrong after it was killed at `sample` of them (None: all)."""
        order = {"fault": "kill", "operation": operation, "sample": sample, "seed": random.randrange(1 << 16)}
        answer = self._ask(order)
        print(f"{operation}: killed at {answer['killed']} of {len(answer['labels'])} points, seed {order['seed']}")
        return answer

    def fill(self, operation: str, **how: int) -> dict[str, Any]:
        """Return how an operation ended with `free` bytes on the disk, or with a `limit` on the size of files."""
        return self._ask({"fault": "fill", "operation": operation, **how})

    def close(self) -> None:
        cast("IO[str]", self._process.stdin).close()
        self._process.wait(60)
        cast("IO[str]", self._process.stdout).close()
        self._log.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        line = ""
        if self._process.poll() is None:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            self._process.wait(60)
            self._log.seek(0)
            raise AssertionError(f"the runner ended: {self._log.read()[-8000:]}")
        return cast("dict[str, Any]", json.loads(line))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder in memory, where there is room: no fault here asks how fast the disk is, and there are many."""
    memory = Path("/dev/shm")
    is_roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="noa-faults-", dir=memory if is_roomy else None) as folder:
        yield Path(folder)
