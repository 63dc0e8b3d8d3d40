"""What answers requests now: every endpoint of every server of a project, those of `noa serve` included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from noa.settings import EndpointSettings, Settings
from noa_flows._process_tree import find_tree, identify, memory_bytes
from noa_flows.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint of a server now. `version` is the number that answers, None if none does.

    `detail` says what keeps another from answering, "" if nothing: no version yet, or one that was refused.
    """

    name: str
    model: str
    format: str
    version: int | None
    digest: str | None
    state: str
    detail: str


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
    silent: Mapping[str, object] = {"state": "no answer" if report is None else "unknown"}
    return tuple(_endpoint(name, rule, (report or {}).get(name, silent)) for name, rule in rules.items())


def _endpoint(name: str, rule: EndpointSettings, row: Mapping[str, object]) -> EndpointStatus:
    version, digest, refused = row.get("version"), row.get("digest"), row.get("refused")
    detail = str(row.get("waiting_for", ""))
    if isinstance(refused, dict):
        facts = cast("dict[str, object]", refused)
        detail = f"version {facts.get('version')} is refused: {facts.get('reason')}"
    return EndpointStatus(
        name=name,
        model=rule.model,
        format=rule.format,
        version=version if isinstance(version, int) else None,
        digest=digest if isinstance(digest, str) else None,
        state=str(row.get("state", "unknown")),
        detail=detail,
    )


def _memory_of(pid: int) -> int:
    process = identify(pid)
    return 0 if process is None else memory_bytes(find_tree(process))
