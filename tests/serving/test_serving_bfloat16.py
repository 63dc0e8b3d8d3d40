"""Tensors of bfloat16 (BF16) through every way in and out: raw by their bits, JSON as numbers, refused elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from bfloat_kit import BFLOAT, bfloat_model
from grpc_kit import serving_grpc
from http_kit import serving_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observe_kit import RECORD
from serving_kit import Answer, Project, ask, build_app, make_project
from tritonclient.grpc import service_pb2

from noa.errors import InvalidInputError
from noa_serving import Client
from noa_serving._asgi import AsgiApplication
from noa_serving._observer import PayloadRow
from noa_serving._payload_table import Redactor, write_table
from noa_serving.load_test import example_inputs

X = np.array([[1.5, -2, 0.25, 3], [1e30, 0, -0.0, 7]], dtype=np.float32)
B = X.astype(BFLOAT)
Y = (B.astype(np.float32) * 3).astype(BFLOAT)
TOTAL = (B.astype(np.float32) * 3).sum(axis=1)
NPY, ARROW = "application/x-npy", "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("bfloat"), empty_state)
    made.publish("bf", bfloat_model)
    return made


@pytest.fixture(scope="module")
def app(project: Project) -> AsgiApplication:
    return build_app(project.settings, bf="bf@champion")


@pytest.fixture(scope="module")
def url(app: AsgiApplication) -> Iterator[str]:
    with serving_http(app) as one:
        yield one


def raw(app: AsgiApplication, data: bytes, *, shape: tuple[int, ...] = (2, 4)) -> Answer:
    row = {"name": "x", "datatype": "BF16", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()
    return ask(app, "POST", "/v2/models/bf/infer", head + data, {"inference-header-content-length": str(len(head))})


def same(numbers: object, array: np.ndarray) -> bool:
    return np.array_equal(np.array(numbers, np.float32), array.astype(np.float32))


def as_bfloat(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    start = int(answer.headers["inference-header-content-length"])
    return np.frombuffer(answer.body, BFLOAT, 8, start).reshape(2, 4)


def test_json_takes_and_gives_numbers(app: AsgiApplication) -> None:
    found = ask(app, "POST", "/predict/bf", {"inputs": X.tolist()}).json["outputs"]
    assert same(found["y"], Y)  # type: ignore[index]  # JSON
    assert same(found["total"], TOTAL)  # type: ignore[index]  # JSON
    single = ask(app, "POST", "/predict/bf", {"inputs": X[0].tolist()}).json["outputs"]
    assert same(single["y"], Y[0])  # type: ignore[index]  # JSON
    row = {"name": "x", "datatype": "BF16", "shape": [2, 4], "data": X.reshape(-1).tolist()}
    outputs = ask(app, "POST", "/v2/models/bf/infer", {"inputs": [row]}).json["outputs"]
    assert outputs[0]["datatype"] == "BF16"  # type: ignore[index]  # JSON
    assert same(outputs[0]["data"], Y.reshape(-1))  # type: ignore[index]  # JSON


@pytest.mark.parametrize(
    ("values", "reason"),
    [([[1e39, 0, 0, 0]], "out of range"), ([["a", "b", "c", "d"]], "received text"), ([[True] * 4], "true/false")],
)
def test_what_is_no_bfloat16_is_refused(app: AsgiApplication, values: object, reason: str) -> None:
    answer = ask(app, "POST", "/predict/bf", {"inputs": values})
    assert (answer.status, reason in answer.error) == (400, True), answer.body


def test_whole_numbers_without_end_are_refused(app: AsgiApplication) -> None:
    body = b'{"inputs": [[1' + b"0" * 400 + b", 0, 0, 0]]}"
    assert ask(app, "POST", "/predict/bf", body, {"content-type": "application/json"}).status == 400


@given(data=st.binary(min_size=16, max_size=16))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_bits_are_computed_as_they_are(app: AsgiApplication, data: bytes) -> None:
    wide = np.frombuffer(data, BFLOAT).astype(np.float32).reshape(2, 4)
    with np.errstate(all="ignore"):
        wanted = (wide * np.float32(3)).astype(BFLOAT)
    found = as_bfloat(raw(app, data))
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers], wanted[numbers])


def test_a_remembered_header_reads_the_same(app: AsgiApplication) -> None:
    for _ in range(3):
        assert np.array_equal(as_bfloat(raw(app, B.tobytes())), Y)
    generation = app._application.endpoints["bf"].require()
    assert len(generation.binary_plans) > 0
    assert "wrong number of bytes; expected 16 bytes" in raw(app, B.tobytes()[:-1]).error


def test_the_public_clients_work_unmodified(app: AsgiApplication, url: str) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        tensor = triton.InferInput("x", [2, 4], "BF16")
        tensor.set_data_from_numpy(B)
        result = client.infer("bf", [tensor], outputs=[triton.InferRequestedOutput("y")])
        assert np.array_equal(result.as_numpy("y").astype(np.float32), Y.astype(np.float32))
        assert client.get_model_metadata("bf")["inputs"][0]["datatype"] == "BF16"
        assert client.get_model_config("bf")["input"][0]["data_type"] == "TYPE_BF16"
    with serving_grpc(app) as address, triton_grpc.InferenceServerClient(address) as client:
        tensor = triton_grpc.InferInput("x", [2, 4], "BF16")
        tensor.set_data_from_numpy(B)
        result = client.infer("bf", [tensor])
        assert np.array_equal(result.as_numpy("y").astype(np.float32), Y.astype(np.float32))
        assert result.as_numpy("total").tolist() == TOTAL.tolist()
        message = service_pb2.ModelInferRequest(model_name="bf")
        message.inputs.add(name="x", datatype="BF16", shape=[2, 4]).contents.fp32_contents.extend([0.0] * 8)
        with pytest.raises(Exception, match="BF16 has no typed contents"):
            client._client_stub.ModelInfer(message)


def test_noas_client_sends_and_reads_it(url: str) -> None:
    with Client(url) as client:
        for array in (B, X, X.astype(np.float64), X.astype(np.float64) * 0 + 2):
            found = client.predict("bf", {"x": array} if array.dtype == BFLOAT else array).outputs
            assert found["y"].dtype == BFLOAT
            assert np.array_equal(found["y"], (array.astype(BFLOAT).astype(np.float32) * 3).astype(BFLOAT))
        with pytest.raises(InvalidInputError, match="loses values as bfloat16"):
            client.predict("bf", np.full((1, 4), 1e300))
        with pytest.raises(InvalidInputError, match="loses values as bfloat16"):
            client.predict("bf", np.full((1, 4), 257))
        made = example_inputs(client.inputs("bf"), batch=2, seed=0)
        assert made["x"].dtype == BFLOAT
        client.predict("bf", made)


def test_numpy_and_arrow_bodies_refuse_it_by_name(app: AsgiApplication) -> None:
    file = io.BytesIO()
    np.save(file, B.view(np.void))
    sent = ask(app, "POST", "/predict/bf", file.getvalue(), {"content-type": NPY})
    assert (sent.status, "expected bfloat16" in sent.error) == (400, True)
    for kind, who in ((NPY, "NumPy's files have"), (ARROW, "Arrow has")):
        body = {"inputs": X.tolist(), "outputs": ["y"]}
        answer = ask(app, "POST", "/predict/bf", body, {"accept": kind})
        assert (answer.status, f"`y` is bfloat16, which {who} no numbers for" in answer.error) == (406, True)
        body = {"inputs": X.tolist(), "outputs": ["total"]}
        assert ask(app, "POST", "/predict/bf", body, {"accept": kind}).status == 200


def test_it_is_batched_described_and_kept(app: AsgiApplication) -> None:
    assert app._application.endpoints["bf"].require().batching.refusal is None
    document = ask(app, "GET", "/openapi.json").json
    media = document["paths"]["/predict/bf"]["post"]["requestBody"]["content"]["application/json"]  # type: ignore[index]  # JSON
    assert ask(app, "POST", "/predict/bf", media["example"]).status == 200
    row = PayloadRow(RECORD, {"x": B}, {"y": Y})
    table = pq.read_table(pa.BufferReader(write_table([row], Redactor(names={}, key=b""))))
    assert table.to_pylist()[0]["outputs"]["y"] == Y.astype(np.float32).tolist()
    assert table.schema.field("outputs").type.field(0).metadata[b"dtype"] == b"bfloat16"
