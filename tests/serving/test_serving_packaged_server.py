"""A package that runs: it answers as `noa serve` does, needs nothing else, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from packaged_kit import Packaged, ask, begin, end, link_environment, predict, running, wait_for
from serving_kit import Project, affine_model, endpoint, make_project

from certificates import Authority
from noa.digests import build_manifest
from noa_serving import Client, _parent_death, start_server
from noa_serving._launch_request import ARBITER_VARIABLE, arbiter_of
from noa_serving.packaging import make_package

pytestmark = [pytest.mark.bentoml, pytest.mark.timeout(600)]
KEY = "a-key-of-sixteen-characters"


def packed(project: Project, folder: Path, *, model: str = "digits/2", **serving: object) -> Path:
    with project.registry() as registry:
        settings = project.settings.serving.model_copy(update=serving)
        make_package(registry, "digits", endpoint(model), settings).write(folder)
    return folder


@pytest.fixture(scope="module")
def package(content: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(content, tmp_path_factory.mktemp("packages") / "digits-2")


def infer_binary(port: int) -> tuple[int, bytes]:
    data = np.arange(8, dtype="<f4").tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"id": "7", "inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return ask(port, "POST", "/v2/models/digits/infer", head + data, headers)


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
JSON_REQUESTS = [
    ("/predict/digits", {"inputs": {"x": [[1, 2, 3, 4]]}}),
    ("/predict/digits", {"inputs": [1, 2, 3, 4]}),
    ("/predict/digits", {"inputs": {"y": [[1]]}}),
    ("/predict/digits", {"inputs": {"x": [[1, 2, 3]]}}),
    ("/predict", {"instances": [[1, 2, 3, 4]]}),
    ("/invocations", {"inputs": [[1, 2, 3, 4]]}),
    ("/predict/nobody", {"inputs": [[1]]}),
    ("/v2/models/digits/versions/2/infer", {"inputs": [TENSOR]}),
    ("/v2/models/digits/versions/1/infer", {"inputs": []}),
]
PAGES = ["/v2", "/v2/models/digits", "/v2/models/digits/config", "/v2/health/live", "/openapi.json", "/nothing"]


def test_a_package_answers_exactly_as_noa_serve_does(content: Project, package: Path, tmp_path: Path) -> None:
    before = build_manifest(package)
    log = tmp_path / "server.log"
    with (
        start_server(content.settings, endpoints={"digits": endpoint("digits/2")}, log_file=log) as server,
        running(package, tmp_path / "run") as packaged,
    ):
        ports = (server.wait_ready(timeout_s=150).port, packaged.port)
        for path in PAGES:
            there, here = (ask(port, "GET", path) for port in ports)
            # The page of the API names the port that it is served on.
            assert here[1].replace(str(ports[1]).encode(), b"PORT") == there[1].replace(str(ports[0]).encode(), b"PORT")
            assert here[0] == there[0]
        for path, table in JSON_REQUESTS:
            body = json.dumps(table).encode()
            there, here = (ask(port, "POST", path, body, {"content-type": "application/json"}) for port in ports)
            assert here == there, path
        assert infer_binary(ports[0]) == infer_binary(ports[1])
        with content.registry() as registry:
            digest = registry.resolve("digits/2").digest
        status, answer = predict(packaged.port, [1, 2, 3, 4])
        assert (status, answer["digest"], answer["version"]) == (200, digest, 2)
        assert packaged.stop() == 0
    assert [process for process in packaged.tree if process.is_running() and process.status() != "zombie"] == []
    assert [path for path in (tmp_path / "run" / "tmp").iterdir() if path.name.startswith("noa-")] == []
    assert build_manifest(package) == before  # a root that is read-only would do


def test_a_package_that_was_changed_answers_nothing_and_says_why(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(package), str(copy)], check=True)
    path = copy / "model" / "files" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    packaged = begin(copy, tmp_path / "run")
    try:
        wait_for(lambda: "refused digits/2" in packaged.log, packaged)
        assert "`model.onnx` was changed" in packaged.log
        wait_for(lambda: ask(packaged.port, "GET", "/health/startup")[0] == 200, packaged)
        assert not packaged.is_ready()
        status, answer = predict(packaged.port, [1, 2, 3, 4])
        assert status == 503
        assert str(tmp_path) not in json.dumps(answer)
    finally:
        end(packaged)


def test_beyond_loopback_nobody_is_answered_without_a_key(content: Project, package: Path, tmp_path: Path) -> None:
    refused = begin(package, tmp_path / "refused", host="0.0.0.0")
    try:
        assert refused.process.wait(150) == 1
    finally:
        end(refused)
    assert "callers need no key" in refused.log
    assert "Traceback" not in refused.log
    keys = {"NOA__SERVING__API_KEYS": json.dumps([KEY]), "NOA__REGISTRY__DATABASE_URL": "sqlite:////nowhere/noa.db"}
    with running(package, tmp_path / "keys", host="0.0.0.0", env=keys) as packaged:
        assert predict(packaged.port, [1, 2, 3, 4])[0] == 401
        assert predict(packaged.port, [1, 2, 3, 4], {"authorization": f"Bearer {KEY}"})[0] == 200
        assert KEY not in packaged.log


def test_a_package_with_a_certificate_answers_over_tls_only(package: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("server", addresses=("127.0.0.1",))
    tls = {"NOA__SERVING__TLS_CERTIFICATE": str(pair.certificate), "NOA__SERVING__TLS_KEY": str(pair.key)}
    packaged = begin(package, tmp_path / "run", env=tls)
    context = ssl.create_default_context(cafile=authority.file)
    url = f"https://127.0.0.1:{packaged.port}"
    try:
        with Client(url, tls=context) as client:
            wait_for(lambda: client.answers("/v2/health/ready"), packaged)
            assert client.predict("digits", {"x": np.array([[1, 2, 3, 4]], np.float32)}).version == 2
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(packaged.port, "GET", "/v2/health/live")
    finally:
        end(packaged)


def test_a_dead_worker_comes_back_in_a_container_too(content: Project, tmp_path: Path) -> None:
    package = packed(content, tmp_path / "package", workers=2)
    with running(package, tmp_path / "run", env={"BENTOML_CONTAINERIZED": "true"}) as packaged:
        arbiter = psutil.Process(packaged.process.pid)
        before = {process.pid for process in arbiter.children()}
        assert len(before) == 2
        psutil.Process(min(before)).kill()
        wait_for(
            lambda: len({one.pid for one in arbiter.children() if one.status() != "zombie"} - before) == 1, packaged
        )
        wait_for(lambda: b"degraded" not in packaged.get("/v2/health/ready")[1], packaged)
        assert predict(packaged.port, [1, 2, 3, 4])[0] == 200


def test_a_worker_whose_parent_is_the_first_process_of_a_container_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parent_death.os, "getppid", lambda: 1)
    monkeypatch.setattr(_parent_death.ctypes, "CDLL", lambda *_args, **_options: _Quiet())
    _parent_death.die_with_parent(arbiter_of({ARBITER_VARIABLE: "1"}))
    with pytest.raises(SystemExit):
        _parent_death.die_with_parent(arbiter_of({ARBITER_VARIABLE: "77"}))
    with pytest.raises(SystemExit):
        _parent_death.die_with_parent(arbiter_of({}))


class _Quiet:
    def prctl(self, *_arguments: int) -> int:
        return 0


NOT_SERVING = ("torch", "jax", "mlflow", "sqlalchemy", "noa_registry")


def asks_as_triton_does(packaged: Packaged) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{packaged.port}")
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
    assert client.infer("digits", [tensor]).as_numpy("y").tolist() == [[3.0, 6.0, 9.0, 12.0]]
    client.close()
    assert packaged.stop() == 0


def finds(python: Path, modules: tuple[str, ...]) -> list[str]:
    """Return those of the modules that an environment has."""
    code = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
    command = [python, "-I", "-c", code, *modules]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def tripled(tmp_path: Path, empty_state: Path) -> Path:
    """The package of a model with the scale 3."""
    project = make_project(tmp_path / "project", empty_state)
    project.publish("digits", affine_model(3.0))
    return packed(project, tmp_path / "package", model="digits@champion")


def test_the_lean_set_is_enough_where_nothing_else_is_installed(tripled: Path, tmp_path: Path) -> None:
    python = link_environment(tmp_path / "venv", tripled)
    assert finds(python, (*NOT_SERVING, "noa_serving")) == ["noa_serving"]
    with running(tripled, tmp_path / "run", python=python) as packaged:
        asks_as_triton_does(packaged)


@pytest.mark.conformance  # the sample is the test above
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_lean_set_is_enough_in_a_fresh_environment(tripled: Path, tmp_path: Path) -> None:
    """Build the Bento, install nothing but its requirements, serve it, and ask it as Triton's client does."""
    package = tripled
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-compile", "-r", "requirements.txt"]
    subprocess.run(install, cwd=package, check=True, capture_output=True, text=True)
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentos"), "BENTOML_DO_NOT_TRACK": "True"}
    build = [python, "-m", "bentoml", "build", "."]
    subprocess.run(build, cwd=package, check=True, capture_output=True, text=True, env=environment)
    (bento,) = (path for path in (tmp_path / "bentos" / "bentos" / "noa-digits").iterdir() if path.is_dir())
    assert build_manifest(bento / "src" / "model") == build_manifest(package / "model")
    docker = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert docker.index("./src/wheels") < docker.index("pip install -r")
    assert finds(python, NOT_SERVING) == []
    for number, what in enumerate((package, bento)):
        with running(what, tmp_path / f"run{number}", python=python) as packaged:
            asks_as_triton_does(packaged)
    assert Path(sys.executable) != python
