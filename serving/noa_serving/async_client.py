"""An asynchronous client: the calls of `Client`, many at once, over kept-alive connections of its own.

Each call takes an idle connection or opens one, at most `max_connections`; a call beyond waits for one. Nothing but the
standard library: the server's answers have a length or are chunked, and no more of HTTP is needed here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from noa.signatures import TensorSpec
from noa_serving._client_wire import (
    Answer,
    Inputs,
    Prediction,
    Request,
    error_of,
    infer_request,
    json_request,
    metadata_request,
    needs_specs,
    no_answer,
    parse_address,
    read_inputs,
    read_object,
    read_prediction,
    read_specs,
    wait_before_retry,
)
from noa_serving.client_streams import AsyncStepStream, Step, StepReader, StreamEnd, broken_off, stream_request

_MOST_HEAD_BYTES = 1 << 18
_GOODBYE_S = 1.0
_FAILURES = (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError)


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    was_used: bool = False


class AsyncClient:
    """Calls one server from one event loop. `timeout_s` bounds one whole call, waiting and retries included.

    `tls` as for `Client`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_connections: int = 64,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = parse_address(url)
        self.url = self._address.url
        self.timeout_s = timeout_s
        self._tls = tls
        self._headers = {"host": self.url.partition("//")[2]}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._places = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []

    async def predict(self, endpoint: str, inputs: Inputs, *, outputs: Sequence[str] = ()) -> Prediction:
        """Send arrays with a batch axis and return the outputs, as `Client.predict` does.

        Raises:
            NotFoundError: no such endpoint.
            InvalidInputError: the server refused the input; the message is the server's.
            ServiceError: the server does not answer, is not ready or is overloaded for longer than `timeout_s`.
        """
        specs = read_inputs(await self.metadata(endpoint), self.url) if needs_specs(inputs) else {}
        return read_prediction(await self.call(infer_request(endpoint, inputs, specs=specs, outputs=outputs)), self.url)

    async def predict_json(self, endpoint: str, body: object) -> dict[str, object]:
        """Send a plain JSON prediction request as it is and return the JSON answer. Errors as in `predict`."""
        return read_object(await self.call(json_request(endpoint, body)), self.url)

    def stream(
        self,
        endpoint: str,
        inputs: Inputs,
        *,
        outputs: Sequence[str] = (),
        max_steps: int | None = None,
        deadline_s: float | None = None,
    ) -> AsyncStepStream:
        """Call a model step by step, as `Client.stream` does; a stream counts as one of `max_connections`.

        Raises, with the first step or a later one:
            NotFoundError: no such endpoint, or it has no streams.
            InvalidInputError: the server refused the input, or the model cannot compute it.
            ServiceError: the server does not answer or is overloaded for too long, the model failed, or the stream
                broke off. It is not taken up again.
        """
        steps = self._stream(endpoint, inputs, outputs=outputs, max_steps=max_steps, deadline_s=deadline_s)
        return AsyncStepStream(steps)

    async def metadata(self, endpoint: str) -> dict[str, object]:
        """Return the model metadata of the Open Inference Protocol. Errors as in `predict`."""
        return read_object(await self.call(metadata_request(endpoint)), self.url)

    async def inputs(self, endpoint: str) -> tuple[TensorSpec, ...]:
        """Return the input tensors of an endpoint; a free axis is called `batch`. Errors as in `predict`."""
        return read_specs(await self.metadata(endpoint), self.url)

    async def status(self) -> dict[str, object]:
        """Return what the server knows about its endpoints: versions, digests, swaps and refused versions."""
        return read_object(await self.call(Request("GET", "/status")), self.url)

    async def ready(self) -> bool:
        """Tell whether the server answers and every endpoint is loaded. Never raises for a server that is away."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return (await self.exchange(Request("GET", "/v2/health/ready"))).status == 200
        except _FAILURES:
            return False

    async def _stream(
        self, endpoint: str, inputs: Inputs, *, outputs: Sequence[str], max_steps: int | None, deadline_s: float | None
    ) -> AsyncGenerator[Step | StreamEnd]:
        metadata = await self.metadata(endpoint)
        request = stream_request(
            endpoint, inputs, metadata, self.url, outputs=outputs, max_steps=max_steps, deadline_s=deadline_s
        )
        reader = StepReader(metadata, self.url)
        async with self._places:
            connection = await self._begin_stream(request)
            try:
                while True:
                    try:
                        async with asyncio.timeout(self.timeout_s):
                            data = await _read_chunk(connection.reader)
                    except _FAILURES as exc:
                        raise broken_off(reader.steps, exc, self.url) from exc
                    if not data:
                        raise broken_off(reader.steps, "the end of the answer", self.url)
                    for found in reader.read(data):
                        yield found
            finally:
                connection.writer.close()

    async def _begin_stream(self, request: Request) -> _Connection:
        """Send a request until its answer begins with 200; returns the connection on which its body comes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        while True:
            connection: _Connection | None = None
            is_begun = False
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._open()
                    await self._send(connection, request)
                    status, headers = await _read_head(connection.reader)
                    is_begun = status == 200 and headers.get("transfer-encoding", "").lower() == "chunked"
                    if is_begun:
                        return connection
                    answer = Answer(status, headers, await _read_body(connection.reader, status, headers))
            except _FAILURES as exc:
                raise no_answer(exc, self.url, timeout_s=self.timeout_s) from exc
            finally:
                if connection is not None and not is_begun:
                    connection.writer.close()
            wait_s = wait_before_retry(answer)
            if wait_s is None or loop.time() + wait_s >= deadline:
                raise error_of(answer, self.url)
            await asyncio.sleep(wait_s)

    async def call(self, request: Request) -> Answer:
        """Send a request until it is answered with 200; a busy server's `Retry-After` is honoured. Errors as above."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await self.exchange(request)
            except _FAILURES as exc:
                raise no_answer(exc, self.url, timeout_s=self.timeout_s) from exc
            if answer.status == 200:
                return answer
            wait_s = wait_before_retry(answer)
            if wait_s is None or loop.time() + wait_s >= deadline:
                raise error_of(answer, self.url)
            await asyncio.sleep(wait_s)

    async def exchange(self, request: Request) -> Answer:
        """Send a request once and return its answer, whatever it is.

        A connection that the server closed while it was idle is replaced by a new one, once.

        Raises:
            OSError, EOFError: the server is away.
            ValueError: what it answers is no HTTP.
        """
        async with self._places:
            connection = self._idle.pop() if self._idle else await self._open()
            try:
                return await self._use(connection, request)
            except (ConnectionError, asyncio.IncompleteReadError):
                if not connection.was_used:
                    raise
            return await self._use(await self._open(), request)

    async def close(self) -> None:
        """Close all idle connections; a later call opens new ones."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.writer.close()
        if self._address.scheme == "https":  # TLS says goodbye, for which the loop must turn
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await asyncio.gather(*(one.writer.wait_closed() for one in idle), return_exceptions=True)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> _Connection:
        address = self._address
        is_tls = address.scheme == "https"
        if is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        context = self._tls if is_tls else None
        port = address.port or (443 if is_tls else 80)
        reader, writer = await asyncio.open_connection(address.host, port, ssl=context, limit=_MOST_HEAD_BYTES)
        cast("socket.socket", writer.get_extra_info("socket")).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Connection(reader, writer)

    async def _use(self, connection: _Connection, request: Request) -> Answer:
        """Exchange over one connection, and keep it only if its answer was read to the end."""
        is_kept = False
        try:
            await self._send(connection, request)
            status, headers = await _read_head(connection.reader)
            answer = Answer(status, headers, await _read_body(connection.reader, status, headers))
            is_kept = answer.headers.get("connection", "").lower() != "close"
            return answer
        finally:
            if is_kept:
                connection.was_used = True
                self._idle.append(connection)
            else:
                connection.writer.close()

    async def _send(self, connection: _Connection, request: Request) -> None:
        headers = {**self._headers, **request.headers}
        if request.body is not None:
            headers["content-length"] = str(len(request.body))
        lines = [
            f"{request.method} {request.path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        connection.writer.write("\r\n".join((*lines, "", "")).encode("latin-1") + (request.body or b""))
        await connection.writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return status and headers of an answer, names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = head[0].partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise ValueError("the answer is no HTTP/1.1")
    headers: dict[str, str] = {}
    for line in head[1:]:
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip().lower()] = value.strip()
    return int(status), headers


async def _read_body(reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        chunks: list[bytes] = []
        while chunk := await _read_chunk(reader):
            chunks.append(chunk)
        return b"".join(chunks)
    length = headers.get("content-length", "0" if status == 204 else "")
    if not length.isdigit():
        raise ValueError("the answer has no length")
    return await reader.readexactly(int(length))


async def _read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Return the next chunk of a body; nothing at its end."""
    size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
    if size:
        chunk = await reader.readexactly(size)
        await reader.readexactly(2)
        return chunk
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b""
