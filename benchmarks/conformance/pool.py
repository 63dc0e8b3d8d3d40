"""Many cases in parallel processes that are watched: a case that takes too long or too much memory loses its process.

The processes are forked from one that has imported no framework, so each starts clean. A process that ended (killed
here, or crashed by native code) is replaced; its case is an `error`.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conformance.cases import load_suite
from benchmarks.conformance.verdicts import Target, Verdict, judge

_CASES_PER_PROCESS = 250  # what frameworks cache per compiled function adds up


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one case may take."""

    cpu_s: float = 60.0
    wall_s: float = 300.0  # other work on the machine counts here
    memory_bytes: int = 4 << 30


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A process and the case it is at."""

    process: Any
    connection: Connection
    case: str | None = None
    started: float = 0.0
    cpu_before: float = 0.0
    done: int = 0
    watched: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.watched = psutil.Process(self.process.pid)


def run_all(names: Sequence[str], target: Target, *, jobs: int, limits: Limits | None = None) -> Iterator[Verdict]:
    """Yield the verdict of each case as it comes, in any order."""
    loaded = {"torch", "jax"} & set(sys.modules)
    if loaded:
        raise RuntimeError(f"{', '.join(loaded)} must not be imported in the process that forks")
    limits = limits or Limits()
    waiting = list(reversed(names))
    workers = [_start(target) for _ in range(min(jobs, len(names)))]
    try:
        for worker in workers:
            _give(worker, waiting)
        while any(worker.case is not None for worker in workers):
            busy = {worker.connection: at for at, worker in enumerate(workers) if worker.case is not None}
            for connection in wait(list(busy), timeout=0.1):
                at = busy[connection]  # type: ignore[index]
                yield _take(workers[at], target)
                if not workers[at].process.is_alive() or workers[at].done >= _CASES_PER_PROCESS:
                    workers[at] = _replace(workers[at], target)
                _give(workers[at], waiting)
            for at, worker in enumerate(workers):
                problem = _overrun(worker, limits)
                if problem is not None and worker.case is not None:
                    yield Verdict(case=worker.case, target=target, category="error", reason=problem)
                    workers[at] = _replace(worker, target)
                    _give(workers[at], waiting)
    finally:
        for worker in workers:
            _stop(worker)


def _start(target: Target) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, target), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, connection=ours)


def _give(worker: _Worker, waiting: list[str]) -> None:
    worker.case = waiting.pop() if waiting else None
    worker.started = time.monotonic()
    worker.cpu_before = _cpu_seconds(worker)
    if worker.case is not None:
        worker.connection.send(worker.case)


def _take(worker: _Worker, target: Target) -> Verdict:
    assert worker.case is not None
    worker.done += 1
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(10)
        return Verdict(case=worker.case, target=target, category="error", reason=_ending(worker.process.exitcode))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with status {code}"


def _overrun(worker: _Worker, limits: Limits) -> str | None:
    try:
        if _cpu_seconds(worker) - worker.cpu_before > limits.cpu_s:
            return f"took more than {limits.cpu_s:g} s of CPU"
        if time.monotonic() - worker.started > limits.wall_s:
            return f"took more than {limits.wall_s:g} s"
        if worker.watched.memory_info().rss > limits.memory_bytes:
            return f"took more than {limits.memory_bytes >> 20} MiB of memory"
    except psutil.NoSuchProcess:
        return None  # its connection says how it ended
    return None


def _cpu_seconds(worker: _Worker) -> float:
    try:
        times = worker.watched.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _replace(worker: _Worker, target: Target) -> _Worker:
    _stop(worker)
    return _start(target)


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _serve(connection: Connection, target: Target) -> None:
    """Answer names of cases with verdicts until the other side is gone. Runs in a process of its own."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }
    hard = 4 * Limits.memory_bytes  # type: ignore[operator]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # what a look ten times a second would miss
    silence = os.open(Path(os.devnull), os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    suite = load_suite()
    while True:
        try:
            name = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(judge(suite.read(name), target))
