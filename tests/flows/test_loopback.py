from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from noa.errors import ConflictError
from noa_flows._loopback import ask, claim_port, refusal_of


def test_a_port_in_use_is_refused_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port}") as caught:
            claim_port("127.0.0.1", port, service="mlflow", setting="tracking.port")
    assert "`tracking.port`" in str(caught.value)
    assert "`mlflow`" in str(caught.value)


def test_port_zero_becomes_a_free_port() -> None:
    port = claim_port("127.0.0.1", 0, service="prefect", setting="flows.port")
    with socket.create_server(("127.0.0.1", port)):
        assert port > 0


def test_nobody_there_is_a_connection_error() -> None:
    port = claim_port("127.0.0.1", 0, service="prefect", setting="flows.port")
    with pytest.raises(ConnectionError, match=str(port)):
        ask(f"http://127.0.0.1:{port}/")


def test_a_peer_that_speaks_no_http_is_a_connection_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"not http at all\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(ConnectionError):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()


_REFUSED = b'{"ready": false, "error": "not ready: `digits`"}'
_DEGRADED = b'{"ready": true, "degraded": "worker 1 of 2 is dead"}'


class _NotReady(BaseHTTPRequestHandler):
    answers = ((503, _REFUSED), (503, b"busy"), (200, b"{}"), (200, _DEGRADED))
    told = 0

    def do_GET(self) -> None:  # the name that http.server looks for
        status, body = self.answers[_NotReady.told]
        _NotReady.told += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # theirs
        del format, args


def test_a_server_that_runs_and_is_not_ready_says_why() -> None:
    with HTTPServer(("127.0.0.1", 0), _NotReady) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/v2/health/ready"
        found = [refusal_of(address) for _ in _NotReady.answers]
        server.shutdown()
        thread.join()
    assert found == ["not ready: `digits`", "it answers 503", "", "worker 1 of 2 is dead"]
    assert refusal_of(address) == "it does not answer"
