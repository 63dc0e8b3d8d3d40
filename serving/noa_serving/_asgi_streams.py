"""Streams over HTTP: one answer of server-sent events, each sent when the client has taken the one before.

The first step is computed before the answer begins, so that whatever is wrong with a request has its own status. After
that an error is an event. A client that goes away ends its stream, and nothing is computed while one does not read:
`send` waits, and at the deadline its connection is cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from noa_serving._asgi_messages import (
    DisconnectedError,
    Message,
    Receive,
    Send,
    check_length,
    read_charged,
    send_response,
    wait_gone,
)
from noa_serving._deadline import Deadline, asked_timeout_s
from noa_serving._http import Headers, RequestRefusedError, header_table, refuse, status_of
from noa_serving._models import require_version
from noa_serving._observer import StreamNote
from noa_serving._stream_events import EVENT_HEADERS, EventForm
from noa_serving._streams import Stream

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._admission import Place
    from noa_serving._application import Application
    from noa_serving._generation import Generation
    from noa_serving._guard import Peer
    from noa_serving._observer import Watch
    from noa_serving._stream_routes import StreamRoute

ABORT = "noa.abort"
"""The extension of an ASGI scope by which a connection is cut off, with what waits to be sent."""

_LATE_S = 1.0
"""How long after its deadline an answer may still be on its way; then the client does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One request before its body was read. `began_s` is on the clock `perf_counter`."""

    route: StreamRoute
    form: EventForm
    headers: Headers
    peer: Peer
    watch: Watch | None
    began_s: float


class StreamAnswers:
    """Answers requests for streams of one worker's application."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def answer(self, route: StreamRoute, form: EventForm, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request as ASGI asks for it."""
        began_s, observer = time.perf_counter(), self._application.observer
        headers, peer = header_table(scope["headers"]), scope.get("client")
        watch: Watch | None = None
        if observer is not None:
            watch = observer.watch(route.endpoint.name, route.metrics.route, headers, peer=peer, started_s=began_s)
        asked = _Asked(route=route, form=form, headers=headers, peer=peer, watch=watch, began_s=began_s)
        stream: Stream | None = None
        with ExitStack() as held:
            try:
                _check_version(scope)
                stream, place = await self._open(asked, receive, held)
                gone = asyncio.ensure_future(_abandon_when_gone(receive, stream))
                held.callback(gone.cancel)
                first = await stream.next(place)
            except DisconnectedError:
                return
            except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
                response = refuse(exc)
                _count(asked, stream, response.status)
                await send_response(send, response)
                if watch is not None:
                    watch.end(response.status)
                return
            if first is None:  # the client is gone
                return
            try:
                status = await _send_in_time(stream, first, form, send, partial(_cut_off, scope, gone))
            finally:
                stream.close()
            _count(asked, stream, status)
            if watch is not None:
                watch.stream = StreamNote(stream.steps, str(stream.reason))
                watch.end(status)

    async def _open(self, asked: _Asked, receive: Receive, held: ExitStack) -> tuple[Stream, Place]:
        """Let a request in, read and understand it; `held` gives back what it takes."""
        application, route, headers, watch = self._application, asked.route, asked.headers, asked.watch
        grant = application.guard.allow(headers, route.endpoint.name)
        if watch is not None:
            watch.client = grant.who or watch.client
        require_version(route.endpoint, route.version)
        check_length(headers, application.settings.max_body_bytes)
        deadline = Deadline.after(application.settings.timeout_s).within(asked_timeout_s(headers))
        route.counts.enter()
        held.callback(route.counts.leave)
        place = held.enter_context(application.computing.enter())
        body = await read_charged(application, grant, headers, receive, peer=asked.peer, place=place)
        understood = route.understand(headers, body, grant.who)
        write = partial(_write, asked.form, understood.generation)
        stream = Stream(understood, application.computing, deadline, route.counts, write, began_s=asked.began_s)
        if watch is not None:
            watch.take(stream.first)
        return stream, place


def _write(
    form: EventForm, generation: Generation, number: int, arrays: Mapping[str, np.ndarray], is_last: bool
) -> bytes:
    del is_last  # an event of its own tells the end
    return form.step(generation, number, arrays)


def _count(asked: _Asked, stream: Stream | None, status: int) -> None:
    metrics = asked.route.counted_in(None if stream is None else stream.asked)
    metrics.observe(status, time.perf_counter() - asked.began_s)


async def _send_in_time(
    stream: Stream, first: bytes, form: EventForm, send: Send, cut_off: Callable[[], Awaitable[None]]
) -> int:
    """Send all events; a client that has not read them a moment after the deadline is cut off."""
    within = asyncio.timeout(stream.deadline.left_s() + _LATE_S)
    try:
        async with within:
            return await _send_all(stream, first, form, send)
    except TimeoutError:
        if not within.expired():
            raise
    stream.reason = "deadline"
    await cut_off()
    return 200


async def _cut_off(scope: Message, gone: asyncio.Future[None]) -> None:
    abort: Callable[[], None] | None = (scope.get("extensions") or {}).get(ABORT)
    if abort is not None:
        abort()
        with suppress(TimeoutError):
            await asyncio.wait_for(gone, _LATE_S)  # until the server knows it, or it complains


async def _send_all(stream: Stream, first: bytes, form: EventForm, send: Send) -> int:
    """Send the answer to its end; returns the status that it had, or would have had with the error that ended it."""
    generation, status = stream.asked.generation, 200
    await send({"type": "http.response.start", "status": status, "headers": [*EVENT_HEADERS, *generation.headers]})
    event: bytes | None = first
    try:
        while event is not None:
            await _send_part(send, event)
            await _send_part(send, b"")  # returns once what was sent is on its way
            event = await stream.next()
        if stream.reason == "gone":
            return status
        last = form.end(generation, stream.steps, stream.reason or "error")
    except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an event
        stream.fail()
        status, last = status_of(exc), form.error(exc)
    await _send_part(send, last, more=False)
    return status


async def _send_part(send: Send, part: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": more})


async def _abandon_when_gone(receive: Receive, stream: Stream) -> None:
    await wait_gone(receive)
    stream.abandon()


def _check_version(scope: Message) -> None:
    """Refuse HTTP/1.0, where an answer of unknown length has no end of its own.

    Raises:
        RequestRefusedError: 400.
    """
    if scope.get("http_version") == "1.0":
        raise RequestRefusedError(
            "a stream needs HTTP/1.1",
            status=400,
            expected="HTTP/1.1",
            received="HTTP/1.0",
            remedy="Behind nginx: `proxy_http_version 1.1`",
        )
