"""Many cases in parallel processes that are watched: a case that takes too long or too much memory loses its process.

The processes are forked from one that has imported no framework, so each starts clean. A process that ended (killed
here, or crashed by native code) is replaced; its case is an `error`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import psutil

from benchmarks.conformance.cases import load_suite
from benchmarks.conformance.verdicts import Target, Verdict, judge

_CASES_PER_PROCESS = 250  # what frameworks cache per compiled function adds up
_HARD_FACTOR = 4  # the process's own bound on memory, against what a look ten times a second would miss

Judge: TypeAlias = Callable[[str, Target], Verdict]


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
    inherited_bytes: int = field(init=False)  # what it shares with the process that forked it

    def __post_init__(self) -> None:
        self.watched = psutil.Process(self.process.pid)
        self.inherited_bytes = psutil.Process().memory_info().rss


def judge_by_name(name: str, target: Target) -> Verdict:
    """Judge a case of the suite."""
    return judge(load_suite().read(name), target)


def run_all(
    names: Sequence[str], target: Target, *, jobs: int, limits: Limits | None = None, judge_case: Judge = judge_by_name
) -> Iterator[Verdict]:
    """Yield the verdict of each case as it comes, in any order."""
    loaded = {"torch", "jax"} & set(sys.modules)
    if loaded and judge_case is judge_by_name:
        raise RuntimeError(f"{', '.join(loaded)} must not be imported in the process that forks")
    start = functools.partial(_start, target, limits or Limits(), judge_case)
    waiting = list(reversed(names))
    workers = [start() for _ in range(min(jobs, len(names)))]
    try:
        for worker in workers:
            _give(worker, waiting)
        while any(worker.case is not None for worker in workers):
            wait([worker.connection for worker in workers if worker.case is not None], timeout=0.1)
            for at, worker in enumerate(workers):
                if worker.case is None:
                    continue
                verdict, is_alive = _look_at(worker, target, limits or Limits())
                if verdict is None:
                    continue
                yield verdict
                if not is_alive or worker.done >= _CASES_PER_PROCESS:
                    _stop(worker)
                    workers[at] = start()
                _give(workers[at], waiting)
    finally:
        for worker in workers:
            _stop(worker)


def _start(target: Target, limits: Limits, judge_case: Judge) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, target, limits, judge_case), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, connection=ours)


def _give(worker: _Worker, waiting: list[str]) -> None:
    worker.case = waiting.pop() if waiting else None
    worker.started = time.monotonic()
    worker.cpu_before = _cpu_seconds(worker)
    if worker.case is not None:
        worker.connection.send(worker.case)


def _look_at(worker: _Worker, target: Target, limits: Limits) -> tuple[Verdict | None, bool]:
    """Return the verdict of the case that a process is at, if there is one by now, and whether the process lives on."""
    assert worker.case is not None
    failed = functools.partial(Verdict, case=worker.case, target=target, category="error")
    if worker.connection.poll():
        worker.done += 1
        try:
            return worker.connection.recv(), True
        except (EOFError, ConnectionResetError):
            worker.process.join(10)
            return failed(reason=_ending(worker.process.exitcode)), False
    problem = _overrun(worker, limits)
    return (None, True) if problem is None else (failed(reason=problem), False)


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
        if worker.watched.memory_info().rss - worker.inherited_bytes > limits.memory_bytes:
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


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _serve(connection: Connection, target: Target, limits: Limits, judge_case: Judge) -> None:
    """Answer names of cases with verdicts until the other side is gone. Runs in a process of its own."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }
    bound = psutil.Process().memory_info().data + _HARD_FACTOR * limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(judge_case(name, target))
