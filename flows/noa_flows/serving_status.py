"""What answers requests now: every endpoint of every server of a project, those of `noa serve` included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from noa.settings import EndpointSettings, Settings
from noa_flows._process_tree import find_tree, identify, memory_bytes
from noa_flows.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint of a server now. `version` is the number that answers, None if none does; `state` says why."""

    name: str
    model: str
    format: str
    version: int | None
    digest: str | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server now. `is_service`: `noa up` started it; the others run in the foreground, by `noa serve`."""

    address: str
    pid: int
    started_at: datetime
    memory_bytes: int
    is_service: bool
    endpoints: tuple[EndpointStatus, ...]


def serving_status(settings: Settings) -> list[ServerStatus]:
    """Return every server of the project that listens now, oldest first; one that was killed is none."""
    from noa_serving import running_servers

    supervisor = Supervisor(settings.state_dir)
    record = supervisor.find("serving")
    ours = {process.pid for process in supervisor.members(record)} if record is not None else set[int]()
    return [
        ServerStatus(
            address=server.address.url,
            pid=server.address.pid,
            started_at=server.started_at,
            memory_bytes=_memory_of(server.address.pid),
            is_service=server.address.pid in ours,
            endpoints=_endpoints(server.settings.endpoints, server.report()),
        )
        for server in running_servers(settings.state_dir)
    ]


def _endpoints(
    rules: Mapping[str, EndpointSettings], report: Mapping[str, Mapping[str, object]] | None
) -> tuple[EndpointStatus, ...]:
    rows = {name: {"state": "no answer"} if report is None else report.get(name, {}) for name in rules}
    return tuple(
        EndpointStatus(
            name=name,
            model=rule.model,
            format=rule.format,
            version=version if isinstance(version := rows[name].get("version"), int) else None,
            digest=digest if isinstance(digest := rows[name].get("digest"), str) else None,
            state=str(rows[name].get("state", "unknown")),
        )
        for name, rule in rules.items()
    )


def _memory_of(pid: int) -> int:
    process = identify(pid)
    return 0 if process is None else memory_bytes(find_tree(process))
