"""`ModelStreamInfer`: requests and answers over one call of gRPC, for models with streams and without.

A model without streams answers each request once, in order. One with streams answers a request with a message for each
step; streams of one call run beside each other, and the `id` of a request is in each of its answers. Every answer has
Triton's parameter `triton_final_response`: whether it is the last one to its request. Where the request asks for it
(`triton_enable_empty_final_response`), the last one is a message of its own without outputs. A refused request is told
in the call, which goes on. A client that goes away ends its streams, and none goes on while the client does not read.

Source: Triton Inference Server, docs/user_guide/decoupled_models.md and src/grpc/stream_infer_handler.cc.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from noa_serving import _grpc_infer
from noa_serving._deadline import Deadline, asked_timeout_s
from noa_serving._grpc_messages import schema
from noa_serving._http import Headers, refuse, status_of
from noa_serving._models import require_version
from noa_serving._observer import StreamNote
from noa_serving._streams import ClientGoneError, Stream, StreamRequest

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._application import Application
    from noa_serving._guard import Peer
    from noa_serving._observer import Watch
    from noa_serving._stream_counts import EndReason
    from noa_serving._stream_routes import StreamRoute

FINAL = "triton_final_response"


class Compute(Protocol):
    """Computes one answer to a message, as `ModelInfer` does."""

    def __call__(
        self, body: bytes, headers: Headers, left_s: float | None, peer: Peer, *, message: Any
    ) -> Coroutine[Any, Any, bytes]:
        """Return the answer. Errors as those of a request over HTTP."""
        ...


class StreamCalls:
    """All calls of one worker. Belongs to its event loop."""

    def __init__(self, application: Application, compute: Compute) -> None:
        self._application = application
        self._compute = compute
        self._routes = application.streams.add(
            "grpc_stream", partial(_grpc_infer.prepare_stream, regions=application.regions)
        )

    async def answer(self, bodies: AsyncIterator[bytes], context: Any, headers: Headers, peer: Peer) -> None:
        """Answer the requests of one call until there are no more and all streams have ended."""
        call = _Call(context)
        async with asyncio.TaskGroup() as running:
            async for body in bodies:
                message: Any = None
                try:
                    self._application.guard.identify(headers)
                    message = _grpc_infer.parse_request(body)
                    route = self._routes.get(message.model_name)
                    if route is None:
                        left_s = context.time_remaining()
                        answer = await self._compute(body, headers, left_s, peer, message=message)
                        await call.send_whole(answer)
                        continue
                    route = route.of_version(message.model_name, message.model_version)
                except ClientGoneError:
                    return
                except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
                    with suppress(ClientGoneError):
                        await call.send_error(exc, message)
                    continue
                running.create_task(self._stream(call, route, message, len(body), headers, peer))

    async def _stream(
        self, call: _Call, route: StreamRoute, message: Any, num_bytes: int, headers: Headers, peer: Peer
    ) -> None:
        """Run one stream to its end."""
        began_s, observer = time.perf_counter(), self._application.observer
        watch: Watch | None = None
        if observer is not None:
            watch = observer.watch(route.endpoint.name, "grpc_stream", headers, peer=peer, started_s=began_s)
        stream: Stream | None = None
        status = 200
        with ExitStack() as held:
            try:
                has_empty_final = _grpc_infer.wants_empty_final(message)
                stream = self._open(call, route, message, num_bytes, headers, peer, watch, held, began_s)
                event = await stream.next()
                held.callback(stream.close)
                while event is not None:
                    await call.send(event)
                    event = await stream.next()
                if stream.reason == "deadline":
                    raise stream.deadline.missed()
                if has_empty_final:
                    await call.send_final(stream.asked, message, stream.steps, stream.reason)
            except ClientGoneError:
                if stream is not None:
                    stream.reason = "gone"
            except Exception as exc:  # noqa: BLE001  # the last border: whatever it is becomes an answer
                status = status_of(exc)
                if stream is not None and stream.reason != "deadline":
                    stream.fail()
                with suppress(ClientGoneError):
                    await call.send_error(exc, message)
        route.counted_in(None if stream is None else stream.asked).observe(status, time.perf_counter() - began_s)
        if watch is not None:
            if stream is not None and stream.steps:
                watch.stream = StreamNote(stream.steps, str(stream.reason))
            watch.end(status)

    def _open(
        self,
        call: _Call,
        route: StreamRoute,
        message: Any,
        num_bytes: int,
        headers: Headers,
        peer: Peer,
        watch: Watch | None,
        held: ExitStack,
        began_s: float,
    ) -> Stream:
        """Let a request in, and understand it; `held` gives back what it takes."""
        application = self._application
        grant = application.guard.allow(headers, route.endpoint.name)
        if watch is not None:
            watch.client = grant.who or watch.client
        require_version(route.endpoint, route.version)
        deadline = Deadline.after(application.settings.timeout_s).within(call.left_s())
        deadline = deadline.within(asked_timeout_s(headers))
        route.counts.enter()
        held.callback(route.counts.leave)
        application.guard.charge(grant, num_bytes, peer)
        asked: StreamRequest = route.understand(headers, message, grant.who)
        has_empty_final = _grpc_infer.wants_empty_final(message)

        def write(number: int, arrays: Mapping[str, np.ndarray], is_last: bool) -> bytes:
            del number
            answer = _grpc_infer.answer_of(asked.generation, arrays, message)
            return _whole(answer, is_final=is_last and not has_empty_final)

        stream = Stream(asked, application.computing, deadline, route.counts, write, began_s=began_s)
        if watch is not None:
            watch.take(stream.first)
        return stream


class _Call:
    """The answers of one call: one message at a time, from however many streams."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._lock = asyncio.Lock()

    def left_s(self) -> float | None:
        """Return the seconds until the client's own deadline, None without one."""
        return self._context.time_remaining()

    async def send(self, message: bytes) -> None:
        """Send a message; returns once the client has room for it.

        Raises:
            ClientGoneError: it has none any more.
        """
        async with self._lock:
            try:
                await self._context.write(message)
            except Exception as exc:  # gRPC has no one public error for it
                raise ClientGoneError from exc

    async def send_whole(self, body: bytes) -> None:
        """Send the only answer to a request."""
        answer = schema().classes["ModelInferResponse"]()
        answer.ParseFromString(body)
        await self.send(_whole(answer, is_final=True))

    async def send_final(self, asked: StreamRequest, request: Any, steps: int, reason: EndReason | None) -> None:
        """Send the answer without outputs that ends a stream."""
        answer = _grpc_infer.answer_of(asked.generation, {}, request)
        answer.parameters["steps"].int64_param = steps
        answer.parameters["reason"].string_param = reason or ""
        await self.send(_whole(answer, is_final=True))

    async def send_error(self, error: Exception, request: Any) -> None:
        """Send the answer to a request that was refused or has failed."""
        response = schema().classes["ModelStreamInferResponse"](error_message=_text_of(error))
        if request is not None:
            response.infer_response.id = request.id
            response.infer_response.model_name = request.model_name
            response.infer_response.model_version = request.model_version
        response.infer_response.parameters[FINAL].bool_param = True
        await self.send(response.SerializeToString())


def _whole(answer: Any, *, is_final: bool) -> bytes:
    answer.parameters[FINAL].bool_param = is_final
    return schema().classes["ModelStreamInferResponse"](infer_response=answer).SerializeToString()


def _text_of(error: Exception) -> str:
    return str(orjson.loads(refuse(error).body)["error"])
