"""Traces: W3C Trace Context in, OTLP out, to a real collector's end of the line."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from observe_kit import total
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from serving_kit import Project, affine_model, build_app, endpoint, wait_until

from noa.settings import Settings
from noa_serving import Client, start_server
from noa_serving._http import header_table
from noa_serving._observer import make_observer
from noa_serving._trace_context import read_traceparent, read_tracestate

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
ROWS = {"x": np.ones((1, 4), np.float32)}


@dataclass(slots=True)
class Collector:
    """A receiver of OTLP over HTTP; `status` is what it answers."""

    url: str
    status: int = 200
    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def take(self, body: bytes) -> None:
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            having = {row.key: row.value.string_value for row in resource.resource.attributes}
            self.services.add(having["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            if found.status == 200:
                found.take(body)
            self.send_response(found.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join(20)


def settings_of(project: Project, **serving: object) -> Settings:
    project.publish("digits", affine_model(2.0))
    changed = project.settings.serving.model_copy(update=serving)
    return project.settings.model_copy(update={"serving": changed})


def post(url: str, *traceparents: str, body: object = None) -> tuple[int, list[str]]:
    """Send one request; gives the status and the names of the answer's headers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    payload = json.dumps({"inputs": [[1, 2, 3, 4]]} if body is None else body).encode()
    try:
        connection.putrequest("POST", "/predict/digits")
        for name, value in (("content-type", "application/json"), ("content-length", str(len(payload)))):
            connection.putheader(name, value)
        for value in traceparents:
            connection.putheader("Traceparent", value)
        connection.putheader("tracestate", "vendor=7")
        connection.endheaders(payload)
        response = connection.getresponse()
        response.read()
        return response.status, [name.lower() for name in response.headers]
    finally:
        connection.close()


def attributes(span: Any) -> dict[str, object]:
    return {row.key: row.value.string_value or row.value.int_value for row in span.attributes}


@pytest.mark.bentoml
def test_a_caller_decides_by_traceparent_and_the_spans_hang_together(project: Project, collector: Collector) -> None:
    settings = settings_of(project, trace_endpoint=collector.url, trace_sample=0.0, grpc_port=0)
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        address = process.wait_ready()
        for parent in (UNSAMPLED, "00-garbage", f"00-{'0' * 32}-{PARENT}-01"):
            assert post(address.url, parent)[0] == 200
        assert post(address.url, SAMPLED, SAMPLED)[0] == 200, "one that stands twice counts as none"
        assert post(address.url)[0] == 200
        status, names = post(address.url, SAMPLED)
        assert status == 200
        assert not {"traceparent", "traceresponse"} & set(names)
        assert post(address.url, SAMPLED, body={})[0] == 400
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(ROWS["x"])
        assert address.grpc_target is not None
        with triton.InferenceServerClient(address.grpc_target) as client:
            client.infer("digits", [x], headers={"traceparent": SAMPLED})
        wait_until(lambda: len(collector.spans) >= 11, what="the spans of three requests")
    assert len(collector.spans) == 11, [span.name for span in collector.spans]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert len({span.span_id for span in collector.spans}) == 11
    assert collector.services == {"project"}
    answered, refused = collector.named("POST /predict/digits")
    assert [one.parent_span_id.hex() for one in (answered, refused)] == [PARENT, PARENT]
    assert answered.trace_state == "vendor=7"
    assert answered.flags == 0x301
    found = attributes(answered)
    assert (found["noa.model"], found["noa.version"], found["http.response.status_code"]) == ("digits", 1, 200)
    assert str(found["noa.digest"]).startswith("sha256:")
    assert attributes(refused)["http.response.status_code"] == 400
    children = [span for span in collector.spans if span.parent_span_id == answered.span_id]
    assert [span.name for span in children] == ["parse", "queue", "run", "encode"]
    times = [time for span in children for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert answered.start_time_unix_nano <= times[0] and times[-1] <= answered.end_time_unix_nano
    (over_grpc,) = collector.named("inference.GRPCInferenceService/ModelInfer")
    assert attributes(over_grpc)["noa.endpoint"] == "digits"


@pytest.mark.bentoml
def test_a_share_of_the_others_is_traced_each_in_a_trace_of_its_own(project: Project, collector: Collector) -> None:
    settings = settings_of(project, trace_endpoint=collector.url, trace_sample=1.0)
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        url = process.wait_ready().url
        for parent in (None, None, UNSAMPLED):
            assert post(url, *([] if parent is None else [parent]))[0] == 200
    spans = collector.named("POST /predict/digits")  # the server has sent all that waited before it ended
    assert len({span.trace_id for span in spans}) == len(spans) == 2
    assert all(not span.parent_span_id and not span.trace_state for span in spans)


@pytest.mark.bentoml
def test_a_collector_that_is_away_costs_traces_and_no_request(project: Project, collector: Collector) -> None:
    collector.status = 503
    settings = settings_of(project, trace_endpoint=collector.url, trace_sample=1.0)
    served = {"digits": endpoint("digits@champion")}
    with start_server(settings, endpoints=served) as process, Client(process.wait_ready().url) as client:

        def lost() -> float:
            return total(client.metrics(), "noa_records_lost_total", log="traces")

        for _ in range(5):
            client.predict("digits", ROWS)
        wait_until(lambda: lost() == 5, what="the loss of five traces")
        collector.status = 200
        client.predict("digits", ROWS)
        wait_until(lambda: len(collector.named("POST /v2/models/digits/infer")) == 1, what="the next trace")
        assert lost() == 5


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (SAMPLED, True),
        (UNSAMPLED, True),
        (f" {SAMPLED}\t", True),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (SAMPLED.upper(), False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-{PARENT}-1", False),
        ("", False),
    ],
)
def test_traceparent_is_read_as_the_recommendation_says(text: str, counts: bool) -> None:
    assert (read_traceparent(text.encode()) is not None) is counts


@given(st.binary(max_size=80))
def test_any_header_is_read_or_left(value: bytes) -> None:
    found = read_traceparent(value)
    assert found is None or (len(found.trace_id), len(found.span_id)) == (16, 8)
    assert read_tracestate(value).isprintable()


def test_a_trace_that_is_named_twice_is_none() -> None:
    assert header_table([(b"traceparent", b"a"), (b"Traceparent", b"b")])[b"traceparent"] == b""


def test_nobody_observes_where_nothing_asks_for_it(project: Project) -> None:
    assert make_observer(project.settings) is None
    project.publish("digits", affine_model(2.0))
    assert build_app(project.settings, digits="digits@champion")._application.observer is None


@pytest.mark.parametrize(
    "text", ["collector:4318", "ftp://x/", "http://user:secret@x/", "http://x/?key=secret", "http://"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"serving\.trace_endpoint") as caught:
        Settings.model_validate({"serving": {"trace_endpoint": text}})
    assert "no address such as" in str(caught.value)
