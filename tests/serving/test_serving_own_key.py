"""A project calls its own server without being given a key, and tells the one it uses to nobody else."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from serving_kit import Project, affine_model, endpoint

from noa.errors import InvalidInputError
from noa_flows.deployment import _read_reports
from noa_serving import Client, key_to_call_own, start_server
from noa_serving.api_keys import KeyFile

X = np.array([[1, 2, 3, 4]], dtype=np.float32)


def test_the_key_of_a_start_opens_that_server_and_ends_with_it(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0))
    settings = project.settings
    KeyFile(settings.serving.keys_file).add("somebody", now=datetime.now(UTC))
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        key = key_to_call_own(settings, address.url)
        assert key == server.command.request.own_key
        assert stat.S_IMODE(server.command.request.path.stat().st_mode) == 0o600
        with Client(address.url, api_key=key) as client:
            assert client.predict("digits", {"x": X}).outputs["total"].tolist() == [20]
            assert "digits" in client.status()["endpoints"]  # it may do everything
        assert "digits" in _read_reports(settings, address.url)  # as the flows ask
        with Client(address.url) as client, pytest.raises(InvalidInputError, match="asks for a key"):
            client.status()
        assert key_to_call_own(settings, f"http://127.0.0.1:{address.port + 1}") is None
        serving = settings.serving.model_validate({"client_key": "given-by-somebody"})
        given = settings.model_copy(update={"serving": serving})
        assert key_to_call_own(given, address.url) == "given-by-somebody"
        assert key not in " ".join([*server.command.argv, *server.command.env.values(), repr(server.command)])
    assert key_to_call_own(settings, address.url) is None
    assert key not in (tmp_path / "log").read_text()


def test_what_a_dead_server_left_opens_nothing(project: Project) -> None:
    folder = project.settings.state_dir / "serving" / "1-dead"
    folder.mkdir(parents=True)
    (folder / "ready.json").write_text('{"port": 3000}')
    assert key_to_call_own(project.settings, "http://127.0.0.1:3000") is None
    (folder / "request.json").write_text("{")
    assert key_to_call_own(project.settings, "http://127.0.0.1:3000") is None
