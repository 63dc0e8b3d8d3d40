"""The load generator as a function: compiles `load.c` once, runs it on its own core, returns what it found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.processes import run_on
from noa.errors import NoaError

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Latencies of one kind of answer, seconds."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    p999_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What one burst found. `ok` counts answers of status 200, right or `wrong`; `checked` of them were compared."""

    elapsed_s: float
    ok: int
    refused: int
    other: int
    wrong: int
    checked: int
    broken: int
    unanswered: int
    late: int
    drain_s: float
    answered: Times
    refusals: Times
    statuses: Mapping[str, int]
    timeline: tuple[int, ...]
    first_wrong: str

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.ok / self.elapsed_s

    @property
    def fault(self) -> str | None:
        """Why the burst does not count, None if every answer was there and right."""
        if self.wrong:
            return f"{self.wrong} of {self.checked} checked answers are wrong: {self.first_wrong[:120]}"
        if self.other or self.refused:
            return f"answers with status {', '.join(sorted(set(self.statuses) - {'200'}))}"
        if self.broken or self.unanswered:
            return f"{self.broken} connections broke and {self.unanswered} requests got no answer"
        return None if self.ok else "no answer at all"


def build(cache: Path) -> Path:
    """Compile the load generator unless it is there; returns the program.

    Raises:
        NoaError: this machine has no C compiler.
    """
    program = cache / f"load-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoaError(
            "the load generator needs a C compiler (`cc`)", remedy="Run `make bench-serving`, or install gcc"
        )
    cache.mkdir(parents=True, exist_ok=True)
    half = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-o", str(half), str(SOURCE), "-lm"], check=True)
    half.replace(program)
    return program


def run_load(
    program: Path,
    plan: Path,
    *,
    port: int,
    connections: int,
    seconds: float,
    rate: float | None = None,
    check_every: int = 1,
    backs_off: bool = False,
    cores: frozenset[int] = frozenset(),
) -> Loaded:
    """Send the plan's requests for `seconds`; `rate` per second, or each as soon as the one before is answered.

    `cores` are those that the generator may use; empty: any.
    """
    command = [str(program), str(port), str(connections), str(seconds), str(plan)]
    command += [str(rate or 0), str(check_every), str(int(backs_off))]
    with run_on(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise RuntimeError(f"the load generator failed: {errors.strip() or process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return Loaded(
        **{
            **found,
            "answered": Times(**found["answered"]),
            "refusals": Times(**found["refusals"]),
            "timeline": tuple(found["timeline"]),
        }
    )
