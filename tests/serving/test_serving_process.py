"""The server as a process: ports, secrets, start, stop, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from serving_kit import Project, affine_model, endpoint, make_project, slow_model, wait_until

from noa.errors import ConflictError, NotFoundError, ServiceError, SettingsError
from noa_serving import Client, ServerAddress, check_endpoints, server_command, start_server
from noa_serving._launch_request import load_request, new_request

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("filled"), empty_state, workers=2)
    project.publish("digits", affine_model(2.0))
    project.publish("slow", slow_model)
    return project


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.bentoml
def test_sigterm_finishes_what_was_begun_ends_with_0_and_leaves_no_process(filled: Project, tmp_path: Path) -> None:
    endpoints = {"digits": endpoint("digits@champion"), "slow": endpoint("slow@champion")}
    server = start_server(filled.settings, endpoints=endpoints, log_file=tmp_path / "log")
    address = server.wait_ready()
    tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    workers = [process for process in tree if "_bentoml_impl.worker.service" in process.cmdline()]
    assert len(workers) == address.workers == 2
    totals: list[float] = []

    def request() -> None:
        with Client(address.url) as client:
            totals.append(float(client.predict("slow", np.ones((64, 384), np.float32)).outputs["y"].sum()))

    # Both workers must have ended their start first: what is busy then is busy with the request.
    wait_until(lambda: all(process.cpu_percent(interval=0.3) < 5 for process in workers), what="quiet", timeout_s=60)
    thread = threading.Thread(target=request)
    thread.start()
    wait_until(lambda: any(process.cpu_percent(interval=0.1) > 20 for process in workers), what="the computing")
    server._process.send_signal(signal.SIGTERM)
    thread.join(30)
    assert totals == [64 * 384]
    assert server.stop() == 0
    assert [process for process in tree if not is_gone(process)] == []
    assert not server.command.request.folder.exists()


@pytest.mark.bentoml
def test_the_whole_tree_dies_when_its_starter_or_its_arbiter_is_killed(filled: Project, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from noa.settings import Settings, EndpointSettings\n"
        "from noa_serving import start_server\n"
        "settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "endpoints = {'digits': EndpointSettings(model='digits@champion')}\n"
        "server = start_server(settings, endpoints=endpoints, log_file=Path(sys.argv[2]))\n"
        "server.wait_ready()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    settings = tmp_path / "settings.json"
    settings.write_text(filled.settings.model_dump_json())
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(settings), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    arbiter = psutil.Process(int(starter.stdout.readline()))
    tree = [arbiter, *arbiter.children(recursive=True)]
    assert len(tree) == 3
    starter.kill()
    starter.wait()
    starter.stdout.close()
    wait_until(lambda: all(map(is_gone, tree)), what="the end of the tree")


@pytest.mark.bentoml
def test_workers_end_when_the_arbiter_is_killed(filled: Project, tmp_path: Path) -> None:
    server = start_server(filled.settings, endpoints={"digits": endpoint("digits@champion")}, log_file=tmp_path / "log")
    server.wait_ready()
    workers = psutil.Process(server.pid).children(recursive=True)
    assert workers
    assert not any(map(is_gone, workers))
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: all(map(is_gone, workers)), what="the end of the workers")
    server.stop()


def test_a_port_in_use_is_refused_before_the_start_naming_port_and_process(filled: Project) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"port {port} on 127\.0\.0\.1 is in use.*process {os.getpid()}"):
            server_command(filled.settings, endpoints={"digits": endpoint("digits@champion")}, port=port)


def test_a_public_host_without_keys_and_an_empty_set_of_endpoints_are_refused(filled: Project) -> None:
    with pytest.raises(SettingsError, match="reachable from other machines"):
        server_command(filled.settings, endpoints={"digits": endpoint("digits@champion")}, host="0.0.0.0")
    with pytest.raises(SettingsError, match="nothing to serve"):
        server_command(filled.settings, endpoints={})


def test_endpoints_are_checked_before_the_start(filled: Project) -> None:
    check_endpoints(filled.settings, {"digits": endpoint("digits@champion"), "pinned": endpoint("digits/1")})
    for model in ("digits@nobody", "digits/9", "nobody@champion"):
        with pytest.raises(NotFoundError):
            check_endpoints(filled.settings, {"one": endpoint(model)})
    jax = endpoint("digits/1").model_copy(update={"format": "jax"})
    with pytest.raises(NotFoundError, match=r"`jax`.*`onnx`"):
        check_endpoints(filled.settings, {"one": jax})


def test_secrets_are_in_one_private_file_only(tmp_path: Path) -> None:
    project = make_project(tmp_path, api_keys=[KEY])
    command = server_command(project.settings, endpoints={"digits": endpoint("digits@champion")})
    assert KEY not in " ".join([*command.argv, *command.env.values()])
    path = command.request.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    keys = load_request(path).settings.serving.api_keys
    assert [key.get_secret_value() for key in keys] == [KEY]


def test_folders_of_dead_servers_are_removed_at_the_next_start(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    first = server_command(project.settings, endpoints={"digits": endpoint("digits@champion")}).request
    second = server_command(project.settings, endpoints={"digits": endpoint("digits@champion")}).request
    os.utime(first.path, (1, 1))
    new_request(project.settings, die_with_parent=False)
    assert (first.folder.exists(), second.folder.exists()) == (False, True)


@pytest.mark.bentoml
def test_a_server_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    server = start_server(
        project.settings, endpoints={"digits": endpoint("digits@champion")}, log_file=tmp_path / "log"
    )
    server.command.request.path.write_text("{")
    with pytest.raises(ServiceError, match="a launch request is not readable"):
        server.wait_started(30)
    assert server.stop() != 0


def test_addresses_of_all_interfaces_are_called_on_loopback() -> None:
    assert ServerAddress(host="0.0.0.0", port=3000, pid=1, workers=1).url == "http://127.0.0.1:3000"
    assert ServerAddress(host="::1", port=3000, pid=1, workers=1).url == "http://[::1]:3000"
