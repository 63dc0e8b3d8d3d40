"""How a service that runs was started, so that it can be started so again when what should replace it does not start.

A record holds no environment, as that may hold secrets: it is read from the process while it lives. A serving process
removes the request that it was launched with, so its settings are read instead and written into a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from noa.settings import Settings
from noa_flows._process_tree import MARKER_VARIABLE
from noa_flows._service_plans import plan_services
from noa_flows.supervisor import Command, ServiceRecord, Supervisor

_PROC = Path("/proc")


def remember(settings: Settings, supervisor: Supervisor, record: ServiceRecord) -> Callable[[], Command] | None:
    """Return what makes the command that starts this service as it was started, None if it does not run or tell."""
    if not supervisor.is_running(record):
        return None
    if record.name == "serving":
        return _of_serving(settings, supervisor, record)
    command = _of_process(record, grace_s=settings.flows.stop_timeout_s)
    return None if command is None else lambda: command


def _of_serving(settings: Settings, supervisor: Supervisor, record: ServiceRecord) -> Callable[[], Command] | None:
    from noa_serving import running_servers

    pids = {process.pid for process in supervisor.members(record)}
    former = next((one for one in running_servers(settings.state_dir) if one.address.pid in pids), None)
    if former is None:
        return None
    plan = plan_services(former.settings)["serving"]
    return lambda: replace(plan.build(record.address, {}), settings_digest=record.settings_digest)


def _of_process(record: ServiceRecord, *, grace_s: float) -> Command | None:
    if record.process is None:
        return None
    place = _PROC / str(record.process.pid)
    try:
        entries = [os.fsdecode(entry) for entry in (place / "environ").read_bytes().split(b"\0")]
        folder = (place / "cwd").readlink()
    except OSError:
        return None
    environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    environment.pop(MARKER_VARIABLE, None)
    return Command(
        name=record.name,
        arguments=record.command,
        environment=environment,
        folder=folder,
        log_file=record.log_file,
        address=record.address,
        grace_s=grace_s,
        settings_digest=record.settings_digest,
    )
