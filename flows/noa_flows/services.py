"""The services of a project: Prefect server, MLflow UI, serving process, worker and webhooks; up, down and status.

`up` starts what is not running, waits until each answers, and on any failure stops what it has just started. `down`
stops what is recorded and proves it gone. Both hold one lock per project; each service's record is in the supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import filelock

from noa.atomic_write import translate_disk_errors
from noa.errors import ConflictError, InvalidInputError, NoaError, ServiceError
from noa.settings import PROJECT_FILE, Settings
from noa_flows._loopback import claim_port
from noa_flows._ports import refuse_shared_ports
from noa_flows._process_tree import memory_bytes
from noa_flows._service_plans import SERVICE_NAMES, ServiceName, ServicePlan, plan_services, require_prefect
from noa_flows._settings_digest import settings_digest
from noa_flows._stopping import stop_together
from noa_flows.supervisor import ServiceRecord, Supervisor

State = Literal["running", "unhealthy", "stopped"]
Phase = Literal["waiting", "starting", "healthy", "already running", "stopping", "stopped"]
_POLL_S = 0.1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEvent:
    """A step of `up` or `down`, for progress displays. `waiting`: for another `up` or `down`; it is of no service."""

    service: ServiceName | None
    phase: Phase
    address: str | None = None


OnProgress = Callable[[ServiceEvent], None]


def up(
    settings: Settings,
    *,
    services: Sequence[ServiceName] | None = None,
    restart: bool = False,
    on_progress: OnProgress | None = None,
) -> list[ServiceStatus]:
    """Start the project's services (or some of them) and wait until each is healthy. What runs already is kept.

    What runs with other settings than these, or is no longer in them, is kept too, and its status says so; `restart`
    stops it, and starts anew what these settings have.

    Raises:
        SettingsError: two services would listen on one port.
        ConflictError: a port is in use, or another `up` or `down` of this project does not end.
        ServiceError: a service died or did not answer in `flows.start_timeout_s`; the message has its last log lines,
            and everything that this call started was stopped again.
        InvalidInputError: a service that this project does not have.
        DependencyMissingError: an extra is not installed.
    """
    require_prefect()
    plans = _choose(plan_services(settings), services)
    refuse_shared_ports(settings, plans)
    supervisor = Supervisor(settings.state_dir)
    report = on_progress or _say_nothing
    with _project_lock(settings, report):
        launch = _Launch(settings=settings, supervisor=supervisor, report=report)
        if restart:
            launch.stop_outdated(SERVICE_NAMES if services is None else list(plans), plans)
        launch.run(plans)
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
        left = _stop(supervisor, present, timeout_s=settings.flows.stop_timeout_s, report=report)
    failures += left.values()
    if failures:
        raise failures[0]
    return [name for name in present if name not in left]


def status(settings: Settings) -> list[ServiceStatus]:
    """Return every service of the project, started or not, in the order in which they start."""
    supervisor = Supervisor(settings.state_dir)
    plans = plan_services(settings)
    records: dict[ServiceName, ServiceRecord | None] = {name: supervisor.find(name) for name in SERVICE_NAMES}
    addresses = _addresses(records)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launch:
    """One `up`: starts what is missing, and undoes it if anything fails."""

    settings: Settings
    supervisor: Supervisor
    report: OnProgress

    def run(self, plans: Mapping[ServiceName, ServicePlan]) -> None:
        self._stop_worker_of_another_server(plans)
        running, missing = self._look(plans)
        addresses = _addresses(running)
        ports = {plan.name: self._claim(plan) for plan in missing if plan.host is not None}
        for name, record in running.items():
            self.report(ServiceEvent(service=name, phase="already running", address=record.address))
        if any(plan.name == "mlflow" for plan in missing):
            _prepare_database(self.settings)
        started: dict[ServiceName, ServiceRecord] = {}
        try:
            waiting = dict(running)
            for stage in ([plan for plan in missing if not plan.needs], [plan for plan in missing if plan.needs]):
                for plan in stage:
                    started[plan.name] = self._start(plan, ports.get(plan.name), addresses)
                    waiting[plan.name] = started[plan.name]
                addresses |= _addresses(started)
                # Each stage has the whole time: a worker is not late because its server was slow.
                self._wait(plans, waiting, started, addresses, time.monotonic() + self.settings.flows.start_timeout_s)
        except BaseException:
            self._undo(started)
            raise

    def stop_outdated(self, names: Sequence[ServiceName], plans: Mapping[ServiceName, ServicePlan]) -> None:
        """Stop what of these runs with other settings, and a worker whose server is among it.

        What could not be started anew, as its new port is in use, goes on.
        """
        records = {name: self.supervisor.find(name) for name in names}
        outdated: list[ServiceName] = [name for name in names if _is_outdated(records[name], name, self.settings)]
        freed = {_port_of(record) for name in outdated if (record := records[name]) is not None}
        for plan in (plans[name] for name in outdated if name in plans):
            if plan.host is not None and plan.port not in freed:
                self._claim(plan)
        if "prefect" in outdated and "worker" not in outdated and self.supervisor.find("worker") is not None:
            outdated.append("worker")
        failures = _stop(
            self.supervisor, outdated[::-1], timeout_s=self.settings.flows.stop_timeout_s, report=self.report
        )
        for failure in failures.values():
            raise failure

    def _undo(self, started: Mapping[ServiceName, ServiceRecord]) -> None:
        """Stop what was started; who interrupts once more does not want to wait for it."""
        names = list(started)[::-1]
        try:
            failures = _stop(self.supervisor, names, timeout_s=self.settings.flows.stop_timeout_s, report=self.report)
        except KeyboardInterrupt:
            failures = _stop(self.supervisor, names, timeout_s=0.0, report=self.report)
        for failure in failures.values():
            raise failure

    def _look(
        self, plans: Mapping[ServiceName, ServicePlan]
    ) -> tuple[dict[ServiceName, ServiceRecord], list[ServicePlan]]:
        """Sort the plans into what runs and what must be started; remains of dead services are cleared away."""
        running: dict[ServiceName, ServiceRecord] = {}
        missing: list[ServicePlan] = []
        for name, plan in plans.items():
            record = self.supervisor.find(name)
            if record is not None and self.supervisor.is_running(record):
                running[name] = record
                continue
            if record is not None:
                self.supervisor.stop(name, timeout_s=self.settings.flows.stop_timeout_s)
            missing.append(plan)
        return running, missing

    def _stop_worker_of_another_server(self, plans: Mapping[ServiceName, ServicePlan]) -> None:
        """A worker whose server died would poll an address where the next one may not be."""
        server = self.supervisor.find("prefect")
        if "worker" in plans and (server is None or not self.supervisor.is_running(server)):
            self.supervisor.stop("worker", timeout_s=self.settings.flows.stop_timeout_s)

    def _claim(self, plan: ServicePlan) -> int:
        return claim_port(str(plan.host), plan.port, service=plan.name, setting=plan.port_setting)

    def _start(self, plan: ServicePlan, port: int | None, addresses: Mapping[ServiceName, str]) -> ServiceRecord:
        address = None if plan.host is None else f"{plan.scheme}://{_reachable(plan.host)}:{port}"
        self.report(ServiceEvent(service=plan.name, phase="starting", address=address))
        command = plan.build(address, addresses)
        return self.supervisor.start(replace(command, settings_digest=settings_digest(self.settings, plan.name)))

    def _wait(
        self,
        plans: Mapping[ServiceName, ServicePlan],
        waiting: dict[ServiceName, ServiceRecord],
        started: Mapping[ServiceName, ServiceRecord],
        addresses: Mapping[ServiceName, str],
        deadline: float,
    ) -> None:
        while waiting:
            for name, record in list(waiting.items()):
                if plans[name].is_healthy(record, addresses) and self.supervisor.is_running(record):
                    del waiting[name]
                    if name in started:
                        self.report(ServiceEvent(service=name, phase="healthy", address=record.address))
                elif not self.supervisor.is_running(record):
                    remedy = "What was started with it has been stopped; correct the cause and run `noa up` again"
                    raise self._failure(record, "died while it started", remedy)
            if waiting and time.monotonic() > deadline:
                raise self._lateness(next(iter(waiting.values())), started)
            time.sleep(_POLL_S if waiting else 0)

    def _lateness(self, record: ServiceRecord, started: Mapping[ServiceName, ServiceRecord]) -> ServiceError:
        limit_s = self.settings.flows.start_timeout_s
        if record not in started.values():
            remedy = f"Stop it with `noa down --only {record.name}`, and run `noa up` again"
            return self._failure(record, f"ran before and does not answer within {limit_s:g} s", remedy)
        file, more = self.settings.root / PROJECT_FILE, f"flows.start_timeout_s={2 * limit_s:g}"
        return self._failure(
            record,
            f"did not answer within {limit_s:g} s",
            f"On a busy machine give it longer: `{more}` (in `{file}`: `start_timeout_s` of `[flows]`; for one command "
            f"`-o {more}`). What was started with it has been stopped",
        )

    def _failure(self, record: ServiceRecord, what: str, remedy: str) -> ServiceError:
        tail = self.supervisor.log_tail(record)
        return ServiceError(
            f"service `{record.name}` {what}",
            where=str(record.log_file),
            received=f"its last lines:\n{tail}\n" if tail else "it has written nothing since it was started",
            remedy=remedy,
            service=record.name,
            log_file=str(record.log_file),
        )


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


def _stop(
    supervisor: Supervisor, names: Sequence[ServiceName], *, timeout_s: float, report: OnProgress
) -> dict[ServiceName, NoaError]:
    return stop_together(
        supervisor,
        names,
        timeout_s=timeout_s,
        on_stopping=lambda name: report(ServiceEvent(service=name, phase="stopping")),
        on_stopped=lambda name: report(ServiceEvent(service=name, phase="stopped")),
    )


def _reachable(host: str) -> str:
    """Return the host part of the address at which this machine reaches a server that listens on `host`."""
    found = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{found}]" if ":" in found else found


def _port_of(record: ServiceRecord) -> int | None:
    return None if record.address is None else int(record.address.rpartition(":")[2])


def _addresses(records: Mapping[ServiceName, ServiceRecord | None]) -> dict[ServiceName, str]:
    return {name: record.address for name, record in records.items() if record is not None and record.address}


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


def _prepare_database(settings: Settings) -> None:
    """Create the tables under the registry's own lock before the MLflow server would, unlocked."""
    from noa_registry import Registry

    Registry.open(settings.registry).close()


def _say_nothing(event: ServiceEvent) -> None:
    del event
