"""A server of the run as the tree of its processes: pinned, measured, frozen while others are measured, ended.

All servers of a case are up at once, because starting one takes up to half a minute; those whose turn it is not are
stopped with SIGSTOP, so that their timers and pollers take nothing of the core.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_LOG_TAIL_BYTES = 4000


class PeerFailedError(Exception):
    """A server did not start or answers wrongly; the message is the reason that the table shows."""


@contextmanager
def run_on(cores: frozenset[int]) -> Iterator[None]:
    """Let this thread, and what it starts meanwhile, run on `cores` only; empty: leave it."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server. `start_s` is the time from its start to its first answer."""

    name: str
    pid: int
    port: int
    grpc_port: int | None = None
    log: Path | None = None
    start_s: float = 0.0
    is_freezable: bool = True
    end: Callable[[], object] = lambda: None  # a gentler way to end it than SIGTERM
    reap: Callable[[], object] = lambda: None
    _counted: dict[tuple[int, float], float] = field(default_factory=dict[tuple[int, float], float])

    def processes(self) -> list[psutil.Process]:
        """Return the process and all below it that are alive."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """Return the CPU time of the tree so far, seconds; that of processes that have ended included."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                times = process.cpu_times()
                self._counted[process.pid, process.create_time()] = times.user + times.system
        return sum(self._counted.values())

    def freeze(self) -> None:
        """Stop the tree until `thaw`."""
        if self.is_freezable:
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the tree run again."""
        if self.is_freezable:
            self._signal(signal.SIGCONT)

    def worker(self) -> psutil.Process:
        """Return the process of the tree that used the most CPU time: the one that answers."""
        return max(self.processes(), key=lambda one: sum(one.cpu_times()[:2]))

    def stop(self) -> None:
        """End the tree and wait for it."""
        self.thaw()
        tree = self.processes()
        self.end()
        for process in tree[:1]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=15)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)
        self.reap()

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process, bytes: shared pages are counted by share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no Pss in /proc/{pid}/smaps_rollup")


def free_port() -> int:
    """Return a port of loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def exchange(port: int, request: bytes, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Send one request on a connection of its own; returns status and body. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(request)
        data = b""
        while True:
            chunk = link.recv(1 << 16)
            data += chunk
            head, found, body = data.partition(b"\r\n\r\n")
            if found:
                lines = head.lower().split(b"\r\n")
                sizes = [line.split(b":")[1] for line in lines if line.startswith(b"content-length:")]
                is_whole = len(body) >= int(sizes[0]) if sizes else body.endswith(b"0\r\n\r\n")
                if is_whole or not chunk:
                    return int(head.split(b" ")[1]), body
            elif not chunk:
                raise ConnectionError("the connection was closed before the answer")


def log_tail(path: Path | None, lines: int = 1) -> str:
    """Return the last lines of a log that say something."""
    if path is None or not path.exists():
        return ""
    text = path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def wait_until(condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.02) -> bool:
    """Poll a condition; tells whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
