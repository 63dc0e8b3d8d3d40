"""A proxy between a client and an S3 API that fails as networks and servers do, at requests that a test chooses."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

Kind: TypeAlias = Literal[
    "error 500",  # the server answers that it cannot
    "error 403",  # the server answers that we may not
    "reset",  # the connection breaks before the request arrives
    "reset after",  # the request arrives, its answer does not
    "hang",  # nothing comes, ever
    "cut",  # the connection breaks in the middle of the answer's body
    "short",  # the answer says that its body is shorter than it is
    "crawl",  # a byte comes now and then
    "flip up",  # a bit of the request's body changes on its way; the server checks the checksum that came with it
    "flip down",  # a bit of the answer's body changes on its way
]


@dataclass
class Fault:
    """Do `kind` to the next `times` requests that match, after letting `skip` of them pass."""

    kind: Kind
    method: str
    path: str
    times: int = 1
    skip: int = 0
    hits: int = field(default=0)

    def takes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path) or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        self.hits += 1
        return True


class S3Proxy:
    """Forwards to `target` but for the faults that were planned. `requests` lists what came."""

    def __init__(self, target: str) -> None:
        self.requests: list[str] = []
        self.on_request: Callable[[str, str], None] = lambda _method, _path: None
        self.on_headers: Callable[[str, str, Message], None] = lambda _method, _path, _headers: None
        self._target = urlsplit(target).netloc
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def plan(self, kind: Kind, method: str, path: str, *, times: int = 1, skip: int = 0) -> Fault:
        """Let matching requests fail."""
        fault = Fault(kind, method, path, times, skip)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Let nothing fail any more."""
        with self._lock:
            self._faults.clear()

    def close(self) -> None:
        """Stop."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def parse_request(self) -> bool:
                if not super().parse_request():
                    return False
                proxy._serve(self)
                return False

            def handle_expect_100(self) -> bool:
                return super().handle_expect_100()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        method, path = request.command, request.path
        with self._lock:
            self.requests.append(f"{method} {path}")
            fault = next((fault for fault in self._faults if fault.takes(method, path)), None)
        self.on_request(method, path)
        self.on_headers(method, path, request.headers)
        kind = None if fault is None else fault.kind
        if kind == "hang":
            self._closing.wait(60)
            request.close_connection = True
        elif kind == "reset":
            _reset(request)
        elif kind in ("error 500", "error 403"):
            _answer(request, int(kind[-3:]), "InternalError" if kind == "error 500" else "AccessDenied")
        elif kind == "flip up":
            _check_flipped(request, body)
        else:
            self._forward(request, body, kind)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes, kind: str | None) -> None:
        connection = HTTPConnection(self._target, timeout=60)
        connection.request(request.command, request.path, body=body or None, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if kind == "reset after":
            _reset(request)
            return
        if kind == "flip down" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        announced = len(data) // 2 if kind == "short" else len(data)
        request.wfile.write(f"HTTP/1.1 {answer.status} {answer.reason}\r\n".encode())
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.wfile.write(f"{name}: {value}\r\n".encode())
        length = answer.getheader("Content-Length") if request.command == "HEAD" else str(announced)
        request.wfile.write(f"Content-Length: {length or 0}\r\n\r\n".encode())
        if kind == "cut":
            request.wfile.write(data[: len(data) // 2])
            _reset(request, hard=False)
        elif kind == "crawl":
            for byte in data:
                request.wfile.write(bytes([byte]))
                if self._closing.wait(0.05):
                    return
        else:
            request.wfile.write(data[:announced])
        if kind == "short":
            request.close_connection = True


def _reset(request: BaseHTTPRequestHandler, *, hard: bool = True) -> None:
    if hard:  # the other side sees a reset, not an end
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR) if not hard else request.connection.close()


def _answer(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planned by the test</Message></Error>".encode()
    head = f"HTTP/1.1 {status} planned\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    request.wfile.write(head.encode() + (b"" if request.command == "HEAD" else text))


def _check_flipped(request: BaseHTTPRequestHandler, body: bytes) -> None:
    """Do what S3 does, and moto does not: compare the body that came with the checksum that came with it."""
    came = bytes([body[0] ^ 1]) + body[1:]
    claimed = request.headers.get("x-amz-checksum-sha256")
    assert claimed == base64.b64encode(hashlib.sha256(body).digest()).decode(), "no checksum was sent, or a wrong one"
    assert claimed != base64.b64encode(hashlib.sha256(came).digest()).decode()
    _answer(request, 400, "BadDigest")
