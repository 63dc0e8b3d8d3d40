"""Every route of a real server by its own description (schemathesis), and mutated frames over both transports.

A sample here; `make fuzz` sends 100,000 requests. Whatever comes, the answer is below 500 but for 503, has the type and
status that the description says, and no place in flight is lost.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import schemathesis
from grpc_kit import serving_grpc
from http_kit import serving_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_kit import Project, endpoint
from stream_kit import COUNTER, build_streams, counter_model, streaming
from tritonclient.grpc import service_pb2

from noa_serving._asgi import AsgiApplication

EXAMPLES = int(os.environ.get("NOA_FUZZ_EXAMPLES", "0"))
relaxed = settings(max_examples=EXAMPLES or 60, deadline=None, suppress_health_check=list(HealthCheck))
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def ready(content: Project) -> AsgiApplication:
    content.publish("counter", counter_model())
    app, _ = build_streams(
        content,
        digits=endpoint("digits@champion"),
        mixed=endpoint("mixed@champion"),
        counter=streaming("counter@champion", {**COUNTER, "max_steps": 6}),
    )
    return app


@pytest.fixture(scope="module")
def url(ready: AsgiApplication) -> Iterator[str]:
    with serving_http(ready) as address:
        yield address


@pytest.fixture(scope="module")
def channel(ready: AsgiApplication) -> Iterator[grpc.Channel]:
    with serving_grpc(ready) as address, grpc.insecure_channel(address) as one:
        yield one


def test_every_described_operation_answers_as_described(url: str, ready: AsgiApplication) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:

        @settings(relaxed, max_examples=(EXAMPLES or 16) // (8 if operation.method == "get" else 1))
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            response = case.call()
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=checks)

        send()
    assert ready._application.admission.in_flight == 0


def frame() -> tuple[bytes, int]:
    """Return a good binary request of the Open Inference Protocol and the length of its JSON part."""
    row = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": X.nbytes}}
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()
    return head + X.tobytes(), len(head)


def mutate(body: bytes, place: float, noise: bytes, cut: float, grow: bytes) -> bytes:
    start = int(place * len(body))
    changed = body[:start] + noise + body[start + len(noise) :]
    return changed[: max(1, int(cut * len(changed)))] + grow


mutations = {
    "place": st.floats(0, 1),
    "noise": st.binary(max_size=8),
    "cut": st.one_of(st.just(1.0), st.floats(0, 1)),
    "grow": st.one_of(st.just(b""), st.binary(max_size=16)),
}


@relaxed
@given(**mutations, shift=st.integers(-3, 3))
def test_any_mutated_frame_is_answered_over_http(
    url: str, ready: AsgiApplication, place: float, noise: bytes, cut: float, grow: bytes, shift: int
) -> None:
    body, length = frame()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    headers = {"inference-header-content-length": str(length + shift), "content-type": "application/octet-stream"}
    connection.request("POST", "/v2/models/digits/infer", mutate(body, place, noise, cut, grow), headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert response.status < 500, text
    assert ready._application.admission.in_flight == 0


@relaxed
@given(**mutations)
def test_any_mutated_message_is_answered_over_grpc(
    channel: grpc.Channel, ready: AsgiApplication, place: float, noise: bytes, cut: float, grow: bytes
) -> None:
    message = service_pb2.ModelInferRequest(model_name="digits", id="1", raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    message.outputs.add(name="y")
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        infer(mutate(message.SerializeToString(), place, noise, cut, grow), timeout=20)
    except grpc.RpcError as exc:
        code = exc.code()  # type: ignore[attr-defined]  # of the client's own error
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED)
    assert ready._application.admission.in_flight == 0
