"""The Open Inference Protocol over gRPC: the public Triton client, raw calls, and the answers of REST."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_kit import serving_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving_kit import Project, ask, build_app, endpoint, make_project, slow_model, wait_until
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from noa.settings import Settings
from noa_serving import start_server
from noa_serving._asgi import AsgiApplication

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
PIXELS = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
SMALL_BODY = 1 << 20


@pytest.fixture(scope="module")
def address(app: AsgiApplication) -> Iterator[str]:
    with serving_grpc(app) as one:
        yield one


@pytest.fixture
def public(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def request(**changes: Any) -> Any:
    """Return a request of `digits` with typed contents."""
    message = service_pb2.ModelInferRequest(model_name="digits", id="7")
    row = message.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    row.contents.fp32_contents.extend(X.reshape(-1).tolist())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def mixed_inputs() -> list[triton.InferInput]:
    return [
        tensor("pixels", PIXELS, "UINT8"),
        tensor("index", np.array([0, 2]), "INT64"),
        tensor("flag", np.array([True, False]), "BOOL"),
    ]


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]  # of the client's own error


def test_the_public_client_infers_all_datatypes_raw(public: triton.InferenceServerClient) -> None:
    result = public.infer("digits", [tensor("x", X, "FP32")], request_id="42")
    assert np.array_equal(result.as_numpy("y"), X * 3)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("42", "digits", "2")
    assert response.parameters["digest"].string_param.startswith("sha256:")
    wanted = [triton.InferRequestedOutput("not_flag"), triton.InferRequestedOutput("half")]
    mixed = public.infer("mixed", mixed_inputs(), outputs=wanted)
    assert [row.name for row in mixed.get_response().outputs] == ["not_flag", "half"]
    assert np.array_equal(mixed.as_numpy("half"), PIXELS.astype(np.float16))
    assert mixed.as_numpy("not_flag").tolist() == [False, True]


def test_the_public_client_reads_health_metadata_index_statistics_and_configuration(
    public: triton.InferenceServerClient,
) -> None:
    assert public.is_server_live()
    assert not public.is_server_ready()  # `absent` waits for its alias
    assert public.is_model_ready("digits", "2")
    assert not public.is_model_ready("absent")
    assert "statistics" in public.get_server_metadata().extensions
    assert list(public.get_model_metadata("digits").inputs[0].shape) == [-1, 4]
    rows = {row.name: row.state for row in public.get_model_repository_index().models}
    assert rows == {"digits": "READY", "first": "READY", "mixed": "READY", "absent": "UNAVAILABLE"}
    assert public.get_model_config("digits").config.input[0].data_type == 11  # TYPE_FP32
    public.infer("first", [tensor("x", X, "FP32")])
    assert public.get_inference_statistics("first").model_stats[0].inference_count == 2
    with pytest.raises(triton.InferenceServerException, match="promote"):
        public.unload_model("digits")


def test_the_public_client_streams_and_a_refusal_does_not_end_the_stream(public: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    public.start_stream(lambda result, error: answers.put((result, error)))
    for rows in (X, X[:, :3], X[:1]):
        public.async_stream_infer("digits", [tensor("x", rows, "FP32")])
    first, refused, last = (answers.get(timeout=20) for _ in range(3))
    public.stop_stream()
    assert np.array_equal(first[0].as_numpy("y"), X * 3)
    assert "wrong shape" in str(refused[1])
    assert last[0].as_numpy("total").tolist() == [30.0]


def test_typed_contents_are_answered_typed_and_equal_to_raw_ones_and_to_rest(app: AsgiApplication, stub: Any) -> None:
    values = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    typed = request()
    typed.inputs[0].contents.fp32_contents[:] = values.reshape(-1).tolist()
    raw = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[values.tobytes()])
    raw.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    typed_answer, raw_answer = stub.ModelInfer(typed), stub.ModelInfer(raw)
    assert not typed_answer.raw_output_contents
    assert not raw_answer.outputs[0].HasField("contents")
    from_typed = np.array(typed_answer.outputs[0].contents.fp32_contents, np.float32)
    assert from_typed.tobytes() == raw_answer.raw_output_contents[0]
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    rest = ask(app, "POST", "/v2/models/digits/infer", head + values.tobytes(), headers)
    length = int(rest.headers["inference-header-content-length"])
    assert rest.body[length:] == b"".join(raw_answer.raw_output_contents)


def test_typed_contents_of_every_kind_and_a_raw_answer_where_an_output_has_no_typed_field(stub: Any) -> None:
    message = service_pb2.ModelInferRequest(model_name="mixed")
    message.inputs.add(name="pixels", datatype="UINT8", shape=[2, 2, 2]).contents.uint_contents.extend(range(8))
    message.inputs.add(name="index", datatype="INT64", shape=[2]).contents.int64_contents.extend([0, 2])
    message.inputs.add(name="flag", datatype="BOOL", shape=[2]).contents.bool_contents.extend([True, False])
    answer = stub.ModelInfer(message)
    assert np.frombuffer(answer.raw_output_contents[0], np.float16).tolist() == list(range(8))
    message.outputs.add(name="picked")
    assert list(stub.ModelInfer(message).outputs[0].contents.fp32_contents) == [10.0, 30.0]


def bad_requests() -> Iterator[tuple[str, Any, grpc.StatusCode, str]]:
    code = grpc.StatusCode
    yield "no inputs", service_pb2.ModelInferRequest(model_name="digits"), code.INVALID_ARGUMENT, "no `inputs`"
    yield "no model", request(model_name="nobody"), code.NOT_FOUND, "`nobody`"
    yield "other version", request(model_version="1"), code.NOT_FOUND, "expected `2`; received `1`"
    yield "no version", request(model_version="x"), code.NOT_FOUND, "no version `x`"
    yield "not ready", request(model_name="absent"), code.UNAVAILABLE, "not ready"
    both = request()
    both.raw_input_contents.append(X.tobytes())
    yield "both contents", both, code.INVALID_ARGUMENT, "both `contents` and `raw_input_contents`"
    many = request()
    many.raw_input_contents.extend([X.tobytes(), b""])
    yield "too many raw", many, code.INVALID_ARGUMENT, "one for each input"
    short = request()
    del short.inputs[0].contents.fp32_contents[:3]
    yield "too short", short, code.INVALID_ARGUMENT, "expected 8 elements for (2, 4); received 5 elements"
    other = request()
    other.inputs[0].contents.ClearField("fp32_contents")
    other.inputs[0].contents.fp64_contents.extend([1.0] * 8)
    yield "other field", other, code.INVALID_ARGUMENT, "expected `fp32_contents` for FP32"
    datatype = request()
    datatype.inputs[0].datatype = "BYTES"
    yield "other datatype", datatype, code.INVALID_ARGUMENT, "expected FP32; received BYTES"
    twice = request()
    twice.inputs.append(twice.inputs[0])
    yield "twice", twice, code.INVALID_ARGUMENT, "stands twice"
    huge = request()
    huge.inputs[0].shape[:] = [2**62, 4]
    yield "huge shape", huge, code.INVALID_ARGUMENT, "too many items"
    negative = request()
    negative.inputs[0].shape[:] = [-2, -4]
    yield "negative shape", negative, code.INVALID_ARGUMENT, "malformed `shape`"
    classes = request()
    classes.outputs.add(name="y").parameters["classification"].int64_param = 3
    yield "classification", classes, code.INVALID_ARGUMENT, "output `y` asks for `classification`"
    output = request()
    output.outputs.add(name="z")
    patience = request()
    patience.parameters["timeout"].string_param = "soon"
    yield "timeout", patience, code.INVALID_ARGUMENT, "parameter `timeout` is wrong"
    yield "unknown output", output, code.INVALID_ARGUMENT, "output `z` is not known"
    pixels = service_pb2.ModelInferRequest(model_name="mixed")
    pixels.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 2]).contents.uint_contents.extend([0, 1, 2, 256])
    yield "out of range", pixels, code.INVALID_ARGUMENT, "`pixels` holds a number out of range"


BAD_REQUESTS = list(bad_requests())


@pytest.mark.parametrize(
    ("message", "code", "text"), [row[1:] for row in BAD_REQUESTS], ids=[row[0] for row in BAD_REQUESTS]
)
def test_bad_requests_get_the_status_and_the_reason(stub: Any, message: Any, code: grpc.StatusCode, text: str) -> None:
    found = refusal(lambda: stub.ModelInfer(message))
    assert found[0] == code
    assert text in found[1]


def raw_call(address: str, body: bytes, name: str = "ModelInfer") -> bytes:
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(body, timeout=20)


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
def test_what_is_no_message_is_refused_with_a_reason(address: str, name: str) -> None:
    code, text = refusal(lambda: raw_call(address, b"\xff\xff\xff", name))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "not readable" in text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x2a\x00" * 200_000, "little of it is tensor data"),
        (b"\x2a\x82\xb5\x18" + b"\x22\x00" * 200_001, "little of it is tensor data"),
        (b"\x0a\xe0\xa7\x12" + b"n" * 300_000, "little of it is tensor data"),
        (b"\x2a\xff\xff\xff\x7f" + b"x" * 300_000, "not readable"),
        (b"\xfb" * 300_000, "not readable"),
    ],
    ids=["inputs", "parameters", "name", "cut", "tags"],
)
def test_a_large_message_of_tiny_parts_is_refused_before_it_is_built(address: str, body: bytes, text: str) -> None:
    code, found = refusal(lambda: raw_call(address, body))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in found


def test_a_large_raw_tensor_passes(content: Project) -> None:
    app = build_app(content.settings, digits="digits@champion")
    rows = np.ones((4096, 4), np.float32)
    with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
        for _ in range(6):
            rows = rows * 2
        assert np.array_equal(client.infer("digits", [tensor("x", rows, "FP32")]).as_numpy("y"), rows * 3)


def test_health_is_told_for_the_server_and_for_each_endpoint(address: str) -> None:
    status = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found = {
            name: stub.Check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", "digits", "absent")
        }
        assert found == {"": status.NOT_SERVING, "digits": status.SERVING, "absent": status.NOT_SERVING}
        code, _ = refusal(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nobody")))
        assert code == grpc.StatusCode.NOT_FOUND
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="digits"))
        assert next(watched).status == status.SERVING
        watched.cancel()


def test_reflection_describes_the_services(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        file = MessageToDict(database.FindFileContainingSymbol("inference.GRPCInferenceService"))
        assert any(row["name"] == "ModelInferRequest" for row in file["messageType"])


def with_settings(content: Project, **serving: object) -> Settings:
    return content.settings.model_copy(
        update={
            "serving": content.settings.serving.model_validate({**content.settings.serving.model_dump(), **serving})
        }
    )


def test_keys_come_as_metadata_and_probes_need_none(content: Project) -> None:
    key = "k" * 16
    app = build_app(with_settings(content, api_keys=[key]), digits="digits@champion")
    with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
        assert client.is_server_ready()
        for headers in (None, {"authorization": "Bearer wrong"}):
            with pytest.raises(triton.InferenceServerException, match="asks for a key"):
                client.infer("digits", [tensor("x", X, "FP32")], headers=headers)
            with pytest.raises(triton.InferenceServerException, match="asks for a key"):
                client.get_model_metadata("digits", headers=headers)
        headers = {"authorization": f"Bearer {key}"}
        assert client.infer("digits", [tensor("x", X, "FP32")], headers=headers).as_numpy("total").tolist() == [30, 78]


def test_a_message_beyond_the_limit_is_refused_before_it_is_taken_in(content: Project) -> None:
    app = build_app(with_settings(content, max_body_bytes=SMALL_BODY), digits="digits@champion")
    with serving_grpc(app) as address:
        code, _ = refusal(lambda: raw_call(address, b"\x3a" * (SMALL_BODY + 1)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_clients_deadline_is_kept_and_overload_says_when_to_come_back(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, max_in_flight=1)
    project.publish("slow", slow_model)
    app = build_app(project.settings, slow="slow@champion")
    inputs = [tensor("x", np.ones((2, 384), np.float32), "FP32")]
    with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
        start = time.monotonic()
        with pytest.raises(triton.InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("slow", inputs, client_timeout=0.01)
        wait_until(lambda: app._application.admission.in_flight == 0)  # the place is held until the work has ended
        with pytest.raises(triton.InferenceServerException, match="took too long"):
            client.infer("slow", inputs, timeout=1000)
        assert time.monotonic() - start < 5
        wait_until(lambda: app._application.admission.in_flight == 0)
        message = service_pb2.ModelInferRequest(
            model_name="slow", raw_input_contents=[np.ones((2, 384), "f4").tobytes()]
        )
        message.inputs.add(name="x", datatype="FP32", shape=[2, 384])
        with grpc.insecure_channel(address) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            calls = [infer.future(message) for _ in range(16)]
            codes = {call.code(): call for call in calls}  # `code` waits for the end
            assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
            assert dict(codes[grpc.StatusCode.UNAVAILABLE].trailing_metadata())["retry-after"].isdigit()


@pytest.mark.bentoml
def test_a_real_server_of_two_workers_answers_on_one_grpc_port(content: Project, tmp_path: Path) -> None:
    endpoints = {"digits": endpoint("digits@champion")}
    log = tmp_path / "server.log"
    with start_server(content.settings, endpoints=endpoints, workers=2, grpc_port=0, log_file=log) as process:
        target = process.wait_ready(200).grpc_target
        assert target is not None
        answered, deadline = 0, time.monotonic() + 120
        while answered < 8:  # the system chooses the worker, and the second one may still be loading
            assert time.monotonic() < deadline
            with triton.InferenceServerClient(target) as client:
                try:
                    result = client.infer("digits", [tensor("x", X, "FP32")])
                except InferenceServerException as exc:
                    assert "is being loaded" in str(exc)
                    time.sleep(0.2)
                    continue
                assert np.array_equal(result.as_numpy("y"), X * 3)
                answered += 1
        assert process.stop() == 0
