"""What `up` keeps when a service fails, and what it brings back when a replacement does."""

from __future__ import annotations

import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flows_helpers import make_project, wait_until

from noa.errors import NoaError, ServiceError
from noa.settings import Settings, load_settings
from noa_flows import ServiceEvent, down, status, up
from noa_flows import supervisor as supervisor_module
from noa_flows._loopback import answers
from noa_flows._process_tree import ProcessId, identify
from noa_flows._service_plans import ServiceName, ServicePlan, api_url
from noa_flows.supervisor import Command, ServiceRecord, Supervisor
from samples import mostly

_SERVER = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if os.environ["FATE"] == "is late":
    time.sleep(600)
if os.environ["FATE"] != "healthy":
    sys.exit("no such luck")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["FATE_SAID"].encode())

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
Fates = dict[ServiceName, str]


@pytest.fixture
def fates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fates]:
    """Services that are small web servers; what `fates` says of one (`dies`, `is late`) befalls it."""
    told: Fates = {}

    def plan(settings: Settings, name: ServiceName, port: int, needs: ServiceName | None = None) -> ServicePlan:
        def build(address: str | None, addresses: Mapping[ServiceName, str]) -> Command:
            server = () if needs is None else (api_url(addresses[needs]),)
            return Command(
                name=name,
                arguments=(sys.executable, "-c", _SERVER, str(address).rpartition(":")[2], *server),
                environment={**os.environ, "FATE": told.get(name, "healthy"), "FATE_SAID": settings.project.name},
                folder=tmp_path,
                log_file=settings.state_dir / "logs" / f"{name}.log",
                address=address,
            )

        def is_healthy(record: ServiceRecord, _: Mapping[ServiceName, str]) -> bool:
            return answers(str(record.address))

        return ServicePlan(
            name=name,
            host="127.0.0.1",
            port=port,
            port_setting="port",
            needs=needs,
            build=build,
            is_healthy=is_healthy,
        )

    def plan_all(settings: Settings) -> dict[ServiceName, ServicePlan]:
        plans = [
            plan(settings, "prefect", settings.flows.port),
            plan(settings, "mlflow", settings.tracking.port),
            plan(settings, "worker", 0, needs="prefect"),
            plan(settings, "webhooks", 0),
        ]
        return {one.name: one for one in plans}

    make_project(tmp_path)
    monkeypatch.setattr("noa_flows.services.plan_services", plan_all)
    monkeypatch.setattr("noa_flows.services.require_prefect", lambda: None)
    monkeypatch.setattr("noa_flows._launch._prepare_database", lambda settings: None)
    yield told
    down(load_settings(tmp_path).settings)


def _states(settings: Settings) -> dict[ServiceName, str]:
    return {found.name: found.state for found in status(settings)}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _says(settings: Settings, name: ServiceName) -> str:
    (address,) = (str(found.address) for found in status(settings) if found.name == name)
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_service_that_fails_leaves_the_healthy_ones_and_the_next_up_starts_what_is_missing(
    tmp_path: Path, fates: Fates
) -> None:
    settings = load_settings(tmp_path).settings
    fates["prefect"] = "dies"
    seen: list[ServiceEvent] = []
    with pytest.raises(ServiceError, match="`prefect` died while it started") as caught:
        up(settings, on_progress=seen.append)
    assert str(caught.value).endswith(". Correct the cause. `mlflow`, `webhooks` run. `noa up` starts what is missing")
    assert "no such luck" in str(caught.value)
    states = {"prefect": "stopped", "mlflow": "running", "worker": "stopped", "webhooks": "running"}
    assert _states(settings) == states
    assert [event.service for event in seen if event.phase == "failed"] == ["prefect"]
    assert not any(event.is_interrupted for event in seen)
    before = {found.name: found.pid for found in status(settings) if found.state == "running"}

    del fates["prefect"]
    up(settings)
    after = {found.name: found.pid for found in status(settings)}
    assert _states(settings) == dict.fromkeys(states, "running")
    assert {name: after[name] for name in before} == before


def test_of_services_that_fail_together_each_has_its_reason_and_its_log(tmp_path: Path, fates: Fates) -> None:
    settings = load_settings(tmp_path, overrides=["flows.start_timeout_s=3"]).settings
    fates |= {"prefect": "dies", "mlflow": "is late", "webhooks": "is late"}
    with pytest.raises(ServiceError, match="`prefect` died while it started") as caught:
        up(settings)
    text = str(caught.value)
    for name in ("mlflow", "webhooks"):
        log = settings.state_dir / "logs" / f"{name}.log"
        assert f"`{name}` failed too: it did not answer within 3 s, and noa ended it; its log is `{log}`. " in text
    assert "Correct the cause. `mlflow`" in text
    assert text.count("On a busy machine give it longer") == 1
    assert text.endswith(". No other service runs. `noa up` starts what is missing")


def test_a_service_on_a_new_port_is_stopped_only_when_the_new_one_is_healthy(tmp_path: Path, fates: Fates) -> None:
    settings = load_settings(tmp_path).settings
    (before,) = up(settings, services=["mlflow"])
    moved = load_settings(tmp_path, overrides=[f"tracking.port={_free_port()}", "project.name=moved"]).settings
    fates["mlflow"] = "dies"
    with pytest.raises(ServiceError, match=r"`mlflow` goes on with its former settings"):
        up(moved, services=["mlflow"], restart=True)
    (kept,) = (found for found in status(moved) if found.name == "mlflow")
    assert (kept.pid, kept.state, kept.has_old_settings) == (before.pid, "running", True)
    assert Supervisor(settings.state_dir).names() == ["mlflow"]

    del fates["mlflow"]
    seen: list[ServiceEvent] = []
    (anew,) = up(moved, services=["mlflow"], restart=True, on_progress=seen.append)
    assert [event.phase for event in seen] == ["starting", "healthy", "stopping", "stopped"]
    assert (anew.address, anew.has_old_settings) == (f"http://127.0.0.1:{moved.tracking.port}", False)
    assert _says(moved, "mlflow") == "moved"
    assert Supervisor(settings.state_dir).names() == ["mlflow"]
    assert not answers(str(before.address))


def test_what_an_up_left_that_was_killed_between_two_services_is_stopped(tmp_path: Path, fates: Fates) -> None:
    settings = load_settings(tmp_path).settings
    supervisor = Supervisor(settings.state_dir)
    for step in (".next", ".old"):
        up(settings, services=["mlflow"])
        supervisor.rename("mlflow", f"mlflow{step}")
        record = supervisor.find(f"mlflow{step}")
        assert record is not None
        (found,) = up(settings, services=["mlflow"])
        assert (found.state, supervisor.members(record), supervisor.names()) == ("running", [], ["mlflow"])
        supervisor.rename("mlflow", f"mlflow{step}")
        assert down(settings) == ["mlflow"]
        assert supervisor.names() == []


@pytest.mark.parametrize("how", ["dies", "interrupted"])
def test_a_service_that_was_stopped_for_one_that_fails_runs_again_as_before(
    tmp_path: Path, fates: Fates, how: str
) -> None:
    ports = [f"flows.port={_free_port()}", "flows.start_timeout_s=30"]
    settings = load_settings(tmp_path, overrides=[*ports, "project.name=before"]).settings
    up(settings, services=["prefect"])
    other = [*ports[1:], f"flows.port={_free_port()}", "project.name=after"]
    changed = load_settings(tmp_path, overrides=other).settings
    seen: list[ServiceEvent] = []

    def hear(event: ServiceEvent) -> None:
        seen.append(event)
        if how == "interrupted" and event.phase == "starting":
            raise KeyboardInterrupt

    fates["prefect"] = "dies"
    expected, words = (KeyboardInterrupt, None) if how == "interrupted" else (NoaError, "runs again with its former")
    with pytest.raises(expected, match=words):
        up(changed, services=["prefect"], restart=True, on_progress=hear)
    wait_until(lambda: _states(changed)["prefect"] == "running")
    assert seen[-1].phase == "running again as before"
    assert _says(changed, "prefect") == "before"
    (found,) = (found for found in status(changed) if found.name == "prefect")
    assert (found.address, found.has_old_settings) == (f"http://127.0.0.1:{settings.flows.port}", True)
    del fates["prefect"]
    up(changed, services=["prefect"], restart=True)
    assert _says(changed, "prefect") == "after"


def test_an_interrupt_between_the_start_of_a_process_and_its_record_leaves_nothing(
    tmp_path: Path, fates: Fates, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_project(tmp_path)
    identified: list[int] = []

    def interrupted(pid: int) -> ProcessId | None:
        identified.append(pid)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(supervisor_module, "identify", interrupted)
        up(settings, services=["prefect"])
    assert identified
    assert Supervisor(settings.state_dir).names() == []
    assert identify(identified[0]) is None
    up(settings, services=["prefect"])
    assert _states(settings)["prefect"] == "running"


def _servers(settings: Settings) -> dict[str, tuple[str, int | None, bool]]:
    """Return state, pid and whether its settings are old, by service."""
    return {found.name: (found.state, found.pid, found.has_old_settings) for found in status(settings)}


def _moved(folder: Path, name: str) -> Settings:
    pairs = [f"flows.port={_free_port()}", "flows.start_timeout_s=30", f"project.name={name}"]
    return load_settings(folder, overrides=pairs).settings


def _record(settings: Settings, name: ServiceName) -> ServiceRecord:
    record = Supervisor(settings.state_dir).find(name)
    assert record is not None
    return record


def _server_of_the_worker(settings: Settings) -> str:
    return _record(settings, "worker").command[-1]


def test_what_needs_a_service_that_is_restarted_alone_is_restarted_with_it(tmp_path: Path, fates: Fates) -> None:
    settings = _moved(tmp_path, "before")
    up(settings)
    before = _servers(settings)
    changed = _moved(tmp_path, "after")
    (server, worker) = up(changed, services=["prefect"], restart=True)
    assert [(one.name, one.state, one.has_old_settings) for one in (server, worker)] == [
        ("prefect", "running", False),
        ("worker", "running", False),
    ]
    assert _server_of_the_worker(changed) == api_url(f"http://127.0.0.1:{changed.flows.port}")
    after = _servers(changed)
    assert {name for name in after if after[name][1] != before[name][1]} == {"prefect", "worker"}

    again = up(changed, services=["prefect"], restart=True)
    assert [(one.name, one.pid) for one in again] == [("prefect", server.pid)]

    for process in Supervisor(settings.state_dir).members(_record(changed, "prefect")):
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: _states(changed)["prefect"] == "stopped")
    up(changed, services=["prefect"])
    assert _states(changed) == dict.fromkeys(before, "running")


def test_what_needs_a_service_that_cannot_be_restarted_runs_again_with_it(tmp_path: Path, fates: Fates) -> None:
    settings = _moved(tmp_path, "before")
    up(settings, services=["worker"])
    fates["prefect"] = "dies"
    with pytest.raises(ServiceError, match=r"runs again with its former settings.* `worker` runs\. `noa up`"):
        up(_moved(tmp_path, "after"), services=["prefect"], restart=True)
    found = _servers(settings)
    assert [found[name][0] for name in ("prefect", "worker")] == ["running", "running"]
    assert _server_of_the_worker(settings) == api_url(f"http://127.0.0.1:{settings.flows.port}")


def test_what_does_not_come_back_after_a_restart_of_what_it_needs_is_named(tmp_path: Path, fates: Fates) -> None:
    up(_moved(tmp_path, "before"), services=["worker"])
    fates["worker"] = "dies"
    changed = _moved(tmp_path, "after")
    with pytest.raises(ServiceError, match=r"(?s)`worker` died while it started.*`noa up` starts what is missing"):
        up(changed, services=["prefect"], restart=True)
    assert _servers(changed)["prefect"][0] == "running"
    del fates["worker"]
    up(changed)
    assert _servers(changed)["worker"][0] == "running"


@pytest.mark.bentoml
@pytest.mark.slow
@pytest.mark.parametrize("is_moved", mostly("chaos", [True, False], sample=[False]))
def test_a_serving_process_that_is_late_never_leaves_nothing_serving(tmp_path: Path, is_moved: bool) -> None:
    make_project(tmp_path)
    port = _free_port()
    settings = load_settings(tmp_path, overrides=[f"serving.port={port}"]).settings
    try:
        (before,) = up(settings, services=["serving"])
        change = [f"serving.port={_free_port() if is_moved else port}", "serving.max_in_flight=7"]
        late = load_settings(tmp_path, overrides=[*change, "flows.start_timeout_s=0.2"]).settings
        words = "`serving` goes on with" if is_moved else "`serving` runs again with"
        with pytest.raises(ServiceError, match=rf"(?s)did not answer within 0\.2 s.*{words} its former settings"):
            up(late, services=["serving"], restart=True)
        wait_until(lambda: _states(settings)["serving"] == "running", deadline_s=120)
        (found,) = (found for found in status(settings) if found.name == "serving")
        assert (found.address, found.has_old_settings, found.pid == before.pid) == (before.address, False, is_moved)
    finally:
        down(settings)
