"""The fast way: inference requests are answered in the HTTP protocol class itself, without ASGI.

`hot_protocol` makes a subclass of uvicorn's httptools protocol for one application. It takes a request only if it can
answer in order: a known path, a small body of known length, keep-alive, and nothing before it on the connection that
went through ASGI. Everything else goes the ordinary way through ASGI and there waits for the answers before it, so that
streaming, pipelining and back-pressure have one implementation, uvicorn's.

A request that was read is a slot in its connection's line. It is computed with what other connections brought in the
same turn of the event loop (`_batcher`), and written when all slots before it are. A client that goes away drops the
slots that have not begun.

Measured with a perceptron: ASGI with its tasks, events and per-header checks costs more than twice what the model does.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections import deque
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from noa_serving._application import Application, HotRoute
from noa_serving._asgi import refuse_host
from noa_serving._asgi_streams import ABORT
from noa_serving._deadline import TIMEOUT_HEADER, Deadline, asked_timeout_s
from noa_serving._http import HeaderList, RequestRefusedError, Response, header_table, refuse
from noa_serving._rest import MAX_UNASKED_BODY_BYTES, Rest, names_one_host

if TYPE_CHECKING:
    from noa_serving._admission import Place
    from noa_serving._attempt import Attempt
    from noa_serving._batcher import Job, Outcome
    from noa_serving._observer import Watch
    from noa_serving._prepared import Prepared

MAX_HOT_BODY_BYTES = 1 << 20
"""Larger bodies go through ASGI, whose flow control is worth its cost there."""

MAX_UNPLACED_BODY_BYTES = 64 << 10
"""A larger body needs a key and a place before it is read: idle connections cannot fill the memory with halves."""

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers; counted in whole reads of the socket, so a little more may pass."""

_MOST_AT_ONCE = 16 << 10
"""Given to the parser at once where it may be anything but a body of known length, so that limits nearly hold."""
_LOOK_AGAIN_S = 1.0
_MAX_CACHED_HEADS = 1024
_MAX_KEPT_HEAD_BYTES = 2048
"""Of a connection that is idle."""
_MAX_LINE = 32
"""Unanswered requests of one connection; more wait in uvicorn's pipeline, which stops reading."""

_NOT_HOT = frozenset({b"expect", b"transfer-encoding", b"upgrade"})
_LINE = cast("RequestResponseCycle", SimpleNamespace(response_complete=False))
"""Stands for the slots of a connection where uvicorn looks for the request before a new one."""


def hot_protocol(application: Application) -> type[HttpToolsProtocol]:
    """Return the protocol class of one worker's application."""
    limit = min(application.settings.max_body_bytes, MAX_HOT_BODY_BYTES)
    timeout_s = application.settings.timeout_s

    class HotProtocol(_HotProtocol):
        """The protocol, bound to its application."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._bind(application, limit, timeout_s)

    return HotProtocol


class _HotProtocol(HttpToolsProtocol):
    def _bind(self, application: Application, limit: int, timeout_s: float) -> None:
        self._application = application
        self._routes = {path.encode(): route for path, route in application.hot_paths().items()}
        self._limit = limit
        self._timeout_s = timeout_s
        self._route: HotRoute | None = None
        self._head = _NO_HEAD
        self._chunks: list[bytes] = []
        self._place: Place | None = None
        self._line: deque[_Slot] = deque()
        self._is_pipeline_held = False
        self._started = 0.0
        self._last_answer = 0.0
        self._is_closing = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = False
        self._rest: Rest | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._timeout_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if len(data) <= _MOST_AT_ONCE:
            self._take(data)
            return
        start = 0
        # Gone from the connections: another protocol has the transport.
        while start < len(data) and self in self.connections and not self.transport.is_closing():
            is_sized = self._route is not None or (self._rest is not None and not self._rest.is_chunked)
            end = len(data) if is_sized else start + _MOST_AT_ONCE
            self._take(data[start:end])
            start = end

    def _take(self, data: bytes) -> None:
        rest = self._rest
        if rest is not None and rest.is_chunked:
            rest.quiet_bytes += len(data)
        elif self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head(431, "the request's head is too large", f"at most {MAX_HEAD_BYTES} bytes")
                return
        super().data_received(data)
        if self._is_in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._timeout_s, self._head_is_late)
        if (self._route is not None or self._rest is not None) and self._body_timer is None:
            self._body_timer = self.loop.call_later(self._timeout_s, self._body_is_late)
        if rest is not None and rest is self._rest and rest.quiet_bytes > MAX_HEAD_BYTES:
            self._refuse_rest()

    def on_message_begin(self) -> None:
        # uvicorn's scope is made where it is needed, in `_leave_to_asgi`.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._is_in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))  # `_Head` and `_leave_to_asgi` read names in any case

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        route = self._routes.get(self.url)
        if route is None or not self._is_hot() or not self._find_place(route):
            self._leave_to_asgi()
            return
        self._route = route
        self._chunks = []
        self._started = time.perf_counter()

    def on_body(self, body: bytes) -> None:
        if self._route is not None:
            self._chunks.append(body)
            return
        rest = self._rest
        if rest is not None:
            rest.quiet_bytes = 0
            if self.cycle.response_complete and not rest.throw_away(len(body)):
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        route = self._route
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if route is None:
            self._rest = None
            super().on_message_complete()
            return
        self._route = None
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        slot = self._new_slot(route)
        try:
            self._begin(slot, body)
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
            slot.done(exc)
            if isinstance(exc, RequestRefusedError) and exc.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                self._application.breaths.take(self.loop, self.flow.pause_reading, self._end_breath)

    def _end_breath(self) -> None:
        # A request in ASGI's hands, or one that waits behind it, resumes reading when its turn ends.
        if not self.transport.is_closing() and not self.pipeline and not self._has_open_cycle():
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._body_timer, self._idle_timer, self._head_timer):
            if timer is not None:
                timer.cancel()
        self._route = self._rest = None
        self._give_place_back()
        line, self._line = self._line, deque()
        for slot in line:
            slot.drop()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Answer at once what waits only for the end of this turn: the transport closes itself after this."""
        if self._line:
            self._application.computing.ticks.flush()
        super().eof_received()

    def shutdown(self) -> None:
        """End gracefully: a request that is computed or whose body is still arriving is answered first."""
        if self._route is None and not self._line:
            super().shutdown()
        else:
            self._is_closing = True
            if self._has_open_cycle():
                self.cycle.keep_alive = False

    def _is_hot(self) -> bool:
        parser = self.parser
        if parser is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return False
        if not parser.should_keep_alive() or self.flow.write_paused or self._has_open_cycle():
            return False
        if len(self._line) >= _MAX_LINE:
            return False
        if self.headers != self._head.raw:
            self._head = _Head.of(self.headers)
        return 0 <= self._head.length <= self._limit

    def _find_place(self, route: HotRoute) -> bool:
        """Take a place for a body that is not small; ASGI refuses a request without one, or without a key."""
        if self._head.length > MAX_UNPLACED_BODY_BYTES:
            try:
                grant = self._application.guard.allow(self._head.table, route.endpoint.name)
                self._place = self._application.computing.enter()
                self._place.reserve(self._head.length)
                self._application.guard.charge(grant, self._head.length, self.client)
            except RequestRefusedError:
                self._give_place_back()
                return False
        return True

    def _give_place_back(self) -> None:
        if self._place is not None:
            self._place.give_back()
            self._place = None

    def _has_open_cycle(self) -> bool:
        # uvicorn starts with None behind a narrower annotation.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _leave_to_asgi(self) -> None:
        """Let uvicorn take this request, behind the slots of the connection."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)  # into the list that is in the scope
        names = [name for name, _ in self.headers]
        before = self.cycle
        must_wait = bool(self._line) and not self._has_open_cycle()
        if must_wait:
            self.cycle = _LINE
        assert self.parser is not None  # it calls this
        application = self.app
        if not names_one_host(names, self.parser.get_http_version()):
            self.app = refuse_host
        super().on_headers_complete()
        self.app = application
        if self.cycle is _LINE or self.cycle is before:  # an upgrade, which makes no cycle
            self.cycle = before
            return
        cast("dict[str, object]", self.scope)["extensions"] = {ABORT: self.transport.abort}
        is_chunked = b"transfer-encoding" in names
        if is_chunked:
            self.headers = []  # trailers are no headers: the scope keeps the list that it has
        is_post = self.scope["method"] == "POST"
        most = self._application.settings.max_body_bytes if is_post else MAX_UNASKED_BODY_BYTES
        self._rest = Rest(is_chunked=is_chunked, most_thrown_away=most)
        self._is_pipeline_held |= must_wait
        if self._is_closing:
            self.cycle.keep_alive = False

    def _new_slot(self, route: HotRoute) -> _Slot:
        slot = _Slot(self, route, self._started)
        observer = self._application.observer
        if observer is not None:
            head, started_s = self._head.table, self._started
            slot.watch = observer.watch(
                route.endpoint.name, route.metrics.route, head, peer=self.client, started_s=started_s
            )
        self._line.append(slot)
        return slot

    def _begin(self, slot: _Slot, body: bytes) -> None:
        """Understand a request and have it computed; its slot is told when there is an answer."""
        application = self._application
        headers = self._head.table
        place, self._place = self._place, None
        try:
            grant = application.guard.allow(headers, slot.route.endpoint.name)
            if slot.watch is not None:
                slot.watch.client = grant.who or slot.watch.client
            if slot.route.endpoint.current is None:
                slot.route.require()
            deadline = Deadline.after(self._timeout_s)
            if TIMEOUT_HEADER in headers:
                deadline = deadline.within(asked_timeout_s(headers))
            if place is None:
                place = application.computing.enter()
                if application.guard.quotas is not None:
                    application.guard.charge(grant, len(body), self.client)
            prepared = slot.route.prepare(headers, body, grant.who)
            slot.prepared = prepared
            if slot.watch is not None:
                slot.watch.take(prepared)
            job = application.computing.submit(prepared, place, deadline, slot.done)
        finally:
            if place is not None:
                place.leave()
        if slot.response is None:
            slot.job = job

    def write_line(self) -> None:
        """Write the answers that are ready, up to the first slot that is not."""
        line = self._line
        while line and (response := line[0].response) is not None:
            line.popleft()
            self._write(response)
        if not line and self._is_pipeline_held:
            self._is_pipeline_held = False
            self.server_state.total_requests -= 1  # uvicorn counts a request where it takes the next
            self.on_response_complete()

    def _write(self, response: Response) -> None:
        if self.transport.is_closing():
            return
        is_last = (b"connection", b"close") in response.headers
        if self._is_closing and not self._line and self._route is None and not self._is_pipeline_held:
            is_last = True
        body = response.body
        close = b"connection: close\r\n" if is_last else b""
        head, dates = _head(response.status, response.headers), _dates(self.server_state.default_headers)
        self.transport.write(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (head, dates, close, len(body), body))
        self.server_state.total_requests += 1
        self._application.fast_answers += 1
        if is_last:
            self.transport.close()
            return
        self._last_answer = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def _body_is_late(self) -> None:
        route = self._route
        self._body_timer = None
        if route is None:
            self._rest_is_late()
            return
        self._route = None
        self._is_closing = True
        late = RequestRefusedError(
            "the request's body did not arrive in time",
            status=408,
            expected=f"all of it within {self._timeout_s:g} s",
        )
        self.flow.pause_reading()  # the rest of the body belongs to nobody
        self._give_place_back()
        self._new_slot(route).done(late)

    def _rest_is_late(self) -> None:
        """Close if only the rest of an answered request is missing; who still reads it has a deadline of its own."""
        if self._rest is None or self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self.transport.close()
        else:
            self._body_timer = self.loop.call_later(min(self._timeout_s, _LOOK_AGAIN_S), self._body_is_late)

    def _refuse_rest(self) -> None:
        """Refuse chunk sizes or trailers without end, and close; behind another answer, only close."""
        if self.transport.is_closing():
            return
        if self._line or self.pipeline or self.cycle.response_started:
            self.transport.close()
            return
        what, expected = "the request's chunk sizes or trailers are too long", f"at most {MAX_HEAD_BYTES} bytes"
        self._write(refuse(RequestRefusedError(what, status=400, expected=expected, close=True)))

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._refuse_head(408, "the request's head did not arrive in time", f"all of it within {self._timeout_s:g} s")

    def _refuse_head(self, status: int, what: str, expected: str) -> None:
        """Answer a head that is not there yet, and close; behind an answer that is still being made, only close."""
        if self.transport.is_closing():
            return
        if self._line or self._has_open_cycle() or not self._is_in_head:
            self.transport.close()
            return
        self._is_closing = True
        self._is_in_head = False
        self._write(refuse(RequestRefusedError(what, status=status, expected=expected)))

    def _check_idle(self) -> None:
        """Close the connection if nothing happened since the last answer; one timer serves many requests."""
        self._idle_timer = None
        if self.transport.is_closing():
            return
        is_busy = self._route is not None or bool(self._line) or self._has_open_cycle()
        left_s = self._last_answer + self.timeout_keep_alive - self.loop.time()
        if not is_busy and left_s <= 0 and self.timeout_keep_alive_task is None:
            self.transport.close()
            return
        self._idle_timer = self.loop.call_later(max(left_s, 1.0), self._check_idle)


class _Slot:
    """One request in the line of its connection, from the end of its body to its answer."""

    __slots__ = ("job", "prepared", "protocol", "response", "route", "started", "watch")

    def __init__(self, protocol: _HotProtocol, route: HotRoute, started: float) -> None:
        self.protocol = protocol
        self.route = route
        self.started = started
        self.job: Job | Attempt | None = None
        self.prepared: Prepared | None = None
        self.response: Response | None = None
        self.watch: Watch | None = None

    def done(self, outcome: Outcome) -> None:
        """Take the outputs or the refusal, and write what can be written."""
        self.job = None
        prepared = self.prepared
        try:
            if isinstance(outcome, BaseException):
                response = refuse(outcome)
            else:
                assert prepared is not None  # set before the request was handed to be computed
                response = prepared.encode(outcome)
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
            response = refuse(exc)
        self.response = response
        metrics = self.route.metrics if prepared is None else prepared.counted_in(self.route.metrics)
        metrics.observe(response.status, time.perf_counter() - self.started)
        self.protocol.write_line()
        if self.watch is not None:
            self.watch.end(response.status)

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        if self.job is not None:
            self.job.drop()


class _Head(NamedTuple):
    """The headers of a request, looked at once: a client repeats them on its connection, to the byte."""

    raw: list[tuple[bytes, bytes]] | None
    table: Mapping[bytes, bytes]
    length: int
    """Bytes of the body; -1 if the request is not for the fast way."""

    @classmethod
    def of(cls, raw: list[tuple[bytes, bytes]]) -> _Head:
        """Look at headers as they came, their names in any case."""
        table = header_table(raw)
        length = table.get(b"content-length", b"")
        is_hot = length.isdigit() and len(length) < 10 and b"host" in table and _NOT_HOT.isdisjoint(table)
        if len(table) != len(raw):
            is_hot = is_hot and names_one_host([name.lower() for name, _ in raw], "1.1")
        is_small = sum(len(name) + len(value) for name, value in raw) <= _MAX_KEPT_HEAD_BYTES
        return cls(raw if is_small else None, table, int(length) if is_hot else -1)


_NO_HEAD = _Head(None, {}, -1)


def _dates(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return uvicorn's own headers (date, server) as lines; it makes a new list of them every second."""
    global _known_dates  # noqa: PLW0603  # a memo of one pair
    known, lines = _known_dates
    if known is not headers:
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        _known_dates = headers, lines
    return lines


_known_dates: tuple[list[tuple[bytes, bytes]] | None, bytes] = (None, b"")

_heads: dict[tuple[int, HeaderList], bytes] = {}


def _head(status: int, headers: HeaderList) -> bytes:
    """Return the status line and the headers of an answer; nearly all answers share a few."""
    key = (status, headers)
    head = _heads.get(key)
    if head is None:
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()]
        lines += [b"%b: %b\r\n" % pair for pair in headers]
        head = b"".join(lines)
        if len(_heads) >= _MAX_CACHED_HEADS:
            _heads.clear()
        _heads[key] = head
    return head
