from __future__ import annotations

import socket

import pytest

from noa.errors import ConflictError
from noa_flows._loopback import ask, claim_port


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
    import threading

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
