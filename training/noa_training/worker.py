"""Run one job in a process of its own: `python -m noa_training.worker REQUEST.json`.

Events go to standard output, one JSON line each; whatever else is printed goes to standard error. The process dies with
the thread that started it (PR_SET_PDEATHSIG). SIGTERM and SIGINT write a checkpoint and end with 143. Exit codes: 0
finished, 143 stopped, 1 failed (a `failed` event says why), 2 the request is not readable. What the recipe leaves
behind (threads, processes) holds the end up for some seconds only; then it is named in a `warning` event and left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from noa.errors import NoaError
from noa_training.events import Failed, JobEvent, Warned
from noa_training.leaving import leave_within
from noa_training.requests import WorkerRequest

EXIT_CANCELLED = 143
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the job of the request file and return the exit code."""
    events = _take_stdout()
    if len(arguments) != 1:
        print("usage: python -m noa_training.worker REQUEST.json", file=sys.stderr)
        return 2
    try:
        worker = WorkerRequest.from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, NoaError) as exc:
        print(f"the request is not readable: {exc}", file=sys.stderr)
        return 2
    _limit_threads(worker.request.threads or worker.settings.threads)
    _die_with_parent(worker.parent_pid)
    return _run(worker, events)


def _run(worker: WorkerRequest, events: TextIO) -> int:
    # Only now, when the thread limits are set: this imports numpy.
    from noa_training.jobs import run_job
    from noa_training.loop import JobCancelledError

    stop = _StopFlag()
    has_failed_event = False
    job_id = ""

    def send(event: JobEvent) -> None:
        nonlocal has_failed_event, job_id
        has_failed_event = has_failed_event or isinstance(event, Failed)
        job_id = event.job_id
        events.write(event.to_json() + "\n")
        events.flush()

    def leave(code: int) -> int:
        """The result is written and the run is closed: what the recipe has left must not hold the job up."""
        leave_within(
            code, warn=lambda text: send(Warned(job_id=job_id, at=time.time(), subject="recipe", message=text))
        )
        return code

    try:
        run_job(worker.request, worker.settings, registry=worker.registry, on_event=send, should_stop=stop.is_set)
    except JobCancelledError:
        return leave(EXIT_CANCELLED)
    except NoaError as exc:
        if not has_failed_event:  # refused before the job had a folder
            send(Failed(job_id="", at=time.time(), state="failed", message=str(exc), error=exc.to_dict()))
        with suppress(OSError, ValueError):  # the recipe may have closed it
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return leave(1)
    except BaseException:
        leave(1)
        raise
    return leave(0)


class _StopFlag:
    """Set by SIGTERM or SIGINT; the loop asks for it between two steps."""

    def __init__(self) -> None:
        self._is_set = False
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, self._set)

    def is_set(self) -> bool:
        return self._is_set

    def _set(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._is_set = True


def _take_stdout() -> TextIO:
    """Keep standard output for events; prints of the user's code go to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _limit_threads(threads: int) -> None:
    """Set what the numeric libraries read once, when they are imported."""
    # Threads that wait by spinning take the other processes' cores: several times slower on a busy machine, no faster
    # on a quiet one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not threads:
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC"):
        os.environ[name] = str(threads)
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def _die_with_parent(parent_pid: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid and os.getppid() != parent_pid:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
