"""Run one command in the foreground, as a tree that cannot outlive us.

`run_child` streams the command's lines, stops the whole tree when it is cancelled or when this thread is interrupted,
and returns only when the tree is gone. Should this process be killed with -9, the warden between us ends the tree.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from noa.errors import ServiceError
from noa_flows._process_tree import MARKER_VARIABLE, ProcessId, describe, find_members, identify, send_signal
from noa_flows.supervisor import warden_command

_POLL_S = 0.1
_SCAN_S = 0.02
_KILL_WAIT_S = 10.0
_TAIL_LINES = 40
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """How a command ended. `exit_code` is negative for a signal; `error_tail` holds its last lines on stderr."""

    exit_code: int
    was_cancelled: bool
    error_tail: str


def run_child(
    arguments: Sequence[str],
    *,
    on_line: Callable[[str], None],
    environment: Mapping[str, str],
    folder: Path,
    cancel: threading.Event | None = None,
    grace_s: float = 10.0,
    on_error_line: Callable[[str], None] | None = None,
) -> ChildResult:
    """Run a command until its whole tree has ended; every line of its stdout goes to `on_line` in this thread.

    Those of its stderr go to `on_error_line`, in a thread that reads them, as they come.

    `cancel`, when set by another thread, stops it: TERM to the tree, KILL after `grace_s`. An exception in this thread
    (KeyboardInterrupt, one raised by `on_line` or by a signal handler) stops it likewise and is raised again. The
    `environment` is given whole; a service's marker in it is extended, so that the service's stop finds the job too.

    Raises:
        ServiceError: the system refused to start a process, or a process of the tree cannot be ended.
    """
    outer = environment.get(MARKER_VARIABLE)
    marker = f"{outer}/{uuid.uuid4().hex}" if outer else uuid.uuid4().hex
    process = spawn_tree(
        arguments, environment={**environment, MARKER_VARIABLE: marker}, folder=folder, grace_s=grace_s
    )
    leader = identify(process.pid)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    errors: deque[str] = deque(maxlen=_TAIL_LINES)
    keep = keep_in(errors, on_error_line)
    readers = [
        threading.Thread(target=forward_lines, args=(process.stdout, lines.put), name="noa-child-stdout", daemon=True),
        threading.Thread(target=forward_lines, args=(process.stderr, keep), name="noa-child-stderr", daemon=True),
    ]
    for reader in readers:
        reader.start()
    has_ended = False
    try:
        has_ended = _pump(process, lines, on_line, cancel)
    finally:
        end_tree(process, marker, leader, grace_s=grace_s, must_stop=not has_ended)
        for reader in readers:
            reader.join(timeout=_KILL_WAIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return ChildResult(exit_code=process.returncode, was_cancelled=not has_ended, error_tail="\n".join(errors))


def spawn_tree(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    grace_s: float,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    """Start a command under a warden, with pipes for what it says.

    Raises:
        ServiceError: the system refused.
    """
    try:
        return subprocess.Popen(
            warden_command(arguments, parent=str(os.getpid()), grace_s=grace_s),
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as exc:
        reason = os.strerror(exc.errno or 0).lower()
        raise ServiceError(f"cannot start `{arguments[0]}`: {reason}", where=str(folder)) from exc


def _pump(
    process: subprocess.Popen[str],
    lines: queue.SimpleQueue[str | None],
    on_line: Callable[[str], None],
    cancel: threading.Event | None,
) -> bool:
    """Hand on lines until output and process have ended; False if `cancel` was set before."""
    is_open = True
    while is_open or process.poll() is None:
        if cancel is not None and cancel.is_set():
            return False
        with suppress(queue.Empty):
            line = lines.get(timeout=_POLL_S if is_open else _SCAN_S)
            is_open = line is not None
            if line is not None:
                on_line(line)
    return True


def end_tree(
    process: subprocess.Popen[str],
    marker: str,
    leader: ProcessId | None,
    *,
    grace_s: float,
    must_stop: bool,
) -> None:
    """Wait for the warden, which is the last of its tree to go, and kill what is left if it cannot do that itself."""
    if must_stop and leader is not None:
        send_signal(leader, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_s + max(1.0, 0.2 * grace_s) if must_stop else None)
    give_up_at = time.monotonic() + _KILL_WAIT_S
    while members := find_members(marker, leader=leader):
        if time.monotonic() > give_up_at:
            raise ServiceError(
                "a job's processes cannot be ended",
                received=", ".join(map(describe, members)),
                remedy="End them by hand",
            )
        for member in members:
            send_signal(member, signal.SIGKILL)
        process.poll()
        time.sleep(_SCAN_S)
    process.wait()


def forward_lines(stream: IO[str] | None, take: Callable[[str | None], None], *, longest: int = _LONGEST_LINE) -> None:
    """Hand on the lines of a stream, and None at its end. A line beyond `longest` characters comes in pieces."""
    if stream is not None:
        while line := stream.readline(longest):
            take(line.rstrip("\n"))
    take(None)


def keep_in(tail: deque[str], also: Callable[[str], None] | None = None) -> Callable[[str | None], None]:
    """Return what appends lines to `tail`, and hands them on to `also`."""

    def keep(line: str | None) -> None:
        if line is not None:
            tail.append(line)
            if also is not None:
                also(line)

    return keep
