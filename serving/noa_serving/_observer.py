"""What is told of single requests beside the metrics, where the settings ask for it.

A `Watch` goes with one request from its first look to its answer. At its end it becomes a `Record`, a plain value
without inputs, keys or tokens, and is handed to whoever keeps such: each behind a queue of its own (`_off_loop`). Where
nobody does there is no observer, and a request pays for one look at None.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from noa.text_tensors import size_bytes
from noa_serving._access_log import AccessLog
from noa_serving._off_loop import OffLoop
from noa_serving._otlp import OtlpExporter
from noa_serving._quotas import client_of
from noa_serving._tracing import begin_trace, end_trace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from noa.settings import PayloadLogSettings, Settings
    from noa_serving._guard import Peer
    from noa_serving._http import Headers
    from noa_serving._prepared import Prepared
    from noa_serving._stages import Passage
    from noa_serving._tracing import Traced

CONTROL = "control"
"""The route of requests that need no compute."""

_REQUEST_ID = b"x-request-id"
_MAX_ID_BYTES = 128


class Version(NamedTuple):
    """Which version computed."""

    model: str
    number: int
    digest: str


class StreamNote(NamedTuple):
    """What is told of a stream: the steps that it had, and why it ended."""

    steps: int
    reason: str


class Record(NamedTuple):
    """What is told of a request that was answered. Times are nanoseconds; `ended_at` is since 1970.

    `target` is the endpoint's name, or the path of a request that no endpoint answered. `client` is the id of a key, or
    without keys an address. `stages` are the times in `_stages.STAGES`, None for what was refused. `arm` is
    the arm that computed, empty for the main version. `stream` is there for streams, whose `stages` are those of the
    first step.
    """

    ended_at: int
    target: str
    route: str
    status: int
    taken: int
    client: str
    request_id: str | None
    trace_id: str | None
    version: Version | None
    items: int
    stages: tuple[int, ...] | None
    arm: str = ""
    stream: StreamNote | None = None


class PayloadRow(NamedTuple):
    """One answered request with its tensors; all have the axis of items that the model has."""

    record: Record
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(size_bytes, (*self.inputs.values(), *self.outputs.values())))


class Watch:
    """One request that is observed. Set `client` when it is known, call `take` when the request is understood, and
    `end` once; before that set `stream` for one that has several answers."""

    __slots__ = (
        *("_headers", "_keeps", "_observer", "_prepared", "_started", "_trace"),
        *("client", "route", "stream", "target"),
    )

    def __init__(
        self, observer: Observer, target: str, route: str, headers: Headers, *, peer: Peer, started_s: float
    ) -> None:
        self.target = target
        self.route = route
        self.client = "local" if peer is None else client_of(peer[0])
        self.stream: StreamNote | None = None
        self._prepared: Prepared | None = None
        self._observer = observer
        self._headers = headers
        self._started = int(started_s * 1e9)
        self._trace = begin_trace(headers, None if route == CONTROL else observer.trace_share)
        self._keeps = observer.keeps_payload()

    def take(self, prepared: Prepared) -> None:
        """Take a request that was understood and will be computed."""
        self._prepared = prepared
        if self._keeps and prepared.passage is not None:
            prepared.passage.keeps = True

    def end(self, status: int) -> None:
        """Tell how the request was answered."""
        observer, trace = self._observer, self._trace
        prepared = None if self._prepared is None else self._prepared.answering()
        is_told, is_traced = observer.tells(status), trace is not None and trace.is_sampled
        if not is_told and not is_traced and not self._keeps:
            return
        now, ended = time.time_ns(), time.perf_counter_ns()
        passage: Passage | None = None if prepared is None else prepared.passage
        record = self._record(status, prepared, ended_at=now, taken=ended - self._started)
        if is_told and observer.access_log is not None:
            observer.access_log.put(record)
        if is_traced and trace is not None and observer.traces is not None:
            observer.traces.put(end_trace(trace, self._headers, record, passage, clock_offset=now - ended))
        outputs = None if passage is None else passage.outputs
        if prepared is not None and outputs is not None and observer.payloads is not None:
            row = PayloadRow(record, prepared.inputs, _own(outputs))
            observer.payloads.put(row, row.num_bytes)

    def _record(self, status: int, prepared: Prepared | None, *, ended_at: int, taken: int) -> Record:
        trace = self._trace
        generation = None if prepared is None else prepared.generation
        passage = None if prepared is None else prepared.passage
        return Record(
            ended_at=ended_at,
            target=self.target,
            route=self.route,
            status=status,
            taken=taken,
            client=self.client,
            request_id=_request_id(self._headers) or (os.urandom(16).hex() if self._keeps else None),
            trace_id=None if trace is None else trace.trace_id.hex(),
            version=None if generation is None else Version(generation.model, generation.number, generation.digest),
            items=0 if prepared is None else prepared.batch,
            stages=None if passage is None else passage.stages,
            arm="" if generation is None else generation.arm,
            stream=self.stream,
        )


class Observer:
    """Whoever is told of one worker's requests. Belongs to its event loop."""

    def __init__(
        self,
        *,
        access_log: OffLoop[Record] | None = None,
        access_share: float = 1.0,
        traces: OffLoop[Traced] | None = None,
        trace_share: float = 0.0,
        payloads: OffLoop[PayloadRow] | None = None,
        payload_share: float = 0.0,
    ) -> None:
        self.access_log = access_log
        self.traces = traces
        self.trace_share = None if traces is None else trace_share
        self.payloads = payloads
        self._access_share = access_share
        self._payload_share = payload_share

    def watch(self, target: str, route: str, headers: Headers, *, peer: Peer, started_s: float) -> Watch:
        """Begin to observe a request; `started_s` is on the clock `perf_counter`."""
        return Watch(self, target, route, headers, peer=peer, started_s=started_s)

    def tells(self, status: int) -> bool:
        """Tell whether the access log gets this request: each that was not answered well, and a share of the others."""
        if self.access_log is None:
            return False
        return status >= 400 or self._access_share >= 1.0 or random.random() < self._access_share

    def keeps_payload(self) -> bool:
        """Tell whether a request's tensors are to be kept, if it is answered."""
        return self.payloads is not None and random.random() < self._payload_share

    def start(self) -> None:
        """Begin to write what is told."""
        for one in self._all():
            one.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        for one in self._all():
            one.stop()

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """Return the name of each log, the records that were to be written there, and how many of them were lost."""
        for one in self._all():
            yield one.name, one.offered, one.lost

    def _all(self) -> Iterator[OffLoop[Any]]:
        for one in (self.access_log, self.traces, self.payloads):
            if one is not None:
                yield one


def make_observer(settings: Settings) -> Observer | None:
    """Return the observer that the settings ask for, None if they ask for nothing."""
    serving = settings.serving
    access_log = traces = payloads = None
    if serving.access_log is not None:
        access_log = OffLoop("access_log", AccessLog(serving.access_log).write)
    if serving.trace_endpoint:
        traces = OffLoop("traces", OtlpExporter(serving.trace_endpoint, service=settings.project.name).write)
    if serving.payload_log.folder is not None:
        payloads = _payload_queue(serving.payload_log, serving.payload_log.folder, settings.state_dir)
    if access_log is None and traces is None and payloads is None:
        return None
    return Observer(
        access_log=access_log,
        access_share=serving.access_log_sample,
        traces=traces,
        trace_share=serving.trace_sample,
        payloads=payloads,
        payload_share=serving.payload_log.sample,
    )


def _payload_queue(settings: PayloadLogSettings, folder: Path, state_dir: Path) -> OffLoop[PayloadRow]:
    # Here, not at import: pyarrow takes a quarter of a second and 40 MB.
    from noa_serving._payload_log import PayloadLog, load_key

    key = load_key(state_dir / "payload-log.key") if "hash" in settings.redact.values() else b""
    log = PayloadLog(settings, folder, key)
    return OffLoop("payload_log", log.write, finish=log.finish)


def _own(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return tensors that keep no others in memory: those of a request are cut from those of its batch."""
    return {name: one.copy() if one.base is not None else one for name, one in tensors.items()}


def _request_id(headers: Headers) -> str | None:
    """Return the id that the caller gave its request, None if there is none or it is none to be kept."""
    value = headers.get(_REQUEST_ID)
    if not value or len(value) > _MAX_ID_BYTES:
        return None
    text = value.decode("latin-1")
    return text if text.isascii() and text.isprintable() else None
