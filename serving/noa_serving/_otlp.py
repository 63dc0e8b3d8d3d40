"""Sending traces to an OpenTelemetry collector: OTLP over HTTP, with the protocol's own messages.

A batch is sent once. A collector that is away, slow or full gets it not again, because what waits for it would pile up
here; the loss is counted. Names of attributes are OpenTelemetry's where it has one, else they begin with `noa.`.

Source: OTLP specification 1.5, "OTLP/HTTP"; semantic conventions 1.30 for HTTP and RPC server spans.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from noa import __version__

if TYPE_CHECKING:
    import urllib3

    from noa_serving._tracing import Traced

_TIMEOUT_S = 5.0
_SAMPLED, _REMOTE_IS_KNOWN, _REMOTE = 0x01, 0x100, 0x200
_NAMES = {
    "infer": "POST /v2/models/{}/infer",
    "predict": "POST /predict/{}",
    "invocations": "POST /invocations/{}",
    "stream": "POST /predict/{}/stream",
    "generate_stream": "POST /v2/models/{}/generate_stream",
    "grpc": "inference.GRPCInferenceService/ModelInfer",
    "grpc_stream": "inference.GRPCInferenceService/ModelStreamInfer",
}
_GRPC = ("grpc", "grpc_stream")
_CHILDREN = (("parse", 0, 1), ("queue", 1, 2), ("run", 3, 4), ("encode", 5, 6))  # places in `Passage.moments`


class OtlpExporter:
    """Sends traces to one address; belongs to one thread."""

    def __init__(self, url: str, *, service: str) -> None:
        self._url = url
        self._service = service
        self._pool: urllib3.PoolManager | None = None

    def write(self, traces: Sequence[Traced]) -> int:
        """Send what was traced; returns how much the collector said it did not keep.

        Raises:
            OSError: it took nothing.
        """
        if not traces:
            return 0
        import urllib3
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        body = self.message(traces).SerializeToString()
        if self._pool is None:
            self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT_S)
        headers = {"content-type": "application/x-protobuf"}
        try:
            answer = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as exc:
            raise OSError(f"the collector cannot be reached ({type(exc).__name__})") from exc
        if not 200 <= answer.status < 300:
            raise OSError(f"the collector answered {answer.status}")
        reply: Any = trace_service_pb2.ExportTraceServiceResponse()
        try:
            reply.ParseFromString(answer.data)
        except Exception:  # noqa: BLE001  # it took them, whatever else it says
            return 0
        per_trace = 1 + len(_CHILDREN)
        return min(len(traces), -(-int(reply.partial_success.rejected_spans) // per_trace))

    def message(self, traces: Iterable[Traced]) -> Any:
        """Return the `ExportTraceServiceRequest` of these traces."""
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        message: Any = trace_service_pb2.ExportTraceServiceRequest()
        resource = message.resource_spans.add()
        instance = f"{socket.gethostname()}:{os.getpid()}"
        _set(resource.resource, {"service.name": self._service, "service.instance.id": instance})
        scope = resource.scope_spans.add()
        scope.scope.name, scope.scope.version = "noa_serving", __version__
        for trace in traces:
            _add(scope, trace)
        return message


def _add(scope: Any, trace: Traced) -> None:
    """Add the spans of one request."""
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    record = trace.record
    span = scope.spans.add(
        trace_id=trace.trace_id,
        span_id=os.urandom(8),
        parent_span_id=trace.parent_id,
        trace_state=trace.state,
        flags=_SAMPLED | _REMOTE_IS_KNOWN | (_REMOTE if trace.parent_id else 0),
        name=_NAMES.get(record.route, record.route).format(record.target),
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=record.ended_at - record.taken,
        end_time_unix_nano=record.ended_at,
    )
    attributes: dict[str, str | int | None] = {"noa.endpoint": record.target, "noa.route": record.route}
    if record.route in _GRPC:
        attributes |= {"rpc.system": "grpc", "noa.status": record.status}
    else:
        attributes |= {"http.request.method": "POST", "http.response.status_code": record.status}
    if record.request_id is not None:
        attributes["noa.request_id"] = record.request_id
    version: dict[str, str | int | None] = {}
    if record.version is not None:
        model, number, digest = record.version
        version = {"noa.model": model, "noa.version": number, "noa.digest": digest}
        attributes |= {**version, "noa.items": record.items}
    if record.arm:
        attributes["noa.arm"] = record.arm
    if record.stream is not None:
        attributes |= {"noa.steps": record.stream.steps, "noa.ended": record.stream.reason}
    _set(span, attributes)
    if record.status >= 500:
        span.status.code = Status.STATUS_CODE_ERROR
    for name, start, end in _CHILDREN if trace.moments is not None else ():
        assert trace.moments is not None
        child = scope.spans.add(
            trace_id=trace.trace_id,
            span_id=os.urandom(8),
            parent_span_id=span.span_id,
            trace_state=trace.state,
            flags=_SAMPLED | _REMOTE_IS_KNOWN,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=trace.moments[start],
            end_time_unix_nano=trace.moments[end],
        )
        _set(child, version)


def _set(holder: Any, attributes: dict[str, str | int | None]) -> None:
    for key, value in attributes.items():
        row = holder.attributes.add(key=key)
        if isinstance(value, int):
            row.value.int_value = value
        else:
            row.value.string_value = str(value)
