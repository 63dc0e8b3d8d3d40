"""A real receiver of webhooks on 127.0.0.1: keeps what came and answers as it is told."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "a-secret-of-the-tests"


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def sequence(self) -> int:
        return self.json["sequence"]

    @property
    def is_genuine(self) -> bool:
        """The check that docs/events.md shows."""
        signed = self.headers["Noa-Timestamp"].encode() + b"." + self.body
        expected = "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        is_fresh = abs(time.time() - int(self.headers["Noa-Timestamp"])) < 300
        return is_fresh and hmac.compare_digest(expected, self.headers["Noa-Signature"])


Answer = Callable[[Received, int], tuple[int, dict[str, str]]]
"""From a request and how many came before it to a status and headers."""


class Receiver:
    def __init__(
        self, answer: Answer = lambda _request, _before: (204, {}), *, certificate: Path | None = None
    ) -> None:
        self.received: list[Received] = []
        self.changed = threading.Condition()
        self.answer = answer
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Received(path=self.path, headers=dict(self.headers.items()), body=body)
                with receiver.changed:
                    before = len(receiver.received)
                    receiver.received.append(request)
                    receiver.changed.notify_all()
                status, headers = receiver.answer(request, before)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                del request, client_address  # the other side hung up, as some tests want

        self._server = Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, count: int, *, timeout_s: float = 120.0) -> list[Received]:
        """Wait until so many requests came."""
        assert self.is_reached(count, timeout_s=timeout_s), self.received
        with self.changed:
            return list(self.received)

    def is_reached(self, count: int, *, timeout_s: float = 120.0) -> bool:
        """Wait until so many requests came; tell whether they did."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.received) >= count, timeout_s)

    def sequences(self, model: str | None = None) -> list[int]:
        with self.changed:
            return [one.sequence for one in self.received if model in (None, one.json["model"])]
