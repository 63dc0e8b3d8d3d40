"""API keys: kept as hashes, scoped, expiring, revoked without a restart, and never a way around for hostile headers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as triton
from grpc_kit import serving_grpc
from http_kit import serving_http
from serving_kit import (
    Project,
    affine_model,
    ask,
    build_app,
    endpoint,
    make_project,
    open_pipe,
    wait_until,
)

from noa.errors import InvalidInputError, NotFoundError, SettingsError
from noa_serving import AsyncClient, Client, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._http import RequestRefusedError
from noa_serving._key_ring import KeyRing
from noa_serving.api_keys import KeyFile

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ROW = b'{"inputs": [[1, 2, 3, 4]]}'
X = np.array([[1, 2, 3, 4]], dtype=np.float32)
JSON = {"content-type": "application/json"}
OTHER_KEY = "a-key-of-the-settings"


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys" / "api-keys.json")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("keyed"), empty_state)
    project.publish("digits", affine_model(2.0))
    return project


@pytest.fixture
def keys(stocked: Project) -> Iterator[KeyFile]:
    path = stocked.settings.serving.keys_file
    yield KeyFile(path)
    path.unlink(missing_ok=True)


def build(project: Project) -> AsgiApplication:
    return build_app(project.settings, digits="digits@champion", other="digits/1", absent="digits@nobody")


def bearer(key: str) -> dict[str, str]:
    return {**JSON, "authorization": f"Bearer {key}"}


def test_the_file_holds_no_key_and_is_private(file: KeyFile) -> None:
    key, text = file.add("shop", now=NOW, endpoints=["digits", "shop-*"], verbs=["read", "infer"])
    content = file.path.read_text()
    assert text not in content
    assert text.split("_", 2)[2] not in content
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.read() == (key,)
    assert (key.verbs, key.endpoints, key.is_valid(NOW)) == (("infer", "read"), ("digits", "shop-*"), True)
    assert [key.covers(name) for name in ("digits", "shop-1", "shop", "mydigits")] == [True, True, False, False]


def test_keys_expire_and_are_revoked_by_id_or_by_name(file: KeyFile) -> None:
    short, _ = file.add("a", now=NOW, lifetime=timedelta(hours=1))
    assert short.is_valid(NOW + timedelta(minutes=59))
    assert not short.is_valid(NOW + timedelta(hours=1))
    second, _ = file.add("b", now=NOW)
    third, _ = file.add("b", now=NOW)
    assert [key.id for key in file.revoke("b", now=NOW)] == [second.id, third.id]
    assert [key.id for key in file.revoke(short.id, now=NOW)] == [short.id]
    with pytest.raises(NotFoundError):
        file.revoke("b", now=NOW)


@pytest.mark.parametrize(
    ("name", "endpoints", "verbs"),
    [
        ("", ["*"], ["read"]),
        ("a\nb", ["*"], ["read"]),
        ("a", ["a/b"], ["read"]),
        ("a", ["*"], ["write"]),
        ("a", [], []),
    ],
)
def test_what_is_no_scope_is_refused(file: KeyFile, name: str, endpoints: list[str], verbs: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        file.add(name, now=NOW, endpoints=endpoints, verbs=verbs)
    assert not file.path.exists()


def test_many_at_once_lose_no_key(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.add, args=(f"k{row}",), kwargs={"now": NOW}) for row in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in file.read()} == {f"k{row}" for row in range(16)}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": 2, "keys": []}', b'{"version": 1, "keys": [{}]}', b"\xff" * 9]
)
def test_a_damaged_file_is_named_and_never_overwritten(file: KeyFile, content: bytes) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    for call in (file.read, lambda: file.add("a", now=NOW), lambda: file.revoke("a", now=NOW)):
        with pytest.raises(SettingsError, match="not readable"):
            call()
    assert file.path.read_bytes() == content


def test_a_file_that_others_may_write_is_not_read(file: KeyFile) -> None:
    file.add("a", now=NOW)
    file.path.chmod(0o620)
    with pytest.raises(SettingsError, match="others may write it"):
        file.read()


def shown(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_the_ring_keeps_the_last_good_state_of_a_damaged_file_and_nothing_of_a_removed_one(file: KeyFile) -> None:
    ring = KeyRing([], file, names=["digits"])
    assert not ring.is_on
    _, text = file.add("a", now=datetime.now(UTC))
    assert ring.look()
    assert ring.is_on
    assert ring.check(shown(text)).infers == {"digits"}
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-20])  # somebody is writing it, not atomically
    assert ring.look()
    assert ring.check(shown(text)).allows("infer", "digits")
    file.path.write_bytes(whole)
    ring.look()
    assert ring.check(shown(text)).allows("infer", "digits")
    assert not ring.look()  # nothing has changed: nothing is read
    file.path.unlink()
    ring.look()
    assert ring.is_on
    with pytest.raises(RequestRefusedError):
        ring.check(shown(text))


def test_a_worker_that_starts_after_the_file_was_removed_goes_on_to_ask_for_keys(file: KeyFile, tmp_path: Path) -> None:
    def worker() -> KeyRing:
        return KeyRing([], file, own_key="o" * 43, seen_file=tmp_path / "seen")

    first = worker()
    assert not first.is_on  # there has never been a key
    _, text = file.add("a", now=datetime.now(UTC))
    first.look()
    file.path.unlink()
    respawned = worker()
    for headers in ({}, shown(text)):
        with pytest.raises(RequestRefusedError):
            respawned.check(headers)
    assert respawned.check(shown("o" * 43)).allows("control", "*")


def test_a_worker_that_starts_with_a_damaged_file_answers_nobody(file: KeyFile) -> None:
    _, text = file.add("a", now=datetime.now(UTC))
    file.path.write_bytes(file.path.read_bytes()[:-9])
    ring = KeyRing([], file)
    for headers in ({}, shown(text)):
        with pytest.raises(RequestRefusedError):
            ring.check(headers)


def test_a_key_expires_between_two_requests_of_one_spelling(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = file.add("a", now=datetime.now(UTC), lifetime=timedelta(hours=1))
    ring = KeyRing([], file)
    ring.check(shown(text))
    later = datetime.now(UTC).timestamp() + 3601
    monkeypatch.setattr("noa_serving._key_ring.time.time", lambda: later)
    with pytest.raises(RequestRefusedError, match="expired"):
        ring.check(shown(text))


def test_hostile_headers_are_401_and_one_that_stands_twice_counts_for_nothing(stocked: Project, keys: KeyFile) -> None:
    _, text = keys.add("a", now=datetime.now(UTC))
    app = build(stocked)
    hostile = [
        b"", b"Bearer", b"Bearer ", b"Bearer \x00", b"Basic " + text.encode(), text.encode(),
        b"Bearer " + text.encode()[:-1], b"Bearer " + text.encode() + b"x", b"Bearer " + "schl\u00fcssel".encode(),
        b"Bearer " + b"\xff" * 64, b"Bearer " + b"x" * 60_000, b"Bearer noa_" + b"0" * 8 + b"_", b"Bearer noa_",
        b"Bearer " + text.encode() + b", Bearer " + text.encode(),
    ]  # fmt: skip
    head = b"POST /predict/digits HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    twice = b"Authorization: Bearer %b\r\nauthorization: Bearer wrong\r\n" % text.encode()
    lines = [b"authorization: %b\r\n" % value for value in hostile if b"\x00" not in value] + [twice]
    lines.append(b"authorization: Bearer wrong\r\nAuthorization: Bearer %b\r\n" % text.encode())
    lines += [b"X-API-Key: %b\r\nx-api-key: x\r\n" % text.encode(), b"x-api-key: Bearer %b\r\n" % text.encode()]

    async def main() -> None:
        for line in lines:
            protocol, pipe = open_pipe(app)
            good = b"authorization: bearer  %b\r\n" % text.encode()
            for one in (line, good):
                protocol.data_received(head % len(ROW) + one + b"\r\n" + ROW)
                await asyncio.sleep(0.002)
            first, second = pipe.written.split(b"HTTP/1.1 ")[1:]
            assert (first[:3], second[:3]) == (b"401", b"200"), line
            assert b"www-authenticate: Bearer" in first
            assert text.encode() not in pipe.written
            protocol.connection_lost(None)

    asyncio.run(main())
    app._application.close()


def test_scopes_decide_what_a_key_may_do_and_see(stocked: Project, keys: KeyFile) -> None:
    now = datetime.now(UTC)
    narrow = bearer(keys.add("narrow", now=now, endpoints=["dig*"])[1])
    reads = bearer(keys.add("reads", now=now, verbs=["read"])[1])
    controls = bearer(keys.add("controls", now=now, verbs=["control"])[1])
    controls_one = bearer(keys.add("one", now=now, verbs=["control"], endpoints=["digits"])[1])
    app = build(stocked)
    expected = {
        ("POST", "/predict/digits"): (200, 403, 403, 403),
        ("POST", "/predict/other"): (403, 403, 403, 403),
        ("POST", "/v2/models/other/versions/1/infer"): (403, 403, 403, 403),
        ("POST", "/invocations/other"): (403, 403, 403, 403),
        ("GET", "/v2/models/digits"): (200, 200, 403, 403),
        ("GET", "/v2/models/other/stats"): (403, 200, 403, 403),
        ("GET", "/v2/models/nosuch"): (403, 404, 403, 403),
        ("GET", "/v2/models/dignosuch"): (404, 404, 403, 403),
        ("POST", "/v2/repository/models/digits/unload"): (403, 403, 400, 400),
        ("POST", "/v2/repository/models/other/unload"): (403, 403, 400, 403),
        ("GET", "/metrics"): (403, 403, 200, 403),
        ("GET", "/status"): (403, 403, 200, 403),
        ("GET", "/v2/systemsharedmemory/status"): (403, 403, 403, 403),  # off: refused whoever asks
        ("GET", "/nosuch"): (404, 404, 404, 404),
        ("GET", "/v2/health/live"): (200, 200, 200, 200),
    }
    for (method, path), statuses in expected.items():
        found = [ask(app, method, path, ROW, who) for who in (narrow, reads, controls, controls_one)]
        assert tuple(answer.status for answer in found) == statuses, path
        assert all(b"other" not in answer.body for answer in found if "other" not in path and answer is found[0]), path
    refused = ask(app, "POST", "/predict/other", ROW, narrow)
    assert refused.error == "the key does not allow this; expected the scope `infer` on `other`"
    for path in ("/", "/openapi.json", "/docs", "/v2/models/stats"):
        assert b"digits" in ask(app, "GET", path, b"", narrow).body
        assert b"other" not in ask(app, "GET", path, b"", narrow).body, path
        assert b"other" in ask(app, "GET", path, b"", reads).body, path
    index = json.loads(ask(app, "POST", "/v2/repository/index", b"", narrow).body)
    assert [row["name"] for row in index] == ["digits"]
    assert b"absent" not in ask(app, "GET", "/v2/health/ready").body
    assert (ask(app, "POST", "/predict/digits", ROW, {"x-api-key": narrow["authorization"][7:], **JSON})).status == 200
    large = b" " * (1 << 20) + ROW
    assert ask(app, "POST", "/predict/other", large, narrow).status == 403
    app._application.close()


def test_a_key_that_is_revoked_is_refused_at_the_next_request_of_the_same_connection(
    stocked: Project, keys: KeyFile
) -> None:
    key, text = keys.add("a", now=datetime.now(UTC))
    _, other = keys.add("b", now=datetime.now(UTC))
    app = build(stocked)
    head = b"POST /predict/digits HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    request = head % len(ROW) + b"authorization: Bearer " + text.encode() + b"\r\n\r\n" + ROW
    others = request.replace(text.encode(), other.encode())

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(request * 3 + others)
        await asyncio.sleep(0.01)
        assert [part[:3] for part in pipe.written.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 4
        protocol.data_received(request[:-5])
        keys.revoke(key.id, now=datetime.now(UTC))
        app._application.guard.look()
        protocol.data_received(request[-5:] + request + others + request)
        await asyncio.sleep(0.01)
        found = [part[:3] for part in pipe.written.split(b"HTTP/1.1 ")[5:]]
        assert found == [b"401", b"401", b"200", b"401"]

    asyncio.run(main())
    app._application.close()


def test_grpc_asks_for_the_same_keys_and_scopes(stocked: Project, keys: KeyFile) -> None:
    key, text = keys.add("narrow", now=datetime.now(UTC), endpoints=["digits"])
    _, reads = keys.add("reads", now=datetime.now(UTC), verbs=["read"])
    app = build(stocked)
    tensor = grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    with serving_grpc(app) as address, grpc.InferenceServerClient(address) as client:
        for headers in ({"authorization": f"Bearer {text}"}, {"x-api-key": text}):
            assert client.infer("digits", [tensor], headers=headers).as_numpy("total").tolist() == [20]
        index = client.get_model_repository_index(headers={"x-api-key": text})
        assert [row.name for row in index.models] == ["digits"]
        for call, word in (
            (lambda h: client.infer("other", [tensor], headers=h), "`infer` on `other`"),
            (lambda h: client.get_model_metadata("other", headers=h), "`read` on `other`"),
            (lambda h: client.unload_model("digits", headers=h), "`control` on `digits`"),
            (lambda h: client.get_system_shared_memory_status(headers=h), "`control` on the server"),
        ):
            with pytest.raises(grpc.InferenceServerException, match=word) as caught:
                call({"x-api-key": text})
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        with pytest.raises(grpc.InferenceServerException, match="`infer` on `digits`"):
            client.infer("digits", [tensor], headers={"x-api-key": reads})
        keys.revoke(key.id, now=datetime.now(UTC))
        app._application.guard.look()
        with pytest.raises(grpc.InferenceServerException) as caught:
            client.infer("digits", [tensor], headers={"x-api-key": text})
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


def test_public_and_own_clients_send_keys(stocked: Project, keys: KeyFile) -> None:
    _, text = keys.add("a", now=datetime.now(UTC))
    with serving_http(build(stocked)) as url:
        with Client(url, api_key=text) as client:
            assert client.predict("digits", {"x": X}).outputs["total"].tolist() == [20]
        with Client(url) as client, pytest.raises(InvalidInputError, match="asks for a key"):
            client.predict("digits", {"x": X})

        async def main() -> float:
            async with AsyncClient(url, api_key=text) as client:
                return (await client.predict("digits", {"x": X})).outputs["total"].item()

        assert asyncio.run(main()) == 20
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        public = triton.InferenceServerClient(url.removeprefix("http://"))
        for headers in ({"Authorization": f"Bearer {text}"}, {"X-API-Key": text}):
            assert public.infer("digits", [tensor], headers=headers).as_numpy("total").tolist() == [20]
        public.close()


def test_a_running_server_follows_the_file(stocked: Project, keys: KeyFile, tmp_path: Path) -> None:
    with start_server(
        stocked.settings, endpoints={"digits": endpoint("digits@champion")}, workers=2, log_file=tmp_path / "log"
    ) as server:
        address = server.wait_ready()
        connections = [http.client.HTTPConnection(address.host, address.port, timeout=10) for _ in range(8)]

        def statuses(headers: dict[str, str]) -> set[int]:
            found: set[int] = set()
            for connection in connections:  # the same connections all the time, over both workers
                connection.request("POST", "/predict/digits", ROW, headers)
                answer = connection.getresponse()
                answer.read()
                found.add(answer.status)
            return found

        wait_until(lambda: statuses(JSON) == {200}, what="both workers")
        key, text = keys.add("a", now=datetime.now(UTC))
        wait_until(lambda: statuses(JSON) == {401}, what="authentication")
        assert statuses(bearer(text)) == {200}
        _, second = keys.add("b", now=datetime.now(UTC))
        keys.revoke(key.id, now=datetime.now(UTC))
        wait_until(lambda: statuses(bearer(text)) == {401}, what="the revocation")
        assert statuses(bearer(second)) == {200}
        keys.path.write_bytes(b"{")
        os.utime(keys.path, (1, 1))
        wait_until(lambda: "keys stay as they were" in (tmp_path / "log").read_text(), what="the complaint")
        assert statuses(bearer(second)) == {200}
        for connection in connections:
            connection.close()
    assert text not in (tmp_path / "log").read_text()
