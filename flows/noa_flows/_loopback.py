"""Ports and HTTP on this machine: choose a port, prove one is free, ask a server something."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import cast

import psutil

from noa.errors import ConflictError, ServiceError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said. `body` is parsed JSON, or text if it is none."""

    status: int
    body: object


def claim_port(host: str, port: int, *, service: str, setting: str) -> int:
    """Return `port` if it is free on `host`, or a free one if `port` is 0.

    Raises:
        ConflictError: another process listens there; names the setting to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                reason = os.strerror(exc.errno or 0).lower()
                raise ServiceError(f"service `{service}` cannot listen on {host}:{port}: {reason}") from exc
            raise ConflictError(
                f"port {port} is in use by another process, and service `{service}` needs it",
                where=f"{host}:{port}",
                received=_holder_of(port),
                remedy=f"Set `{setting}` to another port, or to 0 for a free one",
                port=port,
                service=service,
                setting=setting,
            ) from exc
        return cast("int", probe.getsockname()[1])


def ask(
    url: str,
    *,
    body: object = None,
    method: str | None = None,
    timeout_s: float = 5.0,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request, with `body` as JSON and `token` as bearer token if given; `tls` is for an `https` address.

    Raises:
        ConnectionError: nobody answered, in time or in HTTP.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with _opener(tls).open(request, timeout=timeout_s) as response:
            return Answer(status=response.status, body=_parse(response.read()))
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(status=exc.code, body=_parse(exc.read()))
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise ConnectionError(f"no answer from {url}: {exc}") from exc


def answers(url: str, *, tls: ssl.SSLContext | None = None) -> bool:
    """Tell whether a server answers this address with success."""
    try:
        return 200 <= ask(url, timeout_s=2.0, tls=tls).status < 300
    except ConnectionError:
        return False


def refusal_of(url: str, *, tls: ssl.SSLContext | None = None) -> str:
    """Return why a server that runs does not answer this address with success, or what it lacks; "" for neither."""
    try:
        answer = ask(url, timeout_s=2.0, tls=tls)
    except ConnectionError:
        return "it does not answer"
    table = cast("dict[str, object]", answer.body) if isinstance(answer.body, dict) else {}
    if 200 <= answer.status < 300:
        return str(table.get("degraded", ""))
    return str(table.get("error", f"it answers {answer.status}"))


def _holder_of(port: int) -> str | None:
    """Return who listens on a port, None if that is not for us to know."""
    try:
        found = psutil.net_connections("tcp")
        pid = next((one.pid for one in found if one.status == "LISTEN" and one.laddr and one.laddr[1] == port), None)
        return None if pid is None else f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return None


def _opener(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    if tls is None:
        return _OPENER
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))


def _parse(payload: bytes) -> object:
    try:
        return cast("object", json.loads(payload))
    except ValueError:
        return payload.decode(errors="replace")
