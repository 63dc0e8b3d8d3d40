"""Reading bodies within limits and sending answers over ASGI, for all that answer there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from noa_serving._http import Headers, RequestRefusedError, Response

if TYPE_CHECKING:
    from noa_serving._admission import Place
    from noa_serving._application import Application
    from noa_serving._guard import Peer
    from noa_serving._key_ring import Grant

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class DisconnectedError(Exception):
    """The client is gone; there is nobody to answer."""


async def read_body(receive: Receive, limit: int, *, timeout_s: float, place: Place | None = None) -> bytes:
    """Return the body of a request. Where nobody said how long it is, its bytes are counted with `place` as they come.

    Raises:
        RequestRefusedError: 408, it does not arrive in time; 413, it is larger than `limit` bytes; 503, the bodies of
            others take what there is.
        DisconnectedError: the client is gone.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _receive_body(receive, limit, place)
    except TimeoutError as exc:
        raise RequestRefusedError(
            "the request's body did not arrive in time",
            status=408,
            expected=f"all of it within {timeout_s:g} s",
            close=True,
        ) from exc


async def read_charged(
    application: Application, grant: Grant, headers: Headers, receive: Receive, *, peer: Peer, place: Place
) -> bytes:
    """Return the body of a request that computes: charged to its client, and its bytes counted with its place.

    Raises:
        RequestRefusedError: 429, the client is over its quota; and as `read_body`.
        DisconnectedError: the client is gone.
    """
    settings, length = application.settings, headers.get(b"content-length", b"")
    is_known = length.isdigit()
    if is_known:
        place.reserve(int(length))
    application.guard.charge(grant, int(length) if is_known else 0, peer)
    counted = None if is_known else place
    body = await read_body(receive, settings.max_body_bytes, timeout_s=settings.timeout_s, place=counted)
    if not is_known:
        application.guard.charge_bytes(grant, len(body), peer)
    return body


def check_length(headers: Headers, limit: int) -> None:
    """Refuse a body that says it is too large.

    Raises:
        RequestRefusedError: 413.
    """
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit, length[:24].decode())


async def wait_gone(receive: Receive) -> None:
    """Return when the client of a request whose body was read is gone, or its answer was sent."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_response(send: Send, response: Response) -> None:
    """Send one whole answer."""
    length = (b"content-length", str(len(response.body)).encode())
    await send({"type": "http.response.start", "status": response.status, "headers": [length, *response.headers]})
    await send({"type": "http.response.body", "body": response.body})


async def _receive_body(receive: Receive, limit: int, place: Place | None) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = cast("bytes", message.get("body", b""))
        if len(body) > limit:
            raise _too_large(limit, len(body))
        return body
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise DisconnectedError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise _too_large(limit, size)
        if place is not None:
            place.reserve(len(chunks[-1]))
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def _too_large(limit: int, received: object) -> RequestRefusedError:
    return RequestRefusedError(
        "the body is too large", status=413, expected=f"at most {limit} bytes", received=received, close=True
    )
