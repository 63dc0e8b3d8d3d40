"""The services of a project: Prefect server, MLflow UI, serving process, worker and webhooks; up, down and status.

`up` starts what is not running and waits until each answers; what fails is stopped, and the rest goes on, see
`_launch.py`. `down` stops what is recorded and proves it gone. Both hold one lock per project; each service's record is
in the supervisor.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import filelock

from noa.atomic_write import translate_disk_errors
from noa.errors import ConflictError, InvalidInputError, NoaError
from noa.settings import Settings
from noa_flows._launch import Launch, OnProgress, ServiceEvent, addresses_of, left_behind, service_of, stop_all
from noa_flows._ports import refuse_shared_ports
from noa_flows._process_tree import memory_bytes
from noa_flows._service_plans import SERVICE_NAMES, ServiceName, ServicePlan, plan_services, require_prefect
from noa_flows._settings_digest import settings_digest
from noa_flows.supervisor import ServiceRecord, Supervisor

State = Literal["running", "unhealthy", "stopped"]
_REMEDIES: Mapping[str, str] = {
    "serving": "Configure an endpoint in `noa.toml`",
    "webhooks": "Configure a webhook in `noa.toml`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service now. `unhealthy`: a process is there but does not answer as it should.

    `detail` says why a service that was started is not running, or what one that runs cannot do yet; `memory_bytes` is
    that of its whole process tree. `has_old_settings`: it was started with other settings than these; `is_wanted`:
    these settings have such a service.
    """

    name: ServiceName
    state: State
    pid: int | None
    address: str | None
    started_at: datetime | None
    log_file: Path
    memory_bytes: int
    detail: str = ""
    has_old_settings: bool = False
    is_wanted: bool = True


def up(
    settings: Settings,
    *,
    services: Sequence[ServiceName] | None = None,
    restart: bool = False,
    on_progress: OnProgress | None = None,
) -> list[ServiceStatus]:
    """Start the project's services (or some of them) and wait until each is healthy. What runs already is kept.

    What runs with other settings than these, or is no longer in them, is kept too, and its status says so; `restart`
    starts anew what these settings have, and stops the rest. Where that fails, what ran goes on or is started again.
    What runs and needs a service that is started here is started anew with it, whether or not it is one of `services`.

    Raises:
        SettingsError: two services would listen on one port.
        ConflictError: a port is in use, or another `up` or `down` of this project does not end.
        ServiceError: a service died or did not answer in `flows.start_timeout_s`; the message has its last log lines.
            It was stopped; the others run, and another call starts what is missing.
        InvalidInputError: a service that this project does not have.
        DependencyMissingError: an extra is not installed.
    """
    require_prefect()
    plans = _choose(plan_services(settings), services)
    refuse_shared_ports(settings, plans)
    supervisor = Supervisor(settings.state_dir)
    report = on_progress or _say_nothing
    with _project_lock(settings, report):
        _clear(settings, supervisor, report)
        names: list[ServiceName] = list(SERVICE_NAMES if services is None else plans) if restart else []
        outdated: list[ServiceName] = [name for name in names if _is_outdated(supervisor.find(name), name, settings)]
        plans = _with_dependents(plans, outdated, settings, supervisor)
        launch = Launch(settings=settings, supervisor=supervisor, report=report)
        for failure in launch.run(plans, outdated=outdated).values():
            raise failure
    shown = [found for found in status(settings) if found.name in plans or services is None]
    return [found for found in shown if found.name in plans or found.has_old_settings]


def down(
    settings: Settings, *, services: Sequence[ServiceName] | None = None, on_progress: OnProgress | None = None
) -> list[ServiceName]:
    """Stop every recorded service and prove it gone; returns which were there. Fine when nothing runs.

    Raises:
        ServiceError: a process cannot be ended; the other services are stopped all the same.
        ConflictError: another `up` or `down` of this project does not end.
    """
    report = on_progress or _say_nothing
    supervisor = Supervisor(settings.state_dir)
    if not settings.state_dir.exists():
        return []
    failures: list[NoaError] = []
    present: list[ServiceName] = []
    wanted: list[ServiceName] = [name for name in SERVICE_NAMES if services is None or name in services]
    with _project_lock(settings, report):
        for name in reversed(wanted):
            try:
                if supervisor.find(name) is not None:
                    present.append(name)
            except NoaError as exc:
                failures.append(exc)
        behind = [name for name in left_behind(supervisor) if service_of(name) in wanted]
        timeout_s = settings.flows.stop_timeout_s
        left = stop_all(supervisor, [*behind, *present], timeout_s=timeout_s, report=report)
    failures += left.values()
    if failures:
        raise failures[0]
    gone = {service_of(name) for name in (*behind, *present)} - {service_of(name) for name in left}
    return [name for name in reversed(wanted) if name in gone]


def status(settings: Settings) -> list[ServiceStatus]:
    """Return every service of the project, started or not, in the order in which they start."""
    supervisor = Supervisor(settings.state_dir)
    plans = plan_services(settings)
    records: dict[ServiceName, ServiceRecord | None] = {name: supervisor.find(name) for name in SERVICE_NAMES}
    addresses = addresses_of(records)
    names: list[ServiceName] = [name for name in SERVICE_NAMES if name in plans or records[name] is not None]
    return [_status_of(name, records[name], plans.get(name), supervisor, addresses, settings) for name in names]


def is_running(settings: Settings, service: ServiceName) -> bool:
    """Tell whether the process of a service runs now; it may not be healthy."""
    supervisor = Supervisor(settings.state_dir)
    record = supervisor.find(service)
    return record is not None and supervisor.is_running(record)


def address_of(settings: Settings, service: ServiceName) -> str | None:
    """Return the address of a service that runs now, or None."""
    supervisor = Supervisor(settings.state_dir)
    record = supervisor.find(service)
    return record.address if record is not None and supervisor.is_running(record) else None


def service_at(settings: Settings, port: int) -> ServiceName | None:
    """Return the service of the project that runs now and listens on a port, or None."""
    for name in SERVICE_NAMES:
        address = address_of(settings, name)
        if address is not None and address.rpartition(":")[2] == str(port):
            return name
    return None


def _choose(
    plans: dict[ServiceName, ServicePlan], services: Sequence[ServiceName] | None
) -> dict[ServiceName, ServicePlan]:
    if services is None:
        return plans
    unknown = [name for name in services if name not in plans]
    if unknown:
        raise InvalidInputError(
            f"this project has no service `{unknown[0]}`",
            expected=", ".join(plans),
            remedy=_REMEDIES.get(unknown[0]),
        )
    needed = {plans[name].needs for name in services}
    return {name: plan for name, plan in plans.items() if name in services or name in needed}


def _with_dependents(
    plans: dict[ServiceName, ServicePlan],
    outdated: Collection[ServiceName],
    settings: Settings,
    supervisor: Supervisor,
) -> dict[ServiceName, ServicePlan]:
    """Return the plans together with those of what runs and needs one of them that will be started."""

    def runs(name: ServiceName) -> bool:
        record = supervisor.find(name)
        return record is not None and supervisor.is_running(record)

    anew = {name for name in plans if name in outdated or not runs(name)}
    everything = plan_services(settings).items()
    return {name: plan for name, plan in everything if name in plans or (plan.needs in anew and runs(name))}


def _status_of(
    name: ServiceName,
    record: ServiceRecord | None,
    plan: ServicePlan | None,
    supervisor: Supervisor,
    addresses: Mapping[ServiceName, str],
    settings: Settings,
) -> ServiceStatus:
    members = [] if record is None else supervisor.members(record)
    state: State = "stopped"
    detail = ""
    if record is not None and supervisor.is_running(record):
        state = "running" if plan is None or plan.is_healthy(record, addresses) else "unhealthy"
        detail = "it does not answer"
        if state == "running":
            detail = "" if plan is None else plan.not_ready(record)
    elif record is not None:
        state = "unhealthy" if members else "stopped"
        detail = "it died; " + supervisor.log_tail(record, lines=1)
    is_there = record is not None and state != "stopped"
    return ServiceStatus(
        name=name,
        state=state,
        pid=record.process.pid if record is not None and record.process is not None and is_there else None,
        address=record.address if record is not None and is_there else None,
        started_at=record.started_at if record is not None and is_there else None,
        log_file=settings.state_dir / "logs" / f"{name}.log",
        memory_bytes=memory_bytes(members),
        detail=detail,
        is_wanted=plan is not None,
        has_old_settings=state != "stopped" and _is_outdated(record, name, settings),
    )


def _is_outdated(record: ServiceRecord | None, name: ServiceName, settings: Settings) -> bool:
    """Tell whether a service was started with other settings; nobody knows it of records of older releases."""
    return record is not None and record.settings_digest not in ("", settings_digest(settings, name))


def _clear(settings: Settings, supervisor: Supervisor, report: OnProgress) -> None:
    """Stop what an `up` left that was killed while it replaced a service."""
    names = left_behind(supervisor)
    for failure in stop_all(supervisor, names, timeout_s=settings.flows.stop_timeout_s, report=report).values():
        raise failure


@contextmanager
def _project_lock(settings: Settings, report: OnProgress) -> Generator[None]:
    folder = settings.state_dir / "services"
    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    timeout_s = 2 * settings.flows.start_timeout_s + settings.flows.stop_timeout_s
    lock = filelock.FileLock(folder / "lock")
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(ServiceEvent(service=None, phase="waiting"))
            lock.acquire(timeout=timeout_s)
    except filelock.Timeout as exc:
        raise ConflictError(
            "another `noa up` or `noa down` of this project is under way",
            where=str(folder),
            remedy=f"It was waited for during {timeout_s:g} s; try again when it has ended",
        ) from exc
    try:
        yield
    finally:
        lock.release()


def _say_nothing(event: ServiceEvent) -> None:
    del event
