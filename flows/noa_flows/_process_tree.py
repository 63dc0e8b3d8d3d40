"""Which processes belong to something we started, read from `/proc`.

A process is named by pid and start time (clock ticks since boot, which no clock change moves), so a reused pid is never
taken for ours. `find_members` finds a tree by four signs: the recorded leader, its descendants, its session, and the
marker that every process inherits in its environment; the last finds those that forked twice and left the session too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER_VARIABLE = "NOA_SERVICE_ID"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process for good: `start_ticks` is field 22 of `/proc/<pid>/stat`, in clock ticks since boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stat:
    id: ProcessId
    parent: int
    session: int
    is_zombie: bool
    rss_pages: int


def boot_id() -> str:
    """Return the kernel's name for this boot; pids and ticks of another boot mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """Return who has this pid now, or None if nobody living has it (a zombie is dead)."""
    stat = _read_stat(pid)
    return None if stat is None or stat.is_zombie else stat.id


def is_alive(process: ProcessId) -> bool:
    """Tell whether this very process still runs."""
    return identify(process.pid) == process


def find_members(marker: str, *, leader: ProcessId | None, log_file: Path | None = None) -> list[ProcessId]:
    """Return every living process of one tree, ourselves excepted.

    `marker` is the value of NOA_SERVICE_ID given to it; `marker/...` belongs to it too. A process of the leader's
    session counts while the leader lives; after that the session's number could be somebody else's, so such a process
    must also write to `log_file`.
    """
    table = {stat.id.pid: stat for stat in _read_all() if not stat.is_zombie and stat.id.pid != os.getpid()}
    needle = f"{MARKER_VARIABLE}={marker}".encode()
    is_led = leader is not None and leader.pid in table and table[leader.pid].id == leader
    session = None if leader is None or (leader.pid in table and not is_led) else leader.pid
    members: set[int] = set()
    for pid, stat in table.items():
        is_in_session = stat.session == session and (is_led or (log_file is not None and _writes_to(pid, log_file)))
        if is_in_session or _carries(pid, needle):
            members.add(pid)
    _add_descendants(members, table)
    return sorted((table[pid].id for pid in members), key=lambda item: item.pid)


def find_tree(root: ProcessId) -> list[ProcessId]:
    """Return a living process and its living descendants; none if it has gone."""
    table = {stat.id.pid: stat for stat in _read_all() if not stat.is_zombie}
    if root.pid not in table or table[root.pid].id != root:
        return []
    members = {root.pid}
    _add_descendants(members, table)
    return [table[pid].id for pid in members]


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone. A pid that was reused meanwhile is never hit."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):  # checked after the handle was opened: the handle cannot change hands
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def memory_bytes(processes: Iterable[ProcessId]) -> int:
    """Return the resident memory of these processes together; a page they share counts once for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    stats = (_read_stat(process.pid) for process in processes)
    return sum(stat.rss_pages * page for stat in stats if stat is not None)


def describe(process: ProcessId) -> str:
    """Return e.g. `4711 (python -m uvicorn)` for messages."""
    try:
        words = (_PROC / str(process.pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    text = b" ".join(words[:4]).decode(errors="replace")
    return f"{process.pid} ({text})" if text else str(process.pid)


def _read_all() -> list[_Stat]:
    pids = (int(name) for name in os.listdir(_PROC) if name.isdecimal())  # noqa: PTH208  # polled; pathlib is slow here
    return [stat for stat in map(_read_stat, pids) if stat is not None]


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the name in parentheses may hold anything
    if len(fields) < 22:
        return None
    return _Stat(
        id=ProcessId(pid=pid, start_ticks=int(fields[19])),
        parent=int(fields[1]),
        session=int(fields[3]),
        is_zombie=fields[0] in (b"Z", b"X"),
        rss_pages=int(fields[21]),
    )


def _carries(pid: int, needle: bytes) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    if needle not in environment:
        return False
    return any(entry == needle or entry.startswith(needle + b"/") for entry in environment.split(b"\0"))


def _writes_to(pid: int, file: Path) -> bool:
    for descriptor in ("1", "2"):
        try:
            if (_PROC / str(pid) / "fd" / descriptor).samefile(file):
                return True
        except OSError:
            continue
    return False


def _add_descendants(members: set[int], table: dict[int, _Stat]) -> None:
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent, []).append(pid)
    todo = list(members)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in members:
                members.add(child)
                todo.append(child)
