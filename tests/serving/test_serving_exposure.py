"""A server beyond loopback asks who calls, or does not start."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from serving_kit import Project, affine_model, ask, build_app, endpoint, make_project

from noa.errors import SettingsError
from noa_serving import Client, check_exposure, server_command, start_server
from noa_serving.api_keys import KeyFile

EVERYWHERE = "0.0.0.0"
RULES = {"digits": endpoint("digits@champion")}


def test_a_public_host_needs_a_key_that_is_valid(project: Project) -> None:
    file = KeyFile(project.settings.serving.keys_file)

    def refusal() -> str:
        with pytest.raises(SettingsError) as caught:
            server_command(project.settings, endpoints=RULES, host=EVERYWHERE)
        assert not list(project.settings.state_dir.glob("serving/*"))  # nothing was written
        return str(caught.value)

    assert "`noa api-keys new NAME`" in refusal()
    then = datetime.now(UTC) - timedelta(days=2)
    file.add("old", now=then, lifetime=timedelta(days=1))
    assert "1 keys, none valid" in refusal()
    file.revoke(file.add("gone", now=then)[0].id, now=then)
    assert "2 keys, none valid" in refusal()
    file.add("good", now=then)
    server_command(project.settings, endpoints=RULES, host=EVERYWHERE)


def test_a_key_of_the_settings_will_do(tmp_path: Path) -> None:
    project = make_project(tmp_path, api_keys=["a-key-of-sixteen-characters"])
    server_command(project.settings, endpoints=RULES, host=EVERYWHERE)


def test_a_damaged_file_of_keys_stops_the_start_on_loopback_too(project: Project) -> None:
    path = project.settings.serving.keys_file
    path.write_text("{")
    with pytest.raises(SettingsError, match="not readable"):
        server_command(project.settings, endpoints=RULES)


def test_a_worker_beyond_loopback_asks_for_keys_whatever_became_of_the_file(content: Project) -> None:
    for changes, status in (({}, 401), ({"allow_unauthenticated": True}, 200)):
        serving = content.settings.serving.model_copy(update={"host": EVERYWHERE, **changes})
        app = build_app(content.settings.model_copy(update={"serving": serving}), digits="digits@champion")
        assert ask(app, "GET", "/").status == status
        app._application.close()


def test_the_server_process_looks_again(project: Project, tmp_path: Path) -> None:
    file = KeyFile(project.settings.serving.keys_file)
    key, _ = file.add("good", now=datetime.now(UTC))
    command = server_command(project.settings, endpoints=RULES, host=EVERYWHERE)
    file.revoke(key.id, now=datetime.now(UTC))
    done = subprocess.run(
        command.argv, env={**os.environ, **command.env}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "reachable from other machines" in done.stderr
    assert not command.ready_file.exists()


def test_it_may_be_allowed_and_is_said_loudly(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, allow_unauthenticated=True)
    project.publish("digits", affine_model(2.0))
    check_exposure(project.settings.serving)
    log = tmp_path / "log"
    with start_server(project.settings, endpoints=RULES, host=EVERYWHERE, log_file=log) as server:
        address = server.wait_ready()
        with Client(address.url) as client:
            assert "digits" in client.endpoints()
    assert "WARNING: anybody who reaches 0.0.0.0 is answered without a key" in log.read_text()
