"""The ASGI side: reads bodies within limits, holds a place per request, keeps the deadline, and sends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from noa_serving._application import Application, HotRoute
from noa_serving._asgi_messages import (
    DisconnectedError,
    Message,
    Receive,
    Send,
    check_length,
    read_body,
    read_charged,
    send_response,
    wait_gone,
)
from noa_serving._asgi_streams import StreamAnswers
from noa_serving._deadline import Deadline, asked_timeout_s
from noa_serving._guard import Peer
from noa_serving._http import Headers, RequestRefusedError, Response, header_table, refuse
from noa_serving._observer import CONTROL

if TYPE_CHECKING:
    from noa_serving._metrics import RouteMetrics
    from noa_serving._observer import Watch

T = TypeVar("T")

log = logging.getLogger("noa.serving")

_MAX_CONTROL_BODY_BYTES = 64 << 10
_MAX_TOLD_PATH = 256


class AsgiApplication:
    """An ASGI 3 callable around an `Application`. `on_startup` runs when the server listens."""

    def __init__(
        self,
        application: Application,
        *,
        on_startup: Callable[[], Awaitable[None]] | None = None,
        on_shutdown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._application = application
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._timeout_s = application.settings.timeout_s
        self._streams = StreamAnswers(application)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection's event as ASGI asks for it."""
        kind = scope["type"]
        if kind == "http":
            is_post, path = scope["method"] == "POST", scope["path"]
            if is_post and (route := self._application.find_hot(path)) is not None:
                await self._serve_hot(route, scope, receive, send)
            elif is_post and (found := self._application.streams.find(path)) is not None:
                await self._streams.answer(*found, scope, receive, send)
            else:
                await self._serve_control(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _serve_hot(self, route: HotRoute, scope: Message, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers, peer = header_table(scope["headers"]), scope.get("client")
        watch = self._watch(route.endpoint.name, route.metrics.route, headers, peer, start)
        metrics = route.metrics
        try:
            response, metrics = await self._compute(route, headers, receive, peer, watch)
        except DisconnectedError:
            return
        except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
            response = refuse(exc)
        metrics.observe(response.status, time.perf_counter() - start)
        await send_response(send, response)
        if watch is not None:
            watch.end(response.status)

    def _watch(self, target: str, route: str, headers: Headers, peer: Peer, started_s: float) -> Watch | None:
        observer = self._application.observer
        return None if observer is None else observer.watch(target, route, headers, peer=peer, started_s=started_s)

    async def _compute(
        self, route: HotRoute, headers: Headers, receive: Receive, peer: Peer, watch: Watch | None
    ) -> tuple[Response, RouteMetrics]:
        """Return the answer, and where it is counted."""
        application = self._application
        grant = application.guard.allow(headers, route.endpoint.name)
        if watch is not None:
            watch.client = grant.who or watch.client
        if route.endpoint.current is None:
            route.require()
        check_length(headers, application.settings.max_body_bytes)
        deadline = Deadline.after(self._timeout_s).within(asked_timeout_s(headers))
        with application.computing.enter() as place:
            body = await read_charged(application, grant, headers, receive, peer=peer, place=place)
            prepared = route.prepare(headers, body, grant.who)
            if watch is not None:
                watch.take(prepared)
            work = application.computing.run(prepared, place, deadline)
            if not prepared.generation.runs_inline(prepared.batch):
                work = _unless_gone(work, receive)
            try:
                response = prepared.encode(await work)
            except DisconnectedError:
                raise
            except Exception as exc:  # noqa: BLE001  # it is counted where the answer would have been
                response = refuse(exc)
            return response, prepared.counted_in(route.metrics)

    async def _serve_control(self, scope: Message, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers, peer = header_table(scope["headers"]), scope.get("client")
        watch = self._watch(scope["path"][:_MAX_TOLD_PATH], CONTROL, headers, peer, start)
        try:
            answer = await self._answer_control(scope, headers, receive, watch)
        except DisconnectedError:
            return
        await send_response(send, answer)
        if watch is not None:
            watch.end(answer.status)

    async def _answer_control(
        self, scope: Message, headers: Headers, receive: Receive, watch: Watch | None
    ) -> Response:
        body = b""
        if scope["method"] == "POST":
            try:
                check_length(headers, _MAX_CONTROL_BODY_BYTES)
                body = await read_body(receive, _MAX_CONTROL_BODY_BYTES, timeout_s=self._timeout_s)
            except RequestRefusedError as exc:
                # A mistyped name is told as such, however large the body for it is.
                unknown = self._application.refuse_unknown(scope["path"], headers) if exc.status == 413 else None
                return refuse(exc) if unknown is None else unknown
        return self._application.answer(
            scope["method"], scope["path"], headers, body, peer=scope.get("client"), watch=watch
        )

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self._application.follower.start()
                    self._application.guard.watch()
                    self._application.start()
                    if self._on_startup is not None:
                        await self._on_startup()
                except Exception as exc:
                    log.exception("the worker cannot start")
                    await send({"type": "lifespan.startup.failed", "message": str(exc)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                loop = asyncio.get_running_loop()
                self._application.guard.close()
                if self._on_shutdown is not None:
                    await self._on_shutdown()
                await loop.run_in_executor(None, self._application.follower.stop)
                await loop.run_in_executor(None, self._application.close)
                await send({"type": "lifespan.shutdown.complete"})
                return


async def refuse_host(scope: Message, receive: Receive, send: Send) -> None:
    """Refuse a request, as an ASGI application, that does not name one host."""
    del scope, receive
    error = RequestRefusedError(
        "the request does not name its host", status=400, expected="exactly one header `Host`", close=True
    )
    await send_response(send, refuse(error))


async def _unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Return the result of `work`, and cancel it if the client goes away before that."""

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DisconnectedError
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
