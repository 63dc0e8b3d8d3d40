"""Start, find and stop the processes of a project, and prove that what was stopped is gone.

Each service is a process tree under a warden (`_warden.py`) in a session of its own, with a record in
`<state_dir>/services/<name>.json` that is written *before* the process starts: whoever is killed in between, the marker
in the record still finds the process. A record is removed only when no process of its tree is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import NotFoundError, ServiceError
from noa_flows import _warden
from noa_flows._process_tree import (
    MARKER_VARIABLE,
    ProcessId,
    boot_id,
    describe,
    find_members,
    identify,
    is_alive,
    send_signal,
)

_POLL_S = 0.05
_KILL_WAIT_S = 10.0
_LOG_KEEP_BYTES = 4 << 20
_started: dict[int, subprocess.Popen[bytes]] = {}
"""Our own children, kept so that their end is collected; by pid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """What is known about one started service. `process` is None from the moment before its start until after it.

    `log_start` is the size that the log had before, bytes: what comes after it is by this service alone.
    `settings_digest` is that of what it was given of the settings, "" if nobody said.
    """

    name: str
    marker: str
    boot: str
    command: tuple[str, ...]
    log_file: Path
    address: str | None
    started_at: datetime
    process: ProcessId | None = None
    log_start: int = 0
    settings_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start. `environment` is the whole environment; `grace_s` is the time from TERM to KILL, seconds."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log_file: Path
    address: str | None = None
    grace_s: float = 10.0
    settings_digest: str = ""


class Supervisor:
    """The services of one project, by name. `state_dir` is the project's own folder."""

    def __init__(self, state_dir: Path) -> None:
        self._records = state_dir / "services"

    def start(self, command: Command) -> ServiceRecord:
        """Start a service that outlives this process; returns at once, the service may not be ready yet.

        Raises:
            StorageError: the record or the log cannot be written; nothing was started.
            ServiceError: the system refused to start a process.
        """
        with translate_disk_errors(command.log_file):
            command.log_file.parent.mkdir(parents=True, exist_ok=True)
            _trim(command.log_file)
            log = command.log_file.open("ab")
        with log:
            record = ServiceRecord(
                name=command.name,
                marker=uuid.uuid4().hex,
                boot=boot_id(),
                command=command.arguments,
                log_file=command.log_file,
                address=command.address,
                started_at=datetime.now(UTC),
                log_start=log.tell(),
                settings_digest=command.settings_digest,
            )
            self._write(record)
            process = _spawn(command, record.marker, log.fileno())
        _started[process.pid] = process
        record = replace(record, process=identify(process.pid))
        self._write(record)
        return record

    def find(self, name: str) -> ServiceRecord | None:
        """Return the record of a service, or None if it was never started or was stopped.

        Raises:
            ServiceError: the record cannot be read; names the file.
        """
        path = self._path(name)
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            return _from_json(text)
        except (ValueError, KeyError, TypeError) as exc:
            raise ServiceError(
                f"the record of service `{name}` is not readable",
                where=str(path),
                remedy="Look for its process in `ps`, end it, and delete this file",
            ) from exc

    def names(self) -> list[str]:
        """Return the names of all services that have a record, sorted."""
        return sorted(path.stem for path in self._records.glob("*.json"))

    def rename(self, name: str, new_name: str) -> None:
        """Give the record of a service another name, in place of the record that has it; its processes go on."""
        record = self.find(name)
        if record is None:
            raise NotFoundError(f"service `{name}` has no record")
        self._write(replace(record, name=new_name))  # for a moment both name the same tree, and stopping both is fine
        self._path(name).unlink(missing_ok=True)

    def members(self, record: ServiceRecord) -> list[ProcessId]:
        """Return every living process of a service; none if it was started before the last boot."""
        _collect()
        if record.boot != boot_id():
            return []
        return find_members(record.marker, leader=record.process, log_file=record.log_file)

    def is_running(self, record: ServiceRecord) -> bool:
        """Tell whether the service's own process still runs (its helpers may live on when it does not)."""
        _collect()
        return record.boot == boot_id() and record.process is not None and is_alive(record.process)

    def exit_code(self, record: ServiceRecord) -> int | None:
        """Return how the process ended, negative for a signal; None if it runs or was not started by this process."""
        process = _started.get(record.process.pid) if record.process else None
        return None if process is None else process.poll()

    def stop(self, name: str, *, timeout_s: float) -> bool:
        """Stop a service and prove it gone; False if there was none. TERM first, KILL after `timeout_s`.

        Raises:
            ServiceError: a process cannot be ended; the record stays, the message names the processes.
        """
        record = self.find(name)
        if record is None:
            return False
        left = self._end(record, timeout_s=timeout_s)
        if left:
            raise ServiceError(
                f"service `{name}` did not stop",
                expected=f"no process left after {timeout_s + _KILL_WAIT_S:g} s",
                received=", ".join(map(describe, left)),
                remedy="The processes hang in the kernel or belong to another user; end them, then run `noa down`",
                processes=[process.pid for process in left],
            )
        self._path(name).unlink(missing_ok=True)
        return True

    def log_tail(self, record: ServiceRecord, *, lines: int = 15) -> str:
        """Return the last lines that this service wrote since this start."""
        return read_tail(record.log_file, lines=lines, begin=record.log_start)

    def _end(self, record: ServiceRecord, *, timeout_s: float) -> list[ProcessId]:
        """TERM, wait, KILL, wait; returns what is still there. Gone means that two scans in a row found nobody."""
        members = self.members(record)
        wardens = [member for member in members if member == record.process]
        for member in wardens or members:  # a living warden ends its tree itself, and kills what is left in time
            send_signal(member, signal.SIGTERM)
            send_signal(member, signal.SIGCONT)
        kill_at = time.monotonic() + timeout_s + (_warden_margin_s(timeout_s) if wardens else 0.0)
        give_up_at = kill_at + _KILL_WAIT_S
        empty_scans = 0
        while time.monotonic() < give_up_at:
            members = self.members(record)
            empty_scans = 0 if members else empty_scans + 1
            if empty_scans == 2:
                return []
            if time.monotonic() >= kill_at:
                for member in members:
                    send_signal(member, signal.SIGKILL)
            time.sleep(_POLL_S if members else 0.0)
        return self.members(record)

    def _path(self, name: str) -> Path:
        if "/" in name or name.startswith("."):
            raise NotFoundError(f"`{name}` cannot be a service")
        return self._records / f"{name}.json"

    def _write(self, record: ServiceRecord) -> None:
        write_file(self._path(record.name), _to_json(record), private=True)


def warden_command(arguments: Sequence[str], *, parent: str, grace_s: float, note: bool = False) -> list[str]:
    """Return the command that runs `arguments` under a warden; `parent` is a pid, `0` or `env:NAME`."""
    head = [sys.executable, "-I", "-S", _warden.__file__, parent, f"{grace_s:g}", "1" if note else "0", "--"]
    return [*head, *arguments]


def read_tail(path: Path, *, lines: int, at_most_bytes: int = 64 << 10, begin: int = 0) -> str:
    """Return the last lines of a text file after its byte `begin`, or nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(begin, file.tell() - at_most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _spawn(command: Command, marker: str, log: int) -> subprocess.Popen[bytes]:
    arguments = warden_command(command.arguments, parent="0", grace_s=command.grace_s, note=True)
    try:
        return subprocess.Popen(
            arguments,
            cwd=command.folder,
            env={**command.environment, MARKER_VARIABLE: marker},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    except OSError as exc:
        reason = os.strerror(exc.errno or 0).lower()
        raise ServiceError(f"cannot start service `{command.name}`: {reason}", where=str(command.folder)) from exc


def _collect() -> None:
    for process in _started.values():
        process.poll()


def _warden_margin_s(timeout_s: float) -> float:
    """Time that the warden gets beyond its own grace period for its KILL, before we do it."""
    return max(1.0, 0.2 * timeout_s)


def _trim(log_file: Path) -> None:
    """Keep the newer half of a log that has grown too large."""
    with contextlib.suppress(FileNotFoundError):
        if log_file.stat().st_size > _LOG_KEEP_BYTES:
            write_file(log_file, log_file.read_bytes()[-_LOG_KEEP_BYTES // 2 :])


def _to_json(record: ServiceRecord) -> str:
    table = asdict(record)
    table["log_file"] = str(record.log_file)
    table["started_at"] = record.started_at.isoformat()
    return json.dumps(table, indent=2) + "\n"


def _from_json(text: str) -> ServiceRecord:
    table = cast("dict[str, object]", json.loads(text))
    process = cast("dict[str, int] | None", table["process"])
    address = table["address"]
    return ServiceRecord(
        name=str(table["name"]),
        marker=str(table["marker"]),
        boot=str(table["boot"]),
        command=tuple(map(str, cast("list[object]", table["command"]))),
        log_file=Path(str(table["log_file"])),
        address=None if address is None else str(address),
        started_at=datetime.fromisoformat(str(table["started_at"])),
        process=None
        if process is None
        else ProcessId(pid=int(process["pid"]), start_ticks=int(process["start_ticks"])),
        log_start=int(cast("int", table.get("log_start", 0))),  # records of older releases have none of these
        settings_digest=str(table.get("settings_digest", "")),
    )
