"""The audit trail: one line of JSON per control action, whoever asks and however it ends."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from grpc_kit import serving_grpc
from serving_kit import Project, affine_model, ask, build_app, endpoint, make_project

from noa_serving import Client, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._audit import Action, Audit
from noa_serving._client_wire import Request
from noa_serving._http import RequestRefusedError
from noa_serving.api_keys import KeyFile

REGISTER = "/v2/systemsharedmemory/region/mine/register"


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("audit"), empty_state)
    project.publish("digits", affine_model(2.0))
    return project


@pytest.fixture
def region() -> Iterator[str]:
    path = Path(f"/dev/shm/noa-audit-{os.getpid()}")
    path.write_bytes(bytes(64))
    yield f"/{path.name}"
    path.unlink()


@pytest.fixture
def keys(stocked: Project) -> Iterator[KeyFile]:
    path = stocked.settings.serving.keys_file
    yield KeyFile(path)
    path.unlink(missing_ok=True)


@pytest.fixture
def app(stocked: Project, keys: KeyFile, tmp_path: Path) -> Iterator[AsgiApplication]:
    del keys
    (tmp_path / "regions").mkdir()
    app = build_app(stocked.settings, regions=tmp_path / "regions", digits="digits@champion")
    yield app
    app._application.close()


def rows(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    found = [json.loads(record.message) for record in caplog.records if record.name == "noa.audit"]
    caplog.clear()
    return found


def essence(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("who", "action", "target", "result", "status"))


def test_actions_are_told_and_nothing_else_is(
    app: AsgiApplication, region: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="noa.audit")
    body = {"key": region, "offset": 0, "byte_size": 64}
    assert ask(app, "POST", REGISTER, body).status == 200
    assert ask(app, "POST", REGISTER, {"key": "/../etc/passwd", "byte_size": 1}).status == 400
    assert ask(app, "POST", "/v2/repository/models/digits/unload", {}).status == 400
    assert ask(app, "POST", "/v2/systemsharedmemory/unregister").status == 200
    found = rows(caplog)
    assert [essence(row) for row in found] == [
        ("anyone", "shared_memory.register", "mine", "done", 200),
        ("anyone", "shared_memory.register", "mine", "refused", 400),
        ("anyone", "repository.unload", "digits", "refused", 400),
        ("anyone", "shared_memory.unregister", "*", "done", 200),
    ]
    assert str(found[2]["reason"]).startswith("models are not loaded or unloaded by hand here")
    assert datetime.fromisoformat(str(found[0]["time"])).tzinfo is not None
    for method, path in (("GET", "/"), ("POST", "/v2/repository/index"), ("GET", "/v2/systemsharedmemory/status")):
        ask(app, method, path)
    assert ask(app, "POST", "/predict/digits", {"inputs": [[1, 2, 3, 4]]}).status == 200
    assert rows(caplog) == []


def test_it_names_the_key_and_never_tells_it(
    app: AsgiApplication, keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    key, text = keys.add("narrow", now=datetime.now(UTC))
    app._application.guard.look()
    caplog.set_level(logging.INFO, logger="noa.audit")
    path = "/v2/repository/models/digits/load"
    assert ask(app, "POST", path, {}, {"x-api-key": text}).status == 403
    assert ask(app, "POST", path, {}, {"x-api-key": text + "x"}).status == 401
    with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
        for shown in (text, "wrong"):
            with pytest.raises(triton.InferenceServerException):
                client.load_model("digits", headers={"x-api-key": shown})
    assert not any(text in record.message for record in caplog.records)
    found = rows(caplog)
    assert [(row["who"], row["action"], row["status"]) for row in found] == [
        (key.id, "repository.load", 403),
        ("unknown", "repository.load", 401),
        (key.id, "repository.load", 403),
        ("unknown", "repository.load", 401),
    ]
    assert [row["address"] for row in found[2:]] == ["127.0.0.1"] * 2


def test_a_name_cannot_forge_a_line(app: AsgiApplication, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="noa.audit")
    name = 'x"}\n{"event": "control", "who": "root"\u2028'
    ask(app, "POST", f"/v2/repository/models/{name}/load")
    ask(app, "POST", f"/v2/repository/models/{'y' * 100_000}/load")
    lines = [record.message for record in caplog.records if record.name == "noa.audit"]
    assert all("\n" not in line and line.isascii() and len(line) < 2000 for line in lines)
    assert [json.loads(line)["target"] for line in lines] == [name, "y" * 256]


def test_strangers_cannot_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="noa.audit")
    now = 5.0
    audit = Audit(clock=lambda: now)
    refusal = RequestRefusedError("this server asks for a key", status=401)
    for _ in range(1000):
        audit.record(Action("repository.load", "digits"), grant=None, peer=("10.0.0.1", 1), error=refusal)
    now = 6.0
    audit.record(Action("repository.load", "digits"), grant=None, peer=("10.0.0.1", 1), error=refusal)
    found = rows(caplog)
    assert (len(found), found[-1]["untold"]) == (11, 990)


def test_a_server_writes_whole_lines_of_json(stocked: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    rules = {"digits": endpoint("digits@champion")}
    with (
        start_server(stocked.settings, endpoints=rules, log_file=log) as server,
        Client(server.wait_ready().url) as one,
    ):
        one._try(Request("POST", "/v2/repository/models/digits/unload", b"{}"), 10.0)
        one.close()
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    assert [essence(json.loads(line)) for line in lines] == [("anyone", "repository.unload", "digits", "refused", 400)]
    assert json.loads(lines[0])["address"] == "127.0.0.1"
