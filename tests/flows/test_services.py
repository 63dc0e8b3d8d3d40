from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from flows_helpers import make_project, wait_until

from noa.errors import ConflictError, InvalidInputError, ServiceError, SettingsError
from noa.settings import Settings, load_settings
from noa_flows import ServiceEvent, down, refuse_shared_ports, serving_status, status, up
from noa_flows.supervisor import Command, Supervisor

_UP = """
import sys
import threading
from pathlib import Path
from noa.settings import load_settings
from noa_flows import up
up(load_settings(Path(sys.argv[1])).settings, services=["prefect"])
"""


def test_down_is_fine_when_nothing_runs(tmp_path: Path) -> None:
    settings = make_project(tmp_path)
    assert down(settings) == []
    assert not (tmp_path / ".noa").exists()


def test_status_lists_what_the_project_has(tmp_path: Path) -> None:
    found = status(make_project(tmp_path))
    assert [(entry.name, entry.state) for entry in found] == [
        ("prefect", "stopped"),
        ("mlflow", "stopped"),
        ("serving", "stopped"),
        ("worker", "stopped"),
    ]
    (tmp_path / "noa.toml").write_text("")
    assert [entry.name for entry in status(load_settings(tmp_path).settings)] == ["prefect", "mlflow", "worker"]


def test_a_port_in_use_starts_nothing_and_names_the_setting(tmp_path: Path) -> None:
    make_project(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = load_settings(tmp_path, overrides=[f"tracking.port={port}"]).settings
        with pytest.raises(ConflictError, match=r"`tracking\.port`"):
            up(settings)
    assert [entry.state for entry in status(settings)] == ["stopped"] * 4
    assert Supervisor(settings.state_dir).names() == []


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["flows.port=4300", "tracking.port=4300"], ["`flows.port`", "`tracking.port`", "4300"]),
        (["flows.port=4300", "serving.port=4300"], ["`flows.port`", "`serving.port`"]),
        (["serving.port=4300", "serving.grpc_port=4300"], ["`serving.port`", "`serving.grpc_port`"]),
        (["flows.port=4300", "serving.host=0.0.0.0", "serving.port=4300"], ["`serving.port`"]),
    ],
)
def test_two_services_on_one_port_are_refused_before_anything_starts(
    tmp_path: Path, pairs: list[str], words: list[str]
) -> None:
    make_project(tmp_path)
    keys = ['serving.api_keys=["a-key-of-sixteen-characters"]']
    with pytest.raises(SettingsError, match="a port of its own") as caught:
        up(load_settings(tmp_path, overrides=[*pairs, *keys]).settings)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not (tmp_path / ".noa").exists()


def test_ports_that_do_not_meet_are_not_refused(tmp_path: Path) -> None:
    make_project(tmp_path)
    for pairs in (
        ["flows.port=0", "tracking.port=0", "serving.port=0", "serving.grpc_port=0"],
        ["flows.host=127.0.0.2", "flows.port=4300", "tracking.port=4300"],
    ):
        refuse_shared_ports(load_settings(tmp_path, overrides=pairs).settings)
    shared = load_settings(tmp_path, overrides=["flows.port=4300", "serving.port=4300"]).settings
    refuse_shared_ports(shared, ["serving", "mlflow"])
    (tmp_path / "noa.toml").write_text("")  # without an endpoint nothing listens for it
    refuse_shared_ports(load_settings(tmp_path, overrides=["flows.port=4300", "serving.port=4300"]).settings)


@pytest.mark.bentoml
def test_a_restart_onto_a_port_in_use_leaves_the_service_as_it_is(tmp_path: Path) -> None:
    make_project(tmp_path)
    settings = load_settings(tmp_path).settings
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = load_settings(tmp_path, overrides=[f"serving.port={server.getsockname()[1]}"]).settings
        try:
            (before,) = up(settings, services=["serving"])
            (listening,) = serving_status(settings)
            assert (listening.address, listening.is_service) == (before.address, True)
            (waiting,) = (one for one in listening.endpoints if one.state == "waiting")
            assert (waiting.version, "points to no version yet" in waiting.detail) == (None, True)
            with pytest.raises(ConflictError, match=r"`serving\.port`") as caught:
                up(taken, services=["serving"], restart=True)
            assert f"process {os.getpid()} (" in str(caught.value)
            found = next(entry for entry in status(taken) if entry.name == "serving")
            assert (found.pid, found.state, found.has_old_settings) == (before.pid, before.state, True)
            (tmp_path / "noa.toml").write_text("")
            left = next(entry for entry in status(load_settings(tmp_path).settings) if entry.name == "serving")
            assert (left.has_old_settings, left.is_wanted) == (True, False)
        finally:
            down(settings)


def test_a_service_that_the_project_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("")
    with pytest.raises(InvalidInputError, match="no service `serving`"):
        up(load_settings(tmp_path).settings, services=["serving"])


def test_a_second_up_that_waits_too_long_says_so(tmp_path: Path) -> None:
    make_project(tmp_path)
    settings = load_settings(tmp_path, overrides=["flows.start_timeout_s=0.1", "flows.stop_timeout_s=0.1"]).settings
    (tmp_path / ".noa" / "services").mkdir(parents=True)
    told: list[ServiceEvent] = []
    with filelock.FileLock(tmp_path / ".noa" / "services" / "lock"), pytest.raises(ConflictError, match="another"):
        up(settings, services=["prefect"], on_progress=told.append)
    assert told == [ServiceEvent(service=None, phase="waiting")]


def test_a_service_that_ran_before_and_hangs_is_told_from_one_that_is_slow_to_start(tmp_path: Path) -> None:
    make_project(tmp_path)
    settings = load_settings(tmp_path, overrides=["flows.start_timeout_s=0.5"]).settings
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and answers none
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        record = Supervisor(settings.state_dir).start(
            Command(
                name="serving",
                arguments=("sleep", "60"),
                environment=dict(os.environ),
                folder=tmp_path,
                log_file=tmp_path / "log",
                address=address,
            )
        )
        try:
            with pytest.raises(ServiceError, match=r"ran before and does not answer.*`noa down --only serving`"):
                up(settings, services=["serving"])
            assert Supervisor(settings.state_dir).is_running(record)
        finally:
            assert down(settings) == ["serving"]


@pytest.mark.prefect
def test_a_service_that_dies_is_cleared_away_and_shows_its_log(tmp_path: Path) -> None:
    settings = make_project(tmp_path)
    home = tmp_path / ".noa" / "prefect"
    home.mkdir(parents=True)
    (home / "prefect.db").write_bytes(b"this is no database" * 1000)
    (tmp_path / ".noa" / "logs").mkdir()
    (tmp_path / ".noa" / "logs" / "prefect.log").write_text("what an older run said\n")
    seen: list[ServiceEvent] = []
    with pytest.raises(ServiceError, match=r"`prefect` died while it started") as caught:
        up(settings, services=["prefect"], on_progress=seen.append)
    assert "not a database" in str(caught.value)
    assert "an older run" not in str(caught.value)
    assert [entry.state for entry in status(settings)] == ["stopped"] * 4
    assert [(event.service, event.phase) for event in seen] == [
        ("prefect", "starting"),
        ("prefect", "failed"),
        ("prefect", "stopping"),
        ("prefect", "stopped"),
    ]


@pytest.mark.prefect
def test_a_service_that_does_not_answer_in_time_is_stopped_again(tmp_path: Path) -> None:
    make_project(tmp_path)
    settings: Settings = load_settings(tmp_path, overrides=["flows.start_timeout_s=0.3"]).settings
    with pytest.raises(ServiceError, match=r"`prefect` did not answer within 0\.3 s") as caught:
        up(settings, services=["prefect"])
    assert f"`flows.start_timeout_s=0.6` (in `{tmp_path / 'noa.toml'}`" in str(caught.value)
    assert "it has written nothing" in str(caught.value)
    assert [entry.state for entry in status(settings)] == ["stopped"] * 4


@pytest.mark.prefect
def test_an_interrupted_up_tells_what_it_stops_and_a_second_interrupt_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_project(tmp_path)
    stop, waited = Supervisor.stop, list[float]()

    def impatient(supervisor: Supervisor, name: str, *, timeout_s: float) -> bool:
        waited.append(timeout_s)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return stop(supervisor, name, timeout_s=timeout_s)

    seen: list[ServiceEvent] = []

    def hear(event: ServiceEvent) -> None:
        seen.append(event)
        if (event.service, event.phase) == ("mlflow", "starting"):
            waited.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(Supervisor, "stop", impatient)
    monkeypatch.setattr("noa_flows._launch.Launch._stop_worker_of_another_server", lambda self, plans: None)
    with pytest.raises(KeyboardInterrupt):
        up(settings, services=["prefect", "mlflow"], on_progress=hear)
    assert [(event.service, event.phase) for event in seen][-2:] == [("prefect", "stopping"), ("prefect", "stopped")]
    assert waited == [settings.flows.stop_timeout_s, 0.0]
    assert [entry.state for entry in status(settings)] == ["stopped"] * 4


def test_services_are_stopped_side_by_side_and_the_server_after_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_project(tmp_path)
    together, order = threading.Barrier(3, timeout=60), list[str]()

    def meet(supervisor: Supervisor, name: str, *, timeout_s: float) -> bool:
        if name != "prefect":
            together.wait()
        order.append(name)
        if name == "mlflow":
            raise ServiceError("service `mlflow` did not stop")
        return True

    monkeypatch.setattr(Supervisor, "find", lambda self, name: None if name == "webhooks" else object())
    monkeypatch.setattr(Supervisor, "stop", meet)
    settings.state_dir.mkdir()
    seen: list[tuple[str | None, str]] = []
    with pytest.raises(ServiceError, match="`mlflow` did not stop"):
        down(settings, on_progress=lambda event: seen.append((event.service, event.phase)))
    assert order.index("worker") < order.index("prefect")
    assert {service for service, phase in seen if phase == "stopping"} == {"prefect", "mlflow", "serving", "worker"}
    assert {service for service, phase in seen if phase == "stopped"} == {"prefect", "serving", "worker"}


@pytest.mark.prefect
def test_down_finds_what_an_up_that_was_killed_had_started(tmp_path: Path) -> None:
    settings = make_project(tmp_path)
    supervisor = Supervisor(settings.state_dir)
    with subprocess.Popen([sys.executable, "-c", _UP, str(tmp_path)], stderr=subprocess.DEVNULL) as starter:
        wait_until(lambda: "prefect" in supervisor.names(), deadline_s=60)
        os.kill(starter.pid, signal.SIGKILL)
    record = supervisor.find("prefect")
    assert record is not None
    assert down(settings) == ["prefect"]
    assert supervisor.members(record) == []
