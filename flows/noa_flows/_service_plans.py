"""What each service of a project is: its command, its environment, its port, and how to tell that it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from noa.errors import DependencyMissingError, ServiceError
from noa.settings import Settings
from noa_flows._environment import (
    SETTINGS_VARIABLE,
    inherited_environment,
    mlflow_environment,
    prefect_environment,
    prefect_home,
    settings_to_carry,
)
from noa_flows._loopback import answers, refusal_of
from noa_flows._prefect_api import PrefectApi
from noa_flows.supervisor import Command, ServiceRecord

ServiceName = Literal["prefect", "mlflow", "serving", "worker", "webhooks"]
SERVICE_NAMES: tuple[ServiceName, ...] = ("prefect", "mlflow", "serving", "worker", "webhooks")
"""In the order in which they are started; they are stopped in the opposite one."""
WORK_POOL = "noa"
WORKER_NAME = "noa"
_HEARTBEAT_LIMIT_S = 30.0


def _is_ready(_: ServiceRecord) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """One service. `host` is None for what listens nowhere (worker, webhooks); `needs` must be healthy first.

    `build` makes the command from this service's address and those of the services it needs. `not_ready` says what a
    healthy one cannot do yet, "" if nothing.
    """

    name: ServiceName
    host: str | None
    port: int
    port_setting: str
    needs: ServiceName | None
    build: Callable[[str | None, Mapping[ServiceName, str]], Command]
    is_healthy: Callable[[ServiceRecord, Mapping[ServiceName, str]], bool]
    not_ready: Callable[[ServiceRecord], str] = _is_ready
    scheme: Literal["http", "https"] = "http"


def plan_services(settings: Settings) -> dict[ServiceName, ServicePlan]:
    """Return the plans of all services that this project has; serving only with an endpoint, webhooks only with one."""
    plans = [_plan_prefect(settings), _plan_mlflow(settings)]
    if settings.endpoints:
        plans.append(_plan_serving(settings))
    plans.append(_plan_worker(settings))
    if settings.webhooks:
        plans.append(_plan_webhooks(settings))
    return {plan.name: plan for plan in plans}


def require_prefect() -> None:
    """Raise unless Prefect is installed; what only looks at services or stops them does not need it.

    Raises:
        DependencyMissingError: Prefect is not installed.
    """
    if find_spec("prefect") is None:
        raise DependencyMissingError("prefect", extra="flows", purpose="Running flows")


def api_url(address: str) -> str:
    """Return the address of the Prefect server's API."""
    return f"{address}/api"


def _plan_prefect(settings: Settings) -> ServicePlan:
    def build(address: str | None, _: Mapping[ServiceName, str]) -> Command:
        host, port = _split(address)
        prefect_home(settings).mkdir(parents=True, exist_ok=True)
        return _command(
            settings,
            "prefect",
            ("-m", "noa_flows._prefect_server", "--host", host, "--port", port),
            environment=prefect_environment(settings, api_url(str(address))),
            folder=prefect_home(settings),
            address=address,
        )

    def is_healthy(record: ServiceRecord, _: Mapping[ServiceName, str]) -> bool:
        return PrefectApi(url=api_url(str(record.address))).is_healthy()

    return ServicePlan(
        name="prefect",
        host=settings.flows.host,
        port=settings.flows.port,
        port_setting="flows.port",
        needs=None,
        build=build,
        is_healthy=is_healthy,
    )


def _s3_environment(settings: Settings) -> dict[str, str]:
    from noa_registry.artifacts import s3_environment

    return s3_environment(settings.registry)  # flow runs read the project's file, and no secrets from here


def _plan_mlflow(settings: Settings) -> ServicePlan:
    def build(address: str | None, _: Mapping[ServiceName, str]) -> Command:
        host, port = _split(address)
        hosts = ",".join(f"{name}:{port}" for name in dict.fromkeys((host, "127.0.0.1", "localhost")))
        return _command(
            settings,
            "mlflow",
            (
                *("-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"),
                *("--allowed-hosts", hosts, "--uvicorn-opts", "--log-level warning"),
            ),
            environment=mlflow_environment(settings),
            folder=settings.state_dir,
            address=address,
        )

    def is_healthy(record: ServiceRecord, _: Mapping[ServiceName, str]) -> bool:
        return answers(f"{record.address}/health")

    return ServicePlan(
        name="mlflow",
        host=settings.tracking.host,
        port=settings.tracking.port,
        port_setting="tracking.port",
        needs=None,
        build=build,
        is_healthy=is_healthy,
    )


def _plan_serving(settings: Settings) -> ServicePlan:
    def build(address: str | None, _: Mapping[ServiceName, str]) -> Command:
        from noa_serving import server_command

        server = server_command(settings, port=int(_split(address)[1]))
        return Command(
            name="serving",
            arguments=server.argv,
            environment={**inherited_environment(), **server.env},
            folder=settings.state_dir,
            log_file=settings.state_dir / "logs" / "serving.log",
            address=address,
            grace_s=settings.flows.stop_timeout_s,
        )

    def is_healthy(record: ServiceRecord, _: Mapping[ServiceName, str]) -> bool:
        from noa_serving import STARTED_PATH, own_server_context

        return answers(f"{record.address}{STARTED_PATH}", tls=own_server_context(settings.serving))

    def not_ready(record: ServiceRecord) -> str:
        from noa_serving import READY_PATH, own_server_context

        return refusal_of(f"{record.address}{READY_PATH}", tls=own_server_context(settings.serving))

    return ServicePlan(
        name="serving",
        host=settings.serving.host,
        port=settings.serving.port,
        port_setting="serving.port",
        needs=None,
        build=build,
        is_healthy=is_healthy,
        not_ready=not_ready,
        scheme="http" if settings.serving.tls_certificate is None else "https",
    )


def _plan_worker(settings: Settings) -> ServicePlan:
    def build(_: str | None, addresses: Mapping[ServiceName, str]) -> Command:
        api = api_url(addresses["prefect"])
        arguments = ("-m", "noa_flows._prefect_worker", "--pool", WORK_POOL, "--folder", str(settings.root))
        return _command(
            settings,
            "worker",
            (*arguments, "--limit", str(settings.flows.parallel_runs), "--api", api),
            environment={
                **prefect_environment(settings, api),
                **_s3_environment(settings),
                SETTINGS_VARIABLE: settings_to_carry(settings),
            },
            folder=settings.root,
            address=None,
        )

    def is_healthy(record: ServiceRecord, addresses: Mapping[ServiceName, str]) -> bool:
        address = addresses.get("prefect")
        since = record.started_at.strftime("%Y-%m-%dT%H:%M:%S")
        return address is not None and PrefectApi(url=api_url(address)).has_worker(WORK_POOL, WORKER_NAME, since=since)

    return ServicePlan(
        name="worker",
        host=None,
        port=0,
        port_setting="flows.parallel_runs",
        needs="prefect",
        build=build,
        is_healthy=is_healthy,
    )


def _plan_webhooks(settings: Settings) -> ServicePlan:
    def build(_: str | None, __: Mapping[ServiceName, str]) -> Command:
        from noa_flows._webhook_deliverer import WEBHOOKS_VARIABLE, webhooks_to_carry

        carried = {SETTINGS_VARIABLE: settings_to_carry(settings), WEBHOOKS_VARIABLE: webhooks_to_carry(settings)}
        return _command(
            settings,
            "webhooks",
            ("-m", "noa_flows._webhook_deliverer", "--folder", str(settings.root)),
            environment=carried,
            folder=settings.root,
            address=None,
        )

    def is_healthy(record: ServiceRecord, _: Mapping[ServiceName, str]) -> bool:
        from noa_registry import heartbeat_file

        try:
            beat = heartbeat_file(settings.state_dir).stat().st_mtime
        except FileNotFoundError:
            return False
        return beat >= record.started_at.timestamp() and time.time() - beat < _HEARTBEAT_LIMIT_S

    return ServicePlan(
        name="webhooks",
        host=None,
        port=0,
        port_setting="webhooks",
        needs=None,
        build=build,
        is_healthy=is_healthy,
    )


def _command(
    settings: Settings,
    name: ServiceName,
    arguments: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    folder: Path,
    address: str | None,
) -> Command:
    return Command(
        name=name,
        arguments=(sys.executable, "-P", *arguments),
        environment={**inherited_environment(), **environment},
        folder=folder,
        log_file=settings.state_dir / "logs" / f"{name}.log",
        address=address,
        grace_s=settings.flows.stop_timeout_s,
    )


def _split(address: str | None) -> tuple[str, str]:
    """Return host and port of `http://host:port`, or of `https`."""
    if address is None:
        raise ServiceError("a service that listens was given no address")
    host, _, port = address.partition("://")[2].rpartition(":")
    return host.strip("[]"), port
