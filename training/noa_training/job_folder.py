"""The folder of a job: who works in it, and in which state it is.

    <jobs_dir>/<job id>/lock                 held (flock) while a process runs the job; holds its pid
    <jobs_dir>/<job id>/attempt-1/           one execution, resumed until it is finished
        state.json   events.jsonl   run.json   result.json   checkpoints/   native/

The state is truthful: `read_state` reports a job whose process is gone as interrupted, whatever the file says.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast

import psutil

from noa.atomic_write import translate_disk_errors, write_file
from noa.digests import digest_json
from noa.errors import ConflictError, NotFoundError
from noa_training.model_specs import BackendName

StateName: TypeAlias = Literal["running", "interrupted", "finished", "failed", "cancelled"]
_STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """The state of one attempt. `pid` and `process_started` (seconds since the epoch) name the process that wrote
    it."""

    state: StateName
    pid: int
    process_started: float
    updated_at: float
    message: str = ""


def job_id_of(*, name: str, backend: BackendName, source_digest: str, description: dict[str, object], seed: int) -> str:
    """Return the job's name, the same for the same model, recipe source, backend, settings and seed."""
    key = {"name": name, "backend": backend, "source": source_digest, "recipe": description, "seed": seed}
    return f"{name}-{backend}-{digest_json(key).removeprefix('sha256:')[:12]}"


def read_state(folder: Path) -> JobState:
    """Return the state of an attempt's folder; `running` only while its process lives.

    Raises:
        NotFoundError: there is no job in this folder.
    """
    path = folder / _STATE_FILE
    try:
        state = JobState(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise NotFoundError("no job here", where=str(folder), expected=f"a readable {_STATE_FILE}") from exc
    if state.state == "running" and not _is_alive(state):
        return replace(state, state="interrupted", message=f"process {state.pid} is gone")
    return state


def write_state(folder: Path, state: StateName, *, now: float, message: str = "") -> None:
    """Record the state of this process's attempt, atomically.

    Raises:
        StorageError: the disk refused.
    """
    process = psutil.Process()
    record = JobState(
        state=state, pid=process.pid, process_started=process.create_time(), updated_at=now, message=message
    )
    write_file(folder / _STATE_FILE, json.dumps(asdict(record)))


def current_attempt(job: Path) -> int:
    """Return the number of the attempt to work on: the newest, or the next one if that is finished."""
    numbers = [int(match[1]) for path in job.glob("attempt-*") if (match := re.fullmatch(r"attempt-(\d+)", path.name))]
    newest = max(numbers, default=1)
    try:
        return newest + 1 if read_state(attempt_folder(job, newest)).state == "finished" else newest
    except NotFoundError:
        return newest


def attempt_folder(job: Path, attempt: int) -> Path:
    """Return the folder of an attempt."""
    return job / f"attempt-{attempt}"


class JobLock:
    """Exclusive right to run a job; given back by the kernel when the process dies.

    Raises:
        ConflictError: another process runs the job; names its pid.
        StorageError: the folder cannot be written.
    """

    def __init__(self, job: Path) -> None:
        path = job / "lock"
        with translate_disk_errors(path):
            job.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            pid = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise ConflictError(
                f"job `{job.name}` is already running in process {pid}",
                where=str(job),
                remedy="Wait for it, or stop it; its progress is kept",
                pid=cast("object", int(pid) if pid.isdecimal() else None),
            ) from exc
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    def __enter__(self) -> JobLock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def _is_alive(state: JobState) -> bool:
    try:
        process = psutil.Process(state.pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - state.process_started) < 1.0
    except psutil.Error:
        return False
