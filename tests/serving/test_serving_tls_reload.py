"""Files of TLS that are replaced count for new connections, in every worker, over HTTP and gRPC, if they are right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Project, affine_model, build_app, call, endpoint, make_project

from certificates import Authority, Pair
from noa.errors import ServiceError, SettingsError
from noa.settings import ServingSettings, Settings
from noa_serving import Client, ServerAddress, start_server
from noa_serving._served_tls import ServedTls, end_of_validity

RULES = {"digits": endpoint("digits@champion")}
X = np.array([[1, 2, 3, 4]], dtype=np.float32)
LONG = timedelta(days=100)


class Files:
    """What a server is told: its certificate, its key and the authorities of its clients."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.authorities = (folder / name for name in ("tls.pem", "tls.key", "ca.pem"))

    def put(self, pair: Pair | None = None, authorities: bytes | None = None) -> None:
        """Replace files one after the other, each in one step."""
        if pair is not None:
            _replace(self.certificate, pair.certificate.read_bytes())
            _replace(self.key, pair.key.read_bytes())
        if authorities is not None:
            _replace(self.authorities, authorities)

    def settings(self, **more: object) -> dict[str, object]:
        return {"tls_certificate": self.certificate, "tls_key": self.key, **more}


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("tls"), empty_state)
    project.publish("digits", affine_model(2.0))
    return project


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    files = Files(tmp_path)
    files.put(authority.sign("first", addresses=("127.0.0.1",), lifetime=LONG), authority.file.read_bytes())
    return files


def served(files: Files, **more: object) -> ServedTls:
    return ServedTls(ServingSettings.model_validate(files.settings(**more)))


def digest(pair: Pair) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())).hexdigest()


def test_a_pair_that_was_replaced_counts_and_one_of_which_half_is_there_is_waited_for(
    files: Files, authority: Authority
) -> None:
    tls = served(files)
    first, context = tls.identity, tls.identity.context
    tls.look()
    assert tls.identity is first
    second = authority.sign("second", lifetime=LONG)
    _replace(files.certificate, second.certificate.read_bytes())
    tls.look()
    assert (tls.identity, tls.refusal) == (first, None)  # perhaps the key is yet to come
    _replace(files.key, second.key.read_bytes())
    tls.look()
    assert (tls.identity.sha256, tls.refusal, tls.reloads) == (digest(second), None, 1)
    assert tls.identity.context is not context
    os.utime(files.key)
    tls.look()
    assert tls.reloads == 1  # the same again is no other


def test_what_does_not_fit_is_refused_by_name_and_the_old_pair_goes_on(
    files: Files, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = (files.certificate.read_bytes(), files.key.read_bytes())
    tls = served(files, tls_client_ca=files.authorities, **_client(authority))
    sha256 = tls.identity.sha256
    other, old = authority.sign("other", lifetime=LONG), authority.sign("old", lifetime=timedelta(days=-2))
    clients = authority.file.read_bytes()

    def mismatch() -> None:
        _replace(files.key, other.key.read_bytes())

    def damaged() -> None:
        _replace(files.certificate, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    cases: list[tuple[Callable[[], None], str]] = [
        (mismatch, "`serving.tls_certificate` cannot be used: key values mismatch"),
        (damaged, "`serving.tls_certificate` cannot be used"),
        (lambda: _replace(files.certificate, b""), "`serving.tls_certificate` cannot be used"),
        (lambda: _replace(files.certificate, bytes(range(256)) * 99), "`serving.tls_certificate` cannot be used"),
        (files.key.unlink, "`serving.tls_key` cannot be used: no such file or directory"),
        (lambda: files.put(old), "`serving.tls_certificate` has expired on"),
        (lambda: files.put(authorities=b""), "`serving.tls_client_ca` cannot be used"),
    ]
    for spoil, reason in cases:
        caplog.clear()
        spoil()
        tls.look()
        tls.look()
        tls.look()
        assert tls.identity.sha256 == sha256
        assert tls.refusal is not None
        assert tls.refusal.reason.startswith(reason)
        assert str(files.key.parent) not in json.dumps(tls.describe())
        errors = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert len(errors) == 1  # not at each look
        assert reason in errors[0].getMessage()
        _replace(files.certificate, first[0])
        _replace(files.key, first[1])
        files.put(authorities=clients)
        tls.look()
        assert (tls.refusal, tls.reloads) == (None, 0)
    with pytest.raises(SettingsError, match="tls_key"):
        files.key.unlink()
        served(files)


def _client(authority: Authority) -> dict[str, object]:
    mine = authority.sign("mine")
    return {"client_certificate": mine.certificate, "client_certificate_key": mine.key}


def test_an_end_that_is_near_is_warned_about_once_a_day_and_in_metrics(
    stocked: Project, files: Files, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = served(files)
    end, now = tls.identity.not_after, datetime.now(UTC)
    assert abs(end - (now + LONG)) < timedelta(minutes=5)
    assert not tls.expires_soon(end - timedelta(days=14, seconds=1))
    for moment in (now, end - timedelta(days=14, hours=1)):
        tls.look(moment)
    assert not caplog.records
    for hours in (0, 1, 20, 25, 26, 24 * 15):
        tls.look(end - timedelta(days=13) + timedelta(hours=hours))
    texts = [record.getMessage() for record in caplog.records]
    assert [("has expired" in text, "replace it" in text) for text in texts] == [
        (False, True),
        (False, True),
        (True, True),
    ]
    files.put(authority.sign("soon", lifetime=timedelta(days=3)))
    app = build_app(_with(stocked, files.settings()), digits="digits@champion")

    async def main() -> None:
        text = (await call(app, "GET", "/metrics")).body.decode()
        assert app._application.tls is not None
        end = int(app._application.tls.identity.not_after.timestamp())
        for name, value in (("not_after_seconds", end), ("expires_soon", 1), ("refused", 0), ("reloads_total", 0)):
            assert f'noa_tls_{name}{{worker="{os.getpid()}"}} {value}\n' in text
        table = (await call(app, "GET", "/status")).json["tls"]
        assert isinstance(table, dict)
        assert (table["expires_soon"], table["reloads"], "refused" in table) == (True, 0, False)

    asyncio.run(main())
    app._application.close()


@given(st.integers(1, 253_370_764_800), st.integers(1, 2**150), st.text(max_size=15))
def test_the_end_of_any_certificate_is_read(seconds: int, serial: int, name: str) -> None:
    begin = datetime(1951, 1, 1, tzinfo=UTC)
    end = begin + timedelta(seconds=seconds)
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "n" + name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    builder = builder.serial_number(serial).not_valid_before(begin).not_valid_after(end)
    found = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert end_of_validity(found) == end


KEY = ec.generate_private_key(ec.SECP256R1())


def _with(project: Project, serving: dict[str, object]) -> Settings:
    table = project.settings.model_dump()
    return Settings.model_validate({**table, "serving": {**table["serving"], **serving}})


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def shown(address: ServerAddress, tls: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection((address.host, address.port), timeout=10)
    return tls.wrap_socket(plain, server_hostname=address.host, session=session)


def is_resumed(address: ServerAddress, tls: ssl.SSLContext, session: ssl.SSLSession) -> bool:
    with shown(address, tls, session) as secure:
        return bool(secure.session_reused)


def shown_digest(address: ServerAddress, tls: ssl.SSLContext) -> str:
    with shown(address, tls) as secure:
        return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


def grpc_total(address: ServerAddress, authority: Authority, mine: Pair) -> float:
    pair = {"private_key": str(mine.key), "certificate_chain": str(mine.certificate)}
    roots = str(authority.file)
    with triton.InferenceServerClient(
        address.grpc_target,
        ssl=True,
        root_certificates=roots,
        **pair,
        channel_args=[("grpc.use_local_subchannel_pool", 1)],
    ) as client:
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        return client.infer("digits", [tensor], client_timeout=10).as_numpy("total").item()


def grpc_digest(address: ServerAddress) -> str:
    """Look only at what is shown: HTTP/2 by ALPN, as gRPC asks for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = str(address.grpc_target).rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_worker_serves_new_files_to_new_connections_and_drops_old_authorities(
    stocked: Project, files: Files, authority: Authority, tmp_path: Path
) -> None:
    mine = authority.sign("mine")
    stranger = Authority(tmp_path, "stranger")
    theirs = stranger.sign("theirs")
    settings = _with(
        stocked,
        files.settings(
            tls_client_ca=files.authorities,
            client_certificate=mine.certificate,
            client_certificate_key=mine.key,
            grpc_port=0,
        ),
    )
    log = tmp_path / "log"
    with start_server(settings, endpoints=RULES, workers=2, log_file=log) as server:
        address = server.wait_ready()
        as_mine, as_theirs = trusting(authority, mine), trusting(authority, theirs)
        as_mine.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions are there when the handshake is over
        second = authority.sign("second", addresses=("127.0.0.1",), lifetime=LONG)
        with (
            Client(address.url, tls=trusting(authority, mine), timeout_s=10) as kept,
            shown(address, as_mine) as before,
        ):
            assert kept.predict("digits", {"x": X}).outputs["total"].item() == 20
            session = before.session
            assert session is not None
            assert any(is_resumed(address, as_mine, session) for _ in range(32))  # by the worker that knows it
            files.put(second)
            until(lambda: {shown_digest(address, as_mine) for _ in range(12)} == {digest(second)})
            until(lambda: {grpc_digest(address) for _ in range(12)} == {digest(second)})
            assert kept.predict("digits", {"x": X}).outputs["total"].item() == 20  # its connection goes on
            assert grpc_total(address, authority, mine) == 20
        assert refuses(address, as_theirs)
        files.put(authorities=authority.file.read_bytes() + stranger.file.read_bytes())
        until(lambda: not any(refuses(address, as_theirs) for _ in range(8)))
        assert grpc_total(address, authority, theirs) == 20
        files.put(authorities=stranger.file.read_bytes())
        until(lambda: all(refuses(address, as_mine) for _ in range(8)))
        assert all(refuses(address, as_mine, session) for _ in range(8))  # by no old session either
        with pytest.raises(triton.InferenceServerException):
            grpc_total(address, authority, mine)
        assert grpc_total(address, authority, theirs) == 20
        _replace(files.key, b"")
        until(lambda: log.read_text().count("TLS goes on with what it had: `serving.tls_certificate` cannot be") >= 2)
        assert {shown_digest(address, as_theirs) for _ in range(8)} == {digest(second)}
        assert {grpc_digest(address) for _ in range(8)} == {digest(second)}
        with Client(address.url, tls=as_theirs, timeout_s=10) as client:
            assert client.predict("digits", {"x": X}).outputs["total"].item() == 20


def refuses(address: ServerAddress, tls: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
    """Tell whether a client is refused; with TLS 1.3 it learns of it when it reads."""
    try:
        with shown(address, tls, session) as secure:
            secure.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
            return not secure.recv(100).startswith(b"HTTP/1.1 200")
    except (OSError, ServiceError):
        return True
