"""One HTTP request to one webhook, on urllib3: no redirects, no proxies, TLS verified, bounded in time and size.

The connection goes to an address that was checked (see `public_addresses`); name, TLS and `Host` stay those of the URL.
"""

from __future__ import annotations

import importlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from noa.errors import NoaError, ServiceError
from noa_registry.database import now
from noa_registry.events.public_addresses import resolve

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

MAX_RESPONSE_BYTES = 64 << 10
_EXCERPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the receiver said. `excerpt` is the beginning of its text, printable; `retry_after_s` if it named one."""

    status: int
    excerpt: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to send where. `timeout_s` bounds the whole exchange after the name was resolved."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    allow_private: bool
    ca_file: Path | None


def load_client() -> None:
    """Import what `post` needs. Call it before threads do: urllib3 cannot be imported by two of them at once."""
    importlib.import_module("urllib3.connection")


def post(request: Request) -> Answer:
    """Send one POST request and return the answer, whatever its status.

    Raises:
        ServiceError: there was no answer; the message says why and holds neither secret, path nor query.
    """
    from urllib3.exceptions import HTTPError

    parts = urlsplit(request.url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    where = f"{parts.scheme}://{host}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    deadline = time.monotonic() + request.timeout_s
    try:
        addresses = resolve(host, port, allow_private=request.allow_private)
        deadline = time.monotonic() + request.timeout_s
        with _dial(addresses, port, deadline) as dialled, _connection(request, host, port, dialled) as connection:
            connection.request(
                "POST", path, body=request.body, headers=request.headers, preload_content=False, decode_content=False
            )
            response = connection.getresponse()
            text = response.read(MAX_RESPONSE_BYTES)
            return Answer(
                status=response.status,
                excerpt=_printable(text),
                retry_after_s=read_retry_after(response.headers.get("Retry-After"), now()),
            )
    except NoaError as exc:
        raise ServiceError(f"could not be sent: {exc}", where=where) from exc
    except (HTTPError, HTTPException, OSError, ValueError) as exc:
        late = time.monotonic() >= deadline
        why = f"no answer within {request.timeout_s:g} s" if late else _printable(_reason(exc).encode())
        raise ServiceError(f"could not be sent: {why}", where=where) from exc


@contextmanager
def _dial(addresses: list[str], port: int, deadline: float) -> Generator[socket.socket]:
    """Connect to the first address that answers; at the deadline the connection is cut, whatever it is at."""
    dialled = _connect(addresses, port, deadline)
    # A second handle on the same connection: TLS takes the first one over. A receiver that sends a byte now and then
    # would never meet a timeout that each read begins anew.
    was_cut = threading.Event()
    with closing(dialled), closing(dialled.dup()) as handle:
        watchdog = threading.Timer(max(deadline - time.monotonic(), 0.0), _cut, (handle, was_cut))
        watchdog.daemon = True
        watchdog.start()
        try:
            yield dialled
        finally:
            watchdog.cancel()
            watchdog.join()
    if was_cut.is_set():  # to the parser a cut answer may look like one that ended
        raise TimeoutError


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    last: OSError = TimeoutError("no address answered in time")
    for address in addresses:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        try:
            return socket.create_connection((address, port), timeout=remaining)
        except OSError as exc:
            last = exc
    raise last


def _cut(handle: socket.socket, was_cut: threading.Event) -> None:
    was_cut.set()
    try:
        handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was faster


@contextmanager
def _connection(request: Request, host: str, port: int, dialled: socket.socket) -> Generator[HTTPConnection]:
    connection = _open(request, host, port, lambda: dialled)
    try:
        yield connection
    finally:
        connection.close()


def _open(request: Request, host: str, port: int, dial: Callable[[], socket.socket]) -> HTTPConnection:
    from urllib3.connection import HTTPConnection, HTTPSConnection

    # urllib3's own place to say how a connection is made; its other ways would resolve the name a second time.
    if request.url.startswith("https:"):

        class Tls(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return dial()

        authority = None if request.ca_file is None else str(request.ca_file)
        return Tls(host, port, timeout=request.timeout_s, cert_reqs="CERT_REQUIRED", ca_certs=authority)

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return dial()

    return Plain(host, port, timeout=request.timeout_s)


def _reason(exc: BaseException) -> str:
    text = str(exc) or type(exc).__name__
    return f"{type(exc).__name__}: {text}" if text != type(exc).__name__ else text


def _printable(data: bytes) -> str:
    text = data[: 4 * _EXCERPT].decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_EXCERPT]


def read_retry_after(value: str | None, moment: datetime) -> float | None:
    """Return the seconds that `Retry-After` asks for, from `moment` on; None if it holds neither a number nor a date.

    However many they are: whoever waits has a longest wait of their own.

    Source: RFC 9110, section 10.2.3: whole seconds, or an HTTP date.
    """
    text = "" if value is None else value.strip()
    if text.isascii() and text.isdecimal():
        return float(text)  # of more digits than a float holds: infinity
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max((until - moment).total_seconds(), 0.0)
