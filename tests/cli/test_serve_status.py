"""`noa status` knows the server that somebody started in another terminal, for as long as it lives."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from noa_cli.__main__ import run
from noa_flows import Command, Supervisor
from noa_serve import serving

KEY = "a-key-of-sixteen-characters"


@pytest.fixture
def status(registered: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(registered)

    def look(*options: str) -> str:
        capfd.readouterr()
        assert run(["status", *options]) == 0
        return capfd.readouterr().out

    return look


@pytest.mark.bentoml
def test_a_server_in_the_foreground_is_listed_while_it_lives(registered: Path, status: Callable[..., str]) -> None:
    def listed() -> list[dict[str, object]]:
        return [row for row in json.loads(status("--json")) if row["name"] == "noa serve"]

    assert listed() == []
    with serving(registered, "digits@champion", "numbers", "-o", f'serving.api_keys=["{KEY}"]') as (process, told):
        (row,) = listed()
        assert (row["state"], row["address"], row["pid"]) == ("running", told["url"], told["pid"])
        endpoints = row["endpoints"]
        assert isinstance(endpoints, list)
        found = {one["name"]: (one["model"], one["version"], one["state"]) for one in endpoints}
        assert found == {"digits": ("digits@champion", 2, "ready"), "numbers": ("digits/1", 1, "ready")}
        lines = [line.split() for line in status().splitlines()]
        assert any(words[:5] == ["noa", "serve", "running", told["url"], str(told["pid"])] for words in lines)
        assert any(words[:4] == ["digits", "digits@champion", "onnx", "2"] for words in lines)
        (registered / "in.json").write_text(json.dumps({"x": [[1, 2, 3, 4]]}))
        assert run(["predict", "numbers", "--input", "in.json", "-o", f'serving.api_keys=["{KEY}"]']) == 0
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.kill(int(str(told["pid"])), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while listed():
            assert time.monotonic() < deadline, "a server that was killed is still listed"
        assert list((registered / ".noa" / "serving").glob("*/request.json")), "what it left is not what hides it"
    psutil.wait_procs(tree, timeout=20)


def test_status_tells_what_runs_otherwise_than_the_settings_say_and_the_remedy_works(
    registered: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    state = registered / ".noa"
    for name in ("serving", "webhooks"):  # the project has an endpoint and no webhook
        Supervisor(state).start(
            Command(
                name=name,
                arguments=("sleep", "60"),
                environment=dict(os.environ),
                folder=registered,
                log_file=state / "logs" / f"{name}.log",
                address="http://127.0.0.1:9" if name == "serving" else None,
                settings_digest="sha256:of-other-settings",
            )
        )
    try:
        assert run(["status"]) == 0
        told = capfd.readouterr().err.splitlines()
        ends = ("Restart it: noa up --restart --only serving", "Stop it: noa down --only webhooks")
        assert [line.startswith(f"{name} runs") for line, name in zip(told, ("serving", "webhooks"), strict=True)]
        assert all(line.endswith(end) for line, end in zip(told, ends, strict=True))
        assert run(["down", "--only", "webhooks"]) == 0
        assert "stopped and gone: webhooks" in capfd.readouterr().out
        assert run(["status"]) == 0
        assert "webhooks" not in capfd.readouterr().err
    finally:
        assert run(["down"]) == 0


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def healthy() -> Generator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_restart_of_what_runs_with_these_settings_says_that_it_goes_on(
    registered: Path, healthy: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered)
    state = registered / ".noa"
    Supervisor(state).start(
        Command(
            name="serving",
            arguments=("sleep", "60"),
            environment=dict(os.environ),
            folder=registered,
            log_file=state / "logs" / "serving.log",
            address=healthy,
        )
    )
    try:
        assert run(["up", "--restart", "--only", "serving"]) == 0
        assert "nothing was started anew" in capfd.readouterr().err
        assert run(["up", "--only", "serving"]) == 0
        assert "anew" not in capfd.readouterr().err
    finally:
        assert run(["down"]) == 0
