"""Streams of a real server, its worker's death and its end; and what the command line says of streams."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from http_kit import serving_http
from serving_kit import Project, affine_model, make_project, slow_model, wait_until
from stream_kit import (
    CHAIN,
    COUNTER,
    SLOW,
    build_streams,
    chain_model,
    counter_model,
    run_chain,
    session_of,
    streaming,
)

from noa.errors import ServiceError, SignatureError
from noa_cli.__main__ import run
from noa_serving import Client, check_endpoints, start_server
from noa_serving.packaging import make_package

PROMPT = np.array([[3, 1, 4]], dtype=np.int64)
TOML = """
[endpoints.writer]
model = "chain@champion"
[endpoints.writer.stream]
feeds = { tokens = "append(next, 1)" }
stop = { output = "next", equals = 0 }
"""


@pytest.mark.bentoml
def test_a_real_server_streams_ends_well_and_tells_of_a_worker_that_died(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state)
    project.publish("chain", chain_model())
    project.publish("slow", lambda folder: slow_model(folder, steps=60))
    endpoints = {
        "chain": streaming("chain@champion", CHAIN),
        "slow": streaming("slow@champion", {**SLOW, "max_steps": 40}),
    }
    wanted = run_chain(session_of(chain_model(), tmp_path / "reference"), PROMPT, CHAIN["max_steps"])
    x = {"x": np.ones((1, 384), np.float32)}
    with start_server(project.settings, endpoints=endpoints, log_file=tmp_path / "server.log") as process:
        ready = process.wait_ready(200)
        with Client(ready.url) as client:
            steps = list(client.stream("chain", {"tokens": PROMPT}))
            assert [step.outputs["next"].tobytes() for step in steps] == [one["next"].tobytes() for one in wanted]

            broken = client.stream("slow", x)
            assert next(broken).number == 1
            os.kill(int(str(client.status()["worker"])), signal.SIGKILL)
            with pytest.raises(ServiceError, match="the stream broke off after") as caught:
                list(broken)
            assert "noa status" in str(caught.value)
            wait_until(client.ready, timeout_s=200, what="another worker")

            last = client.stream("slow", x)
            assert next(last).number == 1
            ended = threading.Thread(target=process.stop)
            ended.start()
            rest = list(last)  # what was begun is ended before the server is
            assert [step.number for step in rest] == list(range(2, 41))
            assert last.end is not None
            assert last.end.reason == "max_steps"
            ended.join(60)
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("commands"), empty_state)
    project.publish("chain", chain_model())
    project.publish("counter", counter_model())
    project.publish("other", affine_model(2.0))
    root = Path(project.settings.root)
    (root / "noa.toml").write_text(TOML)
    (root / "in.json").write_text('{"x": [2.0]}')
    (root / "late.json").write_text('{"x": [0.0, 98.0]}')
    return project


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    app, _ = build_streams(project, counter=streaming("counter@champion", COUNTER))
    with serving_http(app) as address:
        yield address


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project.settings.root)
    return Path(project.settings.root)


@pytest.mark.usefixtures("here")
def test_the_command_prints_a_line_for_each_step(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    ask = ["predict", "counter", "--input", "in.json", "--stream", "--url", url]
    assert run([*ask, "--json"]) == 0
    *steps, last = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert steps == [{"step": n, "outputs": {"y": [2.0 + n]}} for n in (1, 2, 3)]
    assert (last["end"]["reason"], last["end"]["steps"], last["end"]["version"]) == ("stop", 3, 1)
    assert run([*ask, "--max-steps", "1"]) == 0
    assert [list(json.loads(line)) for line in capfd.readouterr().out.splitlines()] == [["step", "outputs"], ["end"]]


@pytest.mark.usefixtures("here")
def test_lines_for_people_and_errors_in_the_middle(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["predict", "counter", "--input", "in.json", "--stream", "--url", url]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == ["1  y: [3.0]", "2  y: [4.0]", "3  y: [5.0]"]
    assert "ended by stop after 3 steps" in lines[3]
    assert "computed by counter/1 (" in lines[4]
    assert run(["predict", "counter", "--input", "late.json", "--stream", "--url", url]) == 1
    told = capfd.readouterr()
    assert told.out.splitlines() == ["1  y: [1.0, 99.0]", "2  y: [2.0, 100.0]"]
    assert "cannot compute these values" in told.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["counter", "--max-steps", "2"], "`--max-steps` is for streams"),
        (["counter/1", "--stream"], "streams are run by a server"),
        (["other", "--stream", "--url"], "no model `other` is served here"),
    ],
)
def test_what_is_no_stream_is_said_to_be_none(
    url: str, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [url] if arguments[-1] == "--url" else []
    assert run(["predict", *arguments, *more, "--input", "in.json"]) == 1
    assert said in capfd.readouterr().err


def test_settings_that_do_not_fit_the_registered_model_are_told_with_their_place(
    project: Project, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = here / "noa.toml"
    assert run(["config", "validate"]) == 0
    capfd.readouterr()
    cases = {
        "append(nxt, 1)": "names output `nxt`, which the model does not have, with `chain/1`",
        "append(next, 0)": "",
        "score": "puts output `score` into input `tokens`",
    }
    for text, said in cases.items():
        file.write_text(TOML.replace("append(next, 1)", text))
        code = run(["config", "validate"])
        told = capfd.readouterr().err
        assert code == (1 if said else 0), told
        if said:
            assert "`endpoints.writer.stream.feeds`" in told
            assert f"{file}:5:" in told
            assert said in told
    file.write_text(TOML.replace("chain@champion", "nobody@champion"))
    assert run(["config", "validate"]) == 0  # what is not registered yet is known later
    capfd.readouterr()
    file.write_text(TOML)
    rule = streaming("chain@champion", {"feeds": {"tokens": "score"}})
    with pytest.raises(SignatureError, match=r"\[endpoints.writer\] with chain/1"):
        check_endpoints(project.settings, {"writer": rule})


def test_a_package_takes_the_streams_of_its_endpoint_along(project: Project) -> None:
    from noa.settings import load_settings

    stream = {**CHAIN, "stop": {"output": "next", "equals": [0, 3]}, "emits": ["next"]}
    rule = streaming("chain@champion", stream)
    with project.registry() as registry:
        package = make_package(registry, "writer", rule, project.settings.serving)
        with pytest.raises(SignatureError):
            make_package(
                registry,
                "writer",
                streaming("chain@champion", {"feeds": {"tokens": "score"}}),
                project.settings.serving,
            )
    folder = Path(project.settings.root) / "packed"
    package.write(folder)
    assert load_settings(folder, outside=()).settings.endpoints["writer"].stream == rule.stream
