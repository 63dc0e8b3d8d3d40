"""`noa up` and flows call a server that speaks TLS, and take no other for it."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from certificates import Authority, Pair
from noa.settings import Settings
from noa_flows._loopback import answers, refusal_of
from noa_flows._service_plans import plan_services
from noa_serving import own_server_context


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Authority(tmp_path).sign("models.example.com", dns=("models.example.com",))


@pytest.fixture
def url(pair: Pair) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_server_is_known_by_its_certificate(pair: Pair, url: str, tmp_path: Path) -> None:
    table = {
        "serving": {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)},
        "endpoints": {"digits": {"model": "digits@champion"}},
    }
    settings = Settings.model_validate(table).resolved(tmp_path)
    assert plan_services(settings)["serving"].scheme == "https"
    assert answers(url, tls=own_server_context(settings.serving))
    assert refusal_of(url, tls=own_server_context(settings.serving)) == ""
    assert not answers(url)
    other = Authority(tmp_path, "other").sign("models.example.org")
    serving = settings.serving.model_copy(update={"tls_certificate": other.certificate})
    assert not answers(url, tls=own_server_context(serving))
