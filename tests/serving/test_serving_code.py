"""Models that run their own code (MLflow's pyfunc): allowed by name, in a process of their own, never in the way."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_kit import serving_grpc
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Project, affine_model, ask, call, make_project, wait_until
from tritonclient.utils import InferenceServerException

from noa.errors import InvalidInputError
from noa.settings import CodeSettings, EndpointSettings, Settings
from noa.signatures import Signature
from noa_conversion.imports.importer import import_model
from noa_registry import Registry
from noa_serving import Client, ServerProcess, check_endpoints, start_server
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._code_process import CodeRunnable
from noa_serving._code_wire import ERROR, OUTPUTS, WireError, pack, receive, send, unpack
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._format_choice import choose_format
from noa_serving._http import ModelFailedError
from noa_serving._runtimes import Runtimes
from noa_serving._server_process import ServerAddress
from noa_serving.packaging import make_package

FEATURES = 4
HANG_S = 5.0

pytestmark = pytest.mark.slow  # each start of such a process imports MLflow

LIMITS = CodeSettings(allow=("odd",), start_s=120.0, run_s=2.0)
ROWS = np.array([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]])

# What a row begins with says what the model does with it.
CUSTOM = """
import os, sys, time
import mlflow, numpy as np

class Odd(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        rows = np.asarray(model_input)
        what = rows[:, 0]
        if (what == 100).any():
            os._exit(9)
        if (what == 101).any():
            while True:
                time.sleep(0.01)
        if (what == 102).any():
            raise ValueError("a row that this model does not like: /etc/passwd")
        if (what == 103).any():
            return np.zeros((len(rows), 7))
        if (what == 104).any():
            hoard = []
            while True:
                hoard.append(np.ones(1 << 22))
        if (what == 105).any():
            print("noise on the standard output", flush=True)
        if (what == 106).any():
            secret = sum("SECRET" in text for pair in os.environ.items() for text in pair)
            return np.full(rows.shape, float(secret))
        return rows * 2.0

mlflow.models.set_model(Odd())
"""


def odd(what: float) -> dict[str, np.ndarray]:
    return {"input": np.array([[what, 0.0, 0.0, 0.0]])}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    """A project with `iris` (scikit-learn), `odd` (a custom model), both sealed with `--allow-pickle`, and `digits`."""
    root = tmp_path_factory.mktemp("models")
    save_models(root)
    project = make_project(root / "project", empty_state)
    np.savez(root / "example.npz", input=ROWS)
    with project.registry() as registry:
        for name in ("iris", "odd"):
            import_model(
                registry,
                root / name,
                name=name,
                actor="tests",
                allow_pickle=name,
                example=root / "example.npz",
            )
    project.publish("digits", affine_model(2.0, features=FEATURES))
    return project


def save_models(root: Path) -> None:
    """Save both models with stock MLflow, which warns about its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        import mlflow.sklearn
        from sklearn.linear_model import LogisticRegression

        x = np.random.default_rng(0).normal(size=(64, FEATURES))
        model = LogisticRegression().fit(x, (x.sum(axis=1) > 0).astype(np.int64))
        table = mlflow.models.infer_signature(x, model.predict(x))
        mlflow.sklearn.save_model(model, str(root / "iris"), signature=table)
        (root / "odd.py").write_text(CUSTOM)
        same = mlflow.models.infer_signature(x, x)
        mlflow.pyfunc.save_model(str(root / "odd"), python_model=str(root / "odd.py"), signature=same)


def allowing(project: Project, *names: str, **code: object) -> Settings:
    """The settings of a project that allow the code of some models."""
    table = {"allow": names, "start_s": 120.0, **code}
    serving = project.settings.serving.model_copy(update={"code": CodeSettings.model_validate(table)})
    return project.settings.model_copy(update={"serving": serving})


def mlflow_of(model: str) -> EndpointSettings:
    return EndpointSettings(model=model, format="mlflow")


def load(project: Project, name: str, limits: CodeSettings = LIMITS) -> CodeRunnable:
    with project.registry() as registry:
        folder = registry.open_format(registry.resolve(f"{name}/1"), "mlflow")
    return CodeRunnable(folder, model=name, limits=limits, threads=1)


@pytest.fixture(scope="module")
def runnable(models: Project) -> CodeRunnable:
    return load(models, "odd")


@pytest.fixture(autouse=True)
def no_rest(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no failure of one test be counted in the next."""
    yield
    if "runnable" in request.fixturenames:
        request.getfixturevalue("runnable")._keeper._failures = 0
        request.getfixturevalue("runnable")._keeper._rests_until = 0.0


def test_a_model_computes_in_another_process_without_the_servers_environment(
    models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOA__SERVING__CLIENT_KEY", "SECRET-of-the-server")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    one = load(models, "odd")
    np.testing.assert_array_equal(one.run({"input": ROWS})["output"], ROWS * 2.0)
    np.testing.assert_array_equal(one.run(odd(106))["output"], np.zeros((1, FEATURES)))
    assert one.pid is not None
    child = psutil.Process(one.pid)
    assert child.ppid() == os.getpid()
    named = set(child.environ())
    assert not {name for name in named if name.startswith(("NOA", "AWS"))}
    scratch = Path(child.cwd())
    assert Path(child.environ()["HOME"]) == scratch
    del one
    gc.collect()
    wait_until(lambda: not child.is_running(), what="the end of the process with its model")
    wait_until(lambda: not scratch.exists(), what="the end of its folder")


def test_what_the_wire_does_not_carry_is_refused_by_name_before_anything_starts(
    models: Project, tmp_path: Path
) -> None:
    with models.registry() as registry:
        folder = registry.open_format(registry.resolve("odd/1"), "mlflow")
    copy = Path(shutil.copytree(folder, tmp_path / "texts"))
    signature = Signature.load(copy)
    texts = replace(signature.inputs[0], dtype="string")
    (copy / "signature.json").unlink()
    replace(signature, inputs=(texts,)).save(copy)
    with pytest.raises(InvalidInputError, match=r"tensor `input` cannot be sent .*received string"):
        CodeRunnable(copy, model="odd", limits=LIMITS, threads=1)


def test_an_error_of_the_model_is_of_this_input_and_the_process_goes_on(runnable: CodeRunnable) -> None:
    before = runnable.run({"input": ROWS}) and runnable.pid
    with pytest.raises(InvalidInputError, match="a row that this model does not like"):
        runnable.run(odd(102))
    runnable.run(odd(105))
    assert runnable.pid == before


def test_a_process_that_dies_fails_its_run_only_and_is_started_again(runnable: CodeRunnable) -> None:
    runnable.run({"input": ROWS})
    before = runnable.pid
    with pytest.raises(ModelFailedError) as found:
        runnable.run(odd(100))
    assert found.value.status == 502
    wait_until(lambda: runnable.pid not in (None, before), timeout_s=120, what="a new process")
    np.testing.assert_array_equal(runnable.run({"input": ROWS})["output"], ROWS * 2.0)


def test_a_run_that_hangs_is_ended_in_time_and_the_next_one_is_answered(runnable: CodeRunnable) -> None:
    runnable.run({"input": ROWS})
    before = runnable.pid
    started = time.monotonic()
    with pytest.raises(ModelFailedError) as found:
        runnable.run(odd(101))
    assert found.value.status == 504
    assert LIMITS.run_s <= time.monotonic() - started < LIMITS.run_s + 5
    assert before is not None
    assert not psutil.pid_exists(before)
    np.testing.assert_array_equal(runnable.run({"input": ROWS})["output"], ROWS * 2.0)


def test_outputs_that_are_not_what_the_signature_says_fail_their_run_only(runnable: CodeRunnable) -> None:
    with pytest.raises(InvalidInputError, match="something else than its signature says"):
        runnable.run(odd(103))
    np.testing.assert_array_equal(runnable.run({"input": ROWS})["output"], ROWS * 2.0)


def test_memory_and_outputs_beyond_the_limits_fail_their_run_only(models: Project) -> None:
    one = load(
        models, "odd", LIMITS.model_copy(update={"memory_bytes": 1 << 30, "run_s": 60.0, "max_output_bytes": 1024})
    )
    for inputs in (odd(104), {"input": np.ones((1000, FEATURES))}):
        with pytest.raises(ModelFailedError) as found:
            one.run(inputs)
        assert found.value.status == 502
        np.testing.assert_array_equal(one.run({"input": ROWS})["output"], ROWS * 2.0)


def test_a_process_that_fails_again_and_again_rests_and_says_for_how_long(runnable: CodeRunnable) -> None:
    statuses: list[int] = []
    for _ in range(3):
        with pytest.raises(ModelFailedError) as found:
            runnable.run(odd(100))
        statuses.append(found.value.status)
        if found.value.status == 503:
            assert found.value.retry_after_s is not None
            assert found.value.retry_after_s >= 1
    assert statuses == [502, 502, 503]


def test_what_nobody_allowed_is_refused_by_name(models: Project) -> None:
    with pytest.raises(InvalidInputError, match=r"`odd` in `serving.code.allow`"):
        check_endpoints(models.settings, {"odd": mlflow_of("odd/1")})
    with pytest.raises(InvalidInputError, match=r"serving.code.allow"):
        check_endpoints(models.settings, {"odd": EndpointSettings(model="odd/1", format="auto")})
    check_endpoints(allowing(models, "odd"), {"odd": mlflow_of("odd/1")})
    one = Endpoint("odd", mlflow_of("odd/1"), threads=1)
    with models.registry() as registry:
        one.follow(registry)
    assert one.failure is not None
    assert "runs code of the model, which the server does not allow" in one.failure.reason


def test_auto_takes_code_only_where_it_is_allowed_and_nothing_else_can_be_had(models: Project) -> None:
    with models.registry() as registry:
        version = registry.resolve("odd/1")
        found = choose_format(registry, version, Runtimes(threads=1, code=LIMITS))
        assert found == ("mlflow", "the only format")
        with pytest.raises(InvalidInputError, match="`mlflow` runs code of the model"):
            choose_format(registry, version, Runtimes(threads=1))
        with pytest.raises(InvalidInputError, match="no format of `odd/1` can be chosen"):
            make_package(registry, "odd", EndpointSettings(model="odd/1", format="auto"), models.settings.serving)


def test_code_that_was_allowed_for_another_model_is_refused(models: Project) -> None:
    with models.registry() as registry:
        folder = registry.open_format(registry.resolve("odd/1"), "mlflow")
    with pytest.raises(InvalidInputError, match="allowed for another model"):
        CodeRunnable(folder, model="iris", limits=LIMITS, threads=1)


@given(
    names=st.lists(st.text(min_size=1, max_size=8), max_size=3, unique=True),
    rows=st.integers(min_value=0, max_value=5),
)
def test_tensors_survive_the_wire(names: list[str], rows: int) -> None:
    tensors = {name: np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) for name in names if name != "__metadata__"}
    found = unpack(pack(tensors))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


@given(data=st.binary(max_size=200))
def test_whatever_a_process_sends_is_a_frame_or_an_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        try:
            kind, payload = receive(ours, most_bytes=64, deadline=time.monotonic() + 5)
            assert len(payload) <= 4096
            if kind == OUTPUTS:
                unpack(payload)
        except WireError:
            pass


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"o" + (1 << 62).to_bytes(8, "little"))
        with pytest.raises(WireError, match="larger than the 64 that are allowed"):
            receive(ours, most_bytes=64, deadline=time.monotonic() + 5)
        send(theirs, ERROR, b"x")
        with pytest.raises(WireError) as found:
            receive(theirs, most_bytes=64, deadline=time.monotonic() + 0.05)
        assert found.value.is_late


def build(settings: Settings, **models: str) -> AsgiApplication:
    runtimes = Runtimes.of(settings.serving, threads=1)
    rows = [Endpoint(name, mlflow_of(model), threads=1, runtimes=runtimes) for name, model in models.items()]
    follower = Follower(rows, lambda: Registry.open(settings.registry), poll_interval_s=0.05)
    follower.poll()
    assert all(row.current is not None for row in rows), [row.failure for row in rows]
    return AsgiApplication(Application(settings.serving, rows, follower))


@pytest.fixture(scope="module")
def app(models: Project) -> AsgiApplication:
    return build(allowing(models, "odd", run_s=30.0), odd="odd/1")


def test_the_routes_answer_for_such_a_model_as_for_any_and_it_never_computes_on_the_loop(app: AsgiApplication) -> None:
    generation = app._application.endpoints["odd"].current
    assert generation is not None
    assert generation.inline_items == 0
    assert generation.pool is not None
    answer = ask(app, "POST", "/predict/odd", {"inputs": ROWS.tolist()})
    assert answer.status == 200, answer.body
    assert answer.json["outputs"] == {"output": (ROWS * 2.0).tolist()}
    infer = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP64", "data": ROWS.ravel().tolist()}]}
    assert ask(app, "POST", "/v2/models/odd/infer", infer).json["outputs"][0]["data"] == (ROWS * 2.0).ravel().tolist()
    bad = ask(app, "POST", "/predict/odd", {"inputs": odd(102)["input"].tolist()})
    assert (bad.status, "/etc/passwd" in bad.error) == (400, False)
    assert ask(app, "POST", "/predict/odd", {"inputs": odd(100)["input"].tolist()}).status == 502
    assert ask(app, "POST", "/predict/odd", {"inputs": ROWS.tolist()}).status == 200
    status = ask(app, "GET", "/status").json["endpoints"]["odd"]
    assert (status["format"], status["runtime"]) == ("mlflow", generation.runtime)


def test_a_batch_in_which_the_process_dies_is_not_tried_item_by_item(app: AsgiApplication) -> None:
    async def many() -> list[int]:
        body = json.dumps({"inputs": odd(100)["input"].tolist()}).encode()
        headers = {"content-type": "application/json"}
        found = await asyncio.gather(*(call(app, "POST", "/predict/odd", body, headers) for _ in range(4)))
        return [one.status for one in found]

    assert set(asyncio.run(many())) <= {502, 503}


def test_grpc_answers_for_such_a_model_as_rest_does(app: AsgiApplication) -> None:
    with serving_grpc(app) as target, closing(triton.InferenceServerClient(target)) as client:

        def infer(rows: np.ndarray) -> np.ndarray:
            given = triton.InferInput("input", list(rows.shape), "FP64")
            given.set_data_from_numpy(rows)
            return client.infer("odd", [given]).as_numpy("output")

        np.testing.assert_array_equal(infer(ROWS), ROWS * 2.0)
        for what, status in ((102.0, "INVALID_ARGUMENT"), (100.0, "INTERNAL")):
            with pytest.raises(InferenceServerException) as found:
                infer(odd(what)["input"])
            assert status in str(found.value.status())
        np.testing.assert_array_equal(infer(ROWS), ROWS * 2.0)


@pytest.fixture(scope="module")
def served(models: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with both such models and `digits`."""
    settings = allowing(models, "iris", "odd", run_s=HANG_S)
    endpoints = {
        "iris": EndpointSettings(model="iris/1", format="auto"),
        "odd": mlflow_of("odd/1"),
        "digits": EndpointSettings(model="digits/1"),
    }
    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(settings, endpoints=endpoints, log_file=log) as process:
        process.wait_ready(240)
        yield process


def workers_of(process: ServerProcess) -> list[psutil.Process]:
    """The processes that have loaded a model of their own code."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [one for one in children if "noa_serving._code_child" in one.cmdline()]


def whole(process: ServerProcess) -> ServerAddress:
    """Wait until the server answers for all endpoints, and return its address."""
    address = process.wait_ready(240)
    wait_until(lambda: len(workers_of(process)) == 2, timeout_s=240, what="the processes of both models")
    return address


@pytest.mark.bentoml
def test_a_real_server_answers_with_scikit_learn_and_imports_neither_it_nor_pandas(served: ServerProcess) -> None:
    with Client(whole(served).url, timeout_s=60) as client:
        np.testing.assert_array_equal(client.predict("iris", {"input": ROWS}).outputs["output"], [1, 0])
        np.testing.assert_array_equal(client.predict("odd", {"input": ROWS}).outputs["output"], ROWS * 2.0)
        assert client.status()["endpoints"]["iris"]["format_choice"] == "the only format"
    children = workers_of(served)
    assert len(children) == 2
    (worker,) = {one.ppid() for one in children}
    mapped = {Path(one.path).name for one in psutil.Process(worker).memory_maps()}
    assert not [name for name in mapped if name.startswith(("lib_pandas", "_arrayfunctions", "_cyutility"))]
    assert not any("pandas" in one.path or "sklearn" in one.path for one in psutil.Process(worker).memory_maps())


@pytest.mark.bentoml
def test_a_model_that_hangs_or_dies_holds_up_no_other_and_comes_back(served: ServerProcess) -> None:
    address = whole(served)

    def post(what: float) -> int:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
        body = json.dumps({"inputs": odd(what)["input"].tolist()})
        with closing(connection):
            connection.request("POST", "/predict/odd", body, {"content-type": "application/json"})
            return connection.getresponse().status

    statuses: list[int] = []
    hanging = threading.Thread(target=lambda: statuses.append(post(101)))
    hanging.start()
    worst_s, answered = 0.0, 0
    x = np.ones((1, FEATURES), np.float32)
    with Client(address.url, timeout_s=60) as client:
        while hanging.is_alive():
            start = time.monotonic()
            client.predict("digits", {"x": x})
            client.predict("iris", {"input": ROWS})
            worst_s, answered = max(worst_s, time.monotonic() - start), answered + 1
    assert statuses == [504]
    assert answered > 5
    assert worst_s < HANG_S / 2, "a model that hangs holds up the others"
    wait_until(lambda: post(1) == 200, timeout_s=120, what="an answer after the hang")
    victims = workers_of(served)
    for one in victims:
        one.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=10)
    whole(served)  # also the one that nobody asks
    wait_until(lambda: post(1) == 200, timeout_s=120, what="an answer after the kill")


@pytest.mark.bentoml
def test_no_process_of_a_model_outlives_its_killed_worker(served: ServerProcess) -> None:
    whole(served)
    children = workers_of(served)
    os.kill(children[0].ppid(), signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == len(children)
