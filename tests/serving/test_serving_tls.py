"""TLS and mutual TLS: over HTTP and gRPC, by noa's clients, which verify, and by public ones."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from serving_kit import Project, affine_model, endpoint, make_project

from certificates import Authority, Pair
from noa.errors import ServiceError, SettingsError
from noa.settings import Settings
from noa_serving import (
    AsyncClient,
    Client,
    ServerAddress,
    check_exposure,
    client_context,
    own_server_context,
    server_command,
    start_server,
)
from noa_serving._exposure import is_open

RULES = {"digits": endpoint("digits@champion")}
X = np.array([[1, 2, 3, 4]], dtype=np.float32)
HEAD = b"POST /predict/digits HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
ROW = b'{"inputs": [[1, 2, 3, 4]]}'


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("tls"), empty_state)
    project.publish("digits", affine_model(2.0))
    return project


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.sign("server", addresses=("127.0.0.1",))


def with_tls(project: Project, **serving: object) -> Settings:
    table = project.settings.model_dump()
    return Settings.model_validate({**table, "serving": {**table["serving"], **serving}})


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def total(address: ServerAddress, tls: ssl.SSLContext | None) -> float:
    with Client(address.url, tls=tls, timeout_s=10) as client:
        return client.predict("digits", {"x": X}).outputs["total"].item()


def test_a_server_speaks_tls_only_and_clients_verify_it(
    stocked: Project, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    settings = with_tls(
        stocked, tls_certificate=server_pair.certificate, tls_key=server_pair.key, client_ca=authority.file, grpc_port=0
    )
    with start_server(settings, endpoints=RULES, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        assert address.url.startswith("https://")
        good = trusting(authority)
        for tls in (good, own_server_context(settings.serving), client_context(settings.serving)):
            assert total(address, tls) == 20
        stranger = Authority(tmp_path, "stranger")
        for tls in (None, trusting(stranger)):
            with pytest.raises(ServiceError, match="certificate verify failed"):
                total(address, tls)
        by_name = ServerAddress(host="localhost", port=address.port, pid=1, workers=1, is_tls=True)
        with pytest.raises(ServiceError, match="Hostname mismatch"):
            total(by_name, good)

        async def many() -> list[float]:
            async with AsyncClient(address.url, tls=good) as client:
                found = await asyncio.gather(*(client.predict("digits", {"x": X * one}) for one in range(40)))
                return [one.outputs["total"].item() for one in found]

        assert asyncio.run(many()) == [20.0 * one for one in range(40)]
        exchanges_over_tls(address, good)
        with socket.create_connection((address.host, address.port), timeout=10) as plain:
            plain.sendall(HEAD % len(ROW) + ROW)
            assert not plain.recv(100).startswith(b"HTTP")  # nothing is answered in the clear
        roots = str(authority.file)
        with triton.InferenceServerClient(address.grpc_target, ssl=True, root_certificates=roots) as client:
            tensor = triton.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(X)
            assert client.infer("digits", [tensor]).as_numpy("total").tolist() == [20]


def exchanges_over_tls(address: ServerAddress, tls: ssl.SSLContext) -> None:
    """Send pipelined requests in odd pieces, and one with a body that goes through ASGI."""
    large = ROW + b" " * (2 << 20)
    with (
        socket.create_connection((address.host, address.port), timeout=20) as plain,
        tls.wrap_socket(plain, server_hostname=address.host) as secure,
    ):
        stream = (HEAD % len(ROW) + ROW) * 3 + HEAD % len(large) + large + HEAD % len(ROW) + ROW
        for start in range(0, len(stream), 100_003):
            secure.sendall(stream[start : start + 100_003])
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 5 or not found.endswith(b"}"):
            piece = secure.recv(1 << 16)
            assert piece, found
            found += piece
        assert found.count(b'"total":[20.0]') == 5


def test_mutual_tls_lets_in_who_shows_a_certificate_of_the_authority(
    stocked: Project, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    mine = authority.sign("mine")
    stranger = Authority(tmp_path, "stranger").sign("somebody")
    settings = with_tls(
        stocked,
        tls_certificate=server_pair.certificate,
        tls_key=server_pair.key,
        tls_client_ca=authority.file,
        client_certificate=mine.certificate,
        client_certificate_key=mine.key,
        grpc_port=0,
    )
    with start_server(settings, endpoints=RULES, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        assert total(address, trusting(authority, mine)) == 20
        assert total(address, own_server_context(settings.serving)) == 20
        for pair in (None, stranger):
            with pytest.raises(ServiceError, match="does not answer"):
                total(address, trusting(authority, pair))
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        files = {"root_certificates": str(authority.file)}
        shown = {"private_key": str(mine.key), "certificate_chain": str(mine.certificate)}
        with triton.InferenceServerClient(address.grpc_target, ssl=True, **files, **shown) as client:
            assert client.infer("digits", [tensor]).as_numpy("total").tolist() == [20]
        with triton.InferenceServerClient(address.grpc_target, ssl=True, **files) as client:
            with pytest.raises(triton.InferenceServerException) as caught:
                client.infer("digits", [tensor], client_timeout=5)
            assert caught.value.status() == str(grpc.StatusCode.UNAVAILABLE)


def test_mutual_tls_is_authentication_and_tls_alone_is_none(
    stocked: Project, authority: Authority, server_pair: Pair
) -> None:
    mine = authority.sign("commands")
    pair = {"tls_certificate": server_pair.certificate, "tls_key": server_pair.key}
    shown = {"client_certificate": mine.certificate, "client_certificate_key": mine.key}
    alone = with_tls(stocked, host="0.0.0.0", **pair).serving
    with pytest.raises(SettingsError, match="callers need no key"):
        check_exposure(alone)
    mutual = with_tls(stocked, host="0.0.0.0", tls_client_ca=authority.file, **pair, **shown).serving
    check_exposure(mutual)
    assert (is_open(alone), is_open(mutual)) == (True, False)


def test_what_does_not_fit_is_refused_before_the_start(
    stocked: Project, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    other = authority.sign("other")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    good = {"tls_certificate": server_pair.certificate, "tls_key": server_pair.key}
    for changes, word in (
        ({"tls_key": other.key}, "tls_certificate"),
        ({"tls_certificate": damaged}, "tls_certificate"),
        ({"tls_certificate": empty}, "tls_certificate"),
        ({"tls_key": tmp_path / "gone.key"}, "no such file"),
        ({"client_ca": empty}, "client_ca"),
        ({"client_certificate": other.certificate, "client_certificate_key": server_pair.key}, "client_certificate"),
    ):
        with pytest.raises(SettingsError, match=word):
            server_command(with_tls(stocked, **{**good, **changes}), endpoints=RULES)
    for changes, word in (
        ({"tls_certificate": server_pair.certificate}, "go together"),
        ({"tls_client_ca": authority.file}, "needs `serving.tls_certificate`"),
        ({**good, "tls_client_ca": authority.file}, "needs `serving.client_certificate`"),
    ):
        with pytest.raises(ValueError, match=word):
            with_tls(stocked, **changes)


def test_paths_are_those_of_the_project(tmp_path: Path) -> None:
    table = {"serving": {"tls_certificate": "a.pem", "tls_key": "/keys/a.key"}}
    serving = Settings.model_validate(table).resolved(tmp_path).serving
    assert (serving.tls_certificate, serving.tls_key) == (tmp_path / "a.pem", Path("/keys/a.key"))
    assert json.loads(serving.model_dump_json())["client_ca"] is None
