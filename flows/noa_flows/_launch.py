"""One `up`: start what is missing, keep what is healthy, and replace what runs with other settings on demand.

A service that fails is stopped, what needs it is not started, and the others go on: the next `up` starts what is
missing. Only an interrupt stops everything that this `up` has started. What is replaced is started beside the old one
and takes its name when it is healthy; where that cannot be, as on one port, the old one is stopped first, and started
again should the new one fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from noa.errors import ConflictError, NoaError, ServiceError
from noa.settings import PROJECT_FILE, Settings
from noa_flows._former import remember
from noa_flows._loopback import claim_port
from noa_flows._service_plans import ServiceName, ServicePlan, api_url
from noa_flows._settings_digest import settings_digest
from noa_flows._stopping import stop_together
from noa_flows.supervisor import Command, ServiceRecord, Supervisor

Phase = Literal[
    "waiting", "starting", "healthy", "already running", "failed", "stopping", "stopped", "running again as before"
]
_POLL_S = 0.1
_NEXT, _OLD = ".next", ".old"
# Two servers of one of these may run at a time. Prefect's would both run its scheduler; the others listen nowhere.
_BESIDE: tuple[ServiceName, ...] = ("mlflow", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEvent:
    """A step of `up` or `down`, for progress displays. `waiting`: for another `up` or `down`; it is of no service.

    `is_interrupted`: it is stopped because somebody interrupted the start.
    """

    service: ServiceName | None
    phase: Phase
    address: str | None = None
    is_interrupted: bool = False


OnProgress = Callable[[ServiceEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One `up`. `beside` are the services whose old process goes on until the new one is healthy; `former` is how
    those were started that were stopped to be started anew; `begun` are those whose start was entered, noted before
    it: whoever interrupts may do so when the process is there and its record not yet in our hands."""

    settings: Settings
    supervisor: Supervisor
    report: OnProgress
    beside: set[ServiceName] = field(default_factory=set[ServiceName])
    former: dict[ServiceName, Callable[[], Command]] = field(default_factory=dict[ServiceName, Callable[[], Command]])
    begun: list[ServiceName] = field(default_factory=list[ServiceName])

    def run(
        self, plans: Mapping[ServiceName, ServicePlan], *, outdated: Collection[ServiceName] = ()
    ) -> dict[ServiceName, NoaError]:
        """Start what is missing, and anew what is `outdated`; returns what failed and why, in the order of plans.

        Raises:
            NoaError: a port is in use, or the database does not open; what ran goes on.
        """
        try:
            self.replace(outdated, plans)
            failures = self._start_missing(plans)
        except NoaError:
            self._undo()
            self._bring_back(plans)
            raise
        except BaseException:
            self._undo(is_interrupted=True)
            self._bring_back(plans, is_waited_for=False)
            raise
        healthy: list[ServiceName] = [name for name in self.beside if name not in failures]
        self._switch(healthy)
        back = self._bring_back(plans) if failures else []
        reasons: dict[ServiceName, _Reason]
        reasons = {name: _reason_of(name, failure) for name, failure in failures.items()}
        for name, failure in failures.items():
            failure.remedy = self._tell_rest(failure.remedy, name, plans, reasons, back)
        return {name: failures[name] for name in plans if name in failures}

    def replace(self, outdated: Collection[ServiceName], plans: Mapping[ServiceName, ServicePlan]) -> None:
        """Stop what is outdated, except for what can go on until its successor is healthy.

        What could not be started anew, as its new port is in use, goes on.
        """
        records: dict[ServiceName, ServiceRecord]
        records = {name: record for name in outdated if (record := self.supervisor.find(name)) is not None}
        freed = {_port_of(record) for record in records.values()}
        for plan in (plans[name] for name in outdated if name in plans):
            if plan.host is not None and plan.port not in freed:
                self._claim(plan)
        wanted = {plans[name].port for name in outdated if name in plans}
        for name, record in records.items():
            if name in plans and _port_of(record) not in wanted and self._fits_beside(plans[name], record):
                self.beside.add(name)
        ending: list[ServiceName] = [name for name in outdated if name not in self.beside]
        for name, plan in plans.items():
            if plan.needs in ending and name not in ending and (record := self.supervisor.find(name)) is not None:
                ending.append(name)
                records[name] = record
        for name in ending:
            if name in plans and name in records:
                former = remember(self.settings, self.supervisor, records[name])
                if former is not None:
                    self.former[name] = former
        for failure in self._stop(ending[::-1]).values():
            raise failure

    def _start_missing(self, plans: Mapping[ServiceName, ServicePlan]) -> dict[ServiceName, NoaError]:
        started: dict[ServiceName, ServiceRecord] = {}
        self._stop_worker_of_another_server(plans)
        running, missing = self._look(plans)
        addresses = addresses_of(running)
        ports = {plan.name: self._claim(plan) for plan in missing if plan.host is not None}
        for name, record in running.items():
            self.report(ServiceEvent(service=name, phase="already running", address=record.address))
        if any(plan.name == "mlflow" for plan in missing):
            _prepare_database(self.settings)
        failures: dict[ServiceName, NoaError] = {}
        waiting = dict(running)
        for stage in ([plan for plan in missing if not plan.needs], [plan for plan in missing if plan.needs]):
            for plan in stage:
                if plan.needs in failures:
                    continue
                self.begun.append(plan.name)
                try:
                    started[plan.name] = self._start(plan, ports.get(plan.name), addresses)
                except NoaError as exc:
                    self._fail(plan.name, exc, failures)
                else:
                    waiting[plan.name] = started[plan.name]
            addresses |= addresses_of(started)
            # Each stage has the whole time: a worker is not late because its server was slow.
            deadline = time.monotonic() + self.settings.flows.start_timeout_s
            self._wait(plans, waiting, started, addresses, deadline, failures)
        ended: list[ServiceName] = [name for name in started if name in failures]
        for failure in self._stop([self._key(name) for name in ended[::-1]]).values():
            raise failure
        for name in ended:
            self.begun.remove(name)
        return failures

    def _switch(self, names: Sequence[ServiceName]) -> None:
        """Let what was started beside an old one have its name, and stop the old one; killed between, the next `up`
        or `down` does."""
        for name in names:
            self.supervisor.rename(name, f"{name}{_OLD}")
            self.supervisor.rename(f"{name}{_NEXT}", name)
            self.beside.discard(name)
        for failure in self._stop([f"{name}{_OLD}" for name in names]).values():
            raise failure

    def _undo(self, *, is_interrupted: bool = False) -> None:
        """Stop what was started; who interrupts once more does not want to wait for it."""
        recorded = self.supervisor.names()
        names = [key for name in reversed(self.begun) if (key := self._key(name)) in recorded]
        try:
            failures = self._stop(names, is_interrupted=is_interrupted)
        except KeyboardInterrupt:
            failures = self._stop(names, timeout_s=0.0, is_interrupted=True)
        for failure in failures.values():
            raise failure

    def _bring_back(self, plans: Mapping[ServiceName, ServicePlan], *, is_waited_for: bool = True) -> list[ServiceName]:
        """Start again, as it was, what was stopped to be started anew and has no successor; returns what runs."""
        back: dict[ServiceName, ServiceRecord] = {}
        for name in plans:
            try:
                if name in self.former and self.supervisor.find(name) is None and self._can_come_back(name):
                    back[name] = self.supervisor.start(self.former[name]())
            except NoaError as exc:
                self._fail(name, exc, {})
        deadline = time.monotonic() + (self.settings.flows.start_timeout_s if is_waited_for else 0.0)
        waiting = dict(back)
        while waiting and time.monotonic() < deadline:
            addresses = addresses_of({name: self.supervisor.find(name) for name in plans})
            for name, record in list(waiting.items()):
                if not self.supervisor.is_running(record):
                    del waiting[name], back[name]
                elif plans[name].is_healthy(record, addresses):
                    del waiting[name]
            time.sleep(_POLL_S if waiting else 0)
        for name, record in back.items():
            self.report(ServiceEvent(service=name, phase="running again as before", address=record.address))
        return list(back)

    def _can_come_back(self, name: ServiceName) -> bool:
        """A worker polls the address of the server that it was started for."""
        if name != "worker":
            return True
        server = self.supervisor.find("prefect")
        return server is not None and api_url(str(server.address)) in self.former[name]().arguments

    def _fits_beside(self, plan: ServicePlan, record: ServiceRecord) -> bool:
        if plan.name not in _BESIDE or not self.supervisor.is_running(record):
            return False
        grpc_port = self.settings.serving.grpc_port
        if plan.name == "serving" and grpc_port:
            try:
                claim_port(self.settings.serving.host, grpc_port, service=plan.name, setting="serving.grpc_port")
            except ConflictError:  # its own, as a rule
                return False
        return True

    def _key(self, name: ServiceName) -> str:
        """Return the name of the record under which a service is started."""
        return f"{name}{_NEXT}" if name in self.beside else name

    def _stop(
        self, names: Sequence[str], *, timeout_s: float | None = None, is_interrupted: bool = False
    ) -> dict[str, NoaError]:
        limit_s = self.settings.flows.stop_timeout_s if timeout_s is None else timeout_s
        return stop_all(self.supervisor, names, timeout_s=limit_s, report=self.report, is_interrupted=is_interrupted)

    def _look(
        self, plans: Mapping[ServiceName, ServicePlan]
    ) -> tuple[dict[ServiceName, ServiceRecord], list[ServicePlan]]:
        """Sort the plans into what runs and what must be started; remains of dead services are cleared away."""
        running: dict[ServiceName, ServiceRecord] = {}
        missing: list[ServicePlan] = []
        for name, plan in plans.items():
            record = self.supervisor.find(name)
            if record is not None and name not in self.beside:
                if self.supervisor.is_running(record):
                    running[name] = record
                    continue
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
        digest = settings_digest(self.settings, plan.name)
        return self.supervisor.start(replace(command, name=self._key(plan.name), settings_digest=digest))

    def _wait(
        self,
        plans: Mapping[ServiceName, ServicePlan],
        waiting: dict[ServiceName, ServiceRecord],
        started: Mapping[ServiceName, ServiceRecord],
        addresses: Mapping[ServiceName, str],
        deadline: float,
        failures: dict[ServiceName, NoaError],
    ) -> None:
        """Wait until each is healthy or has failed; empties `waiting`."""
        while waiting:
            for name, record in list(waiting.items()):
                if plans[name].is_healthy(record, addresses) and self.supervisor.is_running(record):
                    del waiting[name]
                    if name in started:
                        self.report(ServiceEvent(service=name, phase="healthy", address=record.address))
                elif not self.supervisor.is_running(record):
                    del waiting[name]
                    self._fail(
                        name, self._failure(record, name, "died while it started", "Correct the cause"), failures
                    )
            if waiting and time.monotonic() > deadline:
                for name, record in waiting.items():
                    self._fail(name, self._lateness(record, name, is_new=name in started), failures)
                waiting.clear()
            time.sleep(_POLL_S if waiting else 0)

    def _fail(self, name: ServiceName, failure: NoaError, failures: dict[ServiceName, NoaError]) -> None:
        failures[name] = failure
        self.report(ServiceEvent(service=name, phase="failed"))

    def _lateness(self, record: ServiceRecord, name: ServiceName, *, is_new: bool) -> ServiceError:
        limit_s = self.settings.flows.start_timeout_s
        if not is_new:
            what = f"ran before and does not answer within {limit_s:g} s"
            return self._failure(record, name, what, f"Stop it with `noa down --only {name}`")
        file, more = self.settings.root / PROJECT_FILE, f"flows.start_timeout_s={2 * limit_s:g}"
        return self._failure(
            record,
            name,
            f"did not answer within {limit_s:g} s, and noa ended it",
            f"On a busy machine give it longer: `{more}` (in `{file}`: `start_timeout_s` of `[flows]`; for one command "
            f"`-o {more}`)",
        )

    def _failure(self, record: ServiceRecord, name: ServiceName, what: str, remedy: str) -> ServiceError:
        tail = self.supervisor.log_tail(record)
        return ServiceError(
            f"service `{name}` {what}",
            where=str(record.log_file),
            received=f"its last lines:\n{tail}\n" if tail else "it has written nothing since it was started",
            remedy=remedy,
            service=name,
            log_file=str(record.log_file),
        )

    def _tell_rest(
        self,
        remedy: str | None,
        name: ServiceName,
        plans: Mapping[ServiceName, ServicePlan],
        reasons: Mapping[ServiceName, _Reason],
        back: Collection[ServiceName],
    ) -> str:
        """Return a remedy together with what became of this service and of the others; each remedy is said once."""
        records: dict[ServiceName, ServiceRecord]
        records = {one: record for one in plans if (record := self.supervisor.find(one)) is not None}
        running: list[ServiceName] = [one for one, record in records.items() if self.supervisor.is_running(record)]
        parts = [] if remedy is None else [remedy]
        if name in back:
            parts.append(f"`{name}` runs again with its former settings, and `noa up --restart` tries the new ones")
        elif name in self.beside:
            parts.append(f"`{name}` goes on with its former settings, and `noa up --restart` tries the new ones")
        elif name in self.former and name not in running:
            parts.append(f"`{name}` ran before with other settings, and could not be started so again")
        others = {one: reason for one, reason in reasons.items() if one != name}
        parts += [f"`{one}` failed too: it {reason.what}{reason.place}" for one, reason in others.items()]
        parts += dict.fromkeys(reason.remedy for reason in others.values() if reason.remedy not in (None, remedy))
        kept: list[ServiceName] = [one for one in running if one != name and one not in reasons]
        parts.append(f"{_listed(kept)} {'run' if kept[1:] else 'runs'}" if kept else "No other service runs")
        return ". ".join([*parts, "`noa up` starts what is missing"])


def stop_all(
    supervisor: Supervisor,
    names: Sequence[str],
    *,
    timeout_s: float,
    report: OnProgress,
    is_interrupted: bool = False,
) -> dict[str, NoaError]:
    """Stop services side by side; returns what could not be stopped, with the reason."""

    def tell(name: str, phase: Phase) -> None:
        service = cast("ServiceName", service_of(name))
        report(ServiceEvent(service=service, phase=phase, is_interrupted=is_interrupted))

    return stop_together(
        supervisor,
        names,
        timeout_s=timeout_s,
        on_stopping=lambda name: tell(name, "stopping"),
        on_stopped=lambda name: tell(name, "stopped"),
    )


def left_behind(supervisor: Supervisor) -> list[str]:
    """Return the names of the records that an `up` left which was killed while it replaced a service."""
    return [name for name in supervisor.names() if service_of(name) != name]


def service_of(name: str) -> str:
    """Return the service that a record of this name is of."""
    return name.removesuffix(_NEXT).removesuffix(_OLD)


def addresses_of(records: Mapping[ServiceName, ServiceRecord | None]) -> dict[ServiceName, str]:
    """Return the addresses of what listens."""
    return {name: record.address for name, record in records.items() if record is not None and record.address}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reason:
    """Why a service failed, as it stands beside the error of another; `place` says where its log is."""

    what: str
    place: str
    remedy: str | None


def _reason_of(name: ServiceName, failure: NoaError) -> _Reason:
    log_file = failure.facts.get("log_file")
    return _Reason(
        what=failure.what.removeprefix(f"service `{name}` "),
        place="" if log_file is None else f"; its log is `{log_file}`",
        remedy=failure.remedy,
    )


def _listed(names: Sequence[ServiceName]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _reachable(host: str) -> str:
    """Return the host part of the address at which this machine reaches a server that listens on `host`."""
    found = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{found}]" if ":" in found else found


def _port_of(record: ServiceRecord) -> int | None:
    return None if record.address is None else int(record.address.rpartition(":")[2])


def _prepare_database(settings: Settings) -> None:
    """Create the tables under the registry's own lock before the MLflow server would, unlocked."""
    from noa_registry import Registry

    Registry.open(settings.registry).close()
