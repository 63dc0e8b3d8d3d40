"""Quotas: no client gets more than its rate, none pays for another, and Retry-After is the truth."""

from __future__ import annotations

import asyncio
import http.client
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_kit import serving_grpc
from http_kit import serving_http
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Project, affine_model, build_app, call, endpoint, make_project, open_pipe

from noa.errors import InvalidInputError
from noa.settings import ServingSettings, Settings
from noa_serving import Client, ServerAddress, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._http import RequestRefusedError
from noa_serving._quotas import Limits, Quotas, client_of, make_shared
from noa_serving.api_keys import KeyFile, KeyQuota

ROW = b'{"inputs": [[1, 2, 3, 4]]}'
X = np.array([[1, 2, 3, 4]], dtype=np.float32)
JSON = {"content-type": "application/json"}
HEAD = b"POST /predict/digits HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def quotas(clock: Clock, path: Path | None = None, **settings: float) -> Quotas:
    table = {f"quota_{name}": value for name, value in settings.items()}
    return Quotas(ServingSettings.model_validate(table), path, clock=clock)


def wait_of(buckets: Quotas, client: str, num_bytes: int = 0, limits: Limits | None = None) -> int | None:
    """Return after how many seconds the client may come again, None if it is let in."""
    try:
        buckets.charge(client, num_bytes, limits)
    except RequestRefusedError as exc:
        assert exc.status == 429
        return exc.retry_after_s
    return None


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("quotas"), empty_state)
    project.publish("digits", affine_model(2.0))
    return project


def with_quota(project: Project, **serving: object) -> Settings:
    table = project.settings.model_dump()
    return Settings.model_validate({**table, "serving": {**table["serving"], **serving}})


def build(project: Project, **serving: object) -> AsgiApplication:
    return build_app(with_quota(project, **serving), digits="digits@champion")


def test_a_silent_client_may_send_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = quotas(clock, requests_per_s=10.0, burst_s=2.0)
    assert [wait_of(buckets, "a") for _ in range(20)] == [None] * 20
    assert wait_of(buckets, "a") == 1
    assert wait_of(buckets, "b") is None
    clock.now += 0.1
    assert [wait_of(buckets, "a") for _ in range(2)] == [None, 1]
    clock.now += 3600.0
    assert [wait_of(buckets, "a") for _ in range(21)] == [None] * 20 + [1]
    assert buckets.refused == 3


def test_a_slow_rate_lets_one_in_and_says_when_the_next_may_come() -> None:
    clock = Clock()
    buckets = quotas(clock, requests_per_s=0.05, burst_s=1.0)
    assert [wait_of(buckets, "a") for _ in range(2)] == [None, 20]
    clock.now += 7.5
    assert wait_of(buckets, "a") == 13


def test_bytes_may_be_overdrawn_once_and_are_paid_back() -> None:
    clock = Clock()
    buckets = quotas(clock, bytes_per_s=1000, burst_s=2.0)
    assert [wait_of(buckets, "a", 500) for _ in range(5)] == [None, None, None, None, 1]
    clock.now += 1000.0
    assert wait_of(buckets, "a", 60_000) is None  # larger than the bucket, and possible
    assert wait_of(buckets, "a", 1) == 59  # after 58 it is ahead by just as much as its burst
    buckets.add_bytes("a", 2_000)
    assert wait_of(buckets, "a", 1) == 61
    clock.now += 60.1  # and a little after 60 it is not
    assert wait_of(buckets, "a", 1) is None


@given(
    rate=st.floats(0.01, 5000.0),
    burst_s=st.floats(0.01, 100.0),
    pauses=st.lists(st.floats(0.0, 50.0) | st.just(0.0), min_size=1, max_size=60),
)
def test_nobody_gets_more_than_burst_and_rate_and_retry_after_holds(
    rate: float, burst_s: float, pauses: list[float]
) -> None:
    clock = Clock()
    buckets = quotas(clock, requests_per_s=rate, burst_s=burst_s)
    for pause in pauses:
        clock.now += pause
        wait_s = wait_of(buckets, "a")
        if wait_s is not None:
            clock.now += wait_s
            assert wait_of(buckets, "a") is None
    passed_s = clock.now - 1000.0
    assert len(pauses) <= max(rate * burst_s, 1.0) + rate * passed_s + rate * 1e-5 + 1e-6


@given(
    rate=st.floats(0.01, 5000.0),
    burst=st.integers(1, 500),
    byte_rate=st.none() | st.floats(1.0, 1e6),
    byte_burst=st.integers(1, 10_000_000),
    sizes=st.lists(st.tuples(st.floats(0.0, 50.0) | st.just(0.0), st.integers(0, 1_000_000)), min_size=1, max_size=60),
)
def test_a_quota_of_its_own_holds_in_requests_and_bytes_and_so_does_its_retry_after(
    rate: float, burst: int, byte_rate: float | None, byte_burst: int, sizes: list[tuple[float, int]]
) -> None:
    clock = Clock()
    buckets = quotas(clock, requests_per_s=1e-3, burst_s=1.0, bytes_per_s=1)
    quota = KeyQuota(
        requests_per_s=rate,
        burst_requests=burst,
        bytes_per_s=byte_rate or 1e12,
        burst_bytes=byte_burst,
    )
    limits = Limits.of(ServingSettings(quota_requests_per_s=1e-3, quota_bytes_per_s=1), quota)
    largest = total = 0
    for pause, size in sizes:
        clock.now += pause
        wait_s = wait_of(buckets, "a", size, limits)
        if wait_s is not None:
            clock.now += wait_s
            assert wait_of(buckets, "a", size, limits) is None
        total, largest = total + size, max(largest, size)
    passed_s = clock.now - 1000.0
    assert len(sizes) <= burst + rate * (passed_s + 1e-5) + 1e-6
    assert total - largest <= byte_burst + (byte_rate or 1e12) * (passed_s + 1e-5) + 1


def test_a_key_has_what_its_quota_says_and_of_what_it_leaves_open_what_the_settings_say() -> None:
    settings = ServingSettings(quota_requests_per_s=10.0, quota_bytes_per_s=1000, quota_burst_s=2.0)
    clock = Clock()
    buckets = Quotas(settings, clock=clock)
    slower = Limits.of(settings, KeyQuota(requests_per_s=1.0))
    assert [wait_of(buckets, "a", 1, slower) for _ in range(3)] == [None, None, 1]  # two seconds of it
    assert [wait_of(buckets, "b", 2000, slower) for _ in range(2)] == [None, 1]  # and the bytes of all
    larger = Limits.of(settings, KeyQuota(bytes_per_s=10_000, burst_bytes=10_000))
    assert [wait_of(buckets, "c", 5000, larger) for _ in range(3)] == [None, None, 1]
    assert [wait_of(buckets, "d", 1, larger) for _ in range(21)] == [None] * 20 + [1]
    none = Quotas(ServingSettings(), clock=clock)
    assert [wait_of(none, "e") for _ in range(5)] == [None] * 5
    assert [wait_of(none, "e", 0, slower) for _ in range(3)] == [None, None, 1]
    none.add_bytes("e", 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_s": 0.0},
        {"requests_per_s": float("nan")},
        {"requests_per_s": float("inf")},
        {"requests_per_s": 10**400},
        {"requests_per_s": True},
        {"requests_per_s": "50"},
        {"burst_requests": 5},
        {"bytes_per_s": 5, "burst_bytes": 0},
        {"bytes_per_s": 5, "burst_bytes": 5.5},
        {"rate": 5},
        "50",
        True,
        [50],
    ],
)
def test_what_is_no_quota_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInputError):
        KeyQuota.parse(wrong)


def test_workers_share_the_buckets_of_one_file(tmp_path: Path) -> None:
    make_shared(tmp_path / "quotas")
    clock = Clock()
    workers = [quotas(clock, tmp_path / "quotas", requests_per_s=10.0, burst_s=1.0) for _ in range(3)]
    found = [wait_of(workers[turn % 3], "a") for turn in range(12)]
    assert found == [None] * 10 + [1, 1]
    assert [wait_of(worker, "b") for worker in workers] == [None] * 3


def test_a_flood_of_clients_forgets_nobody_who_is_in_debt() -> None:
    clock = Clock()
    buckets = quotas(clock, requests_per_s=1.0, burst_s=1.0, bytes_per_s=1000)
    debtors = [f"debtor-{row}" for row in range(200)]
    for debtor in debtors:
        buckets.charge(debtor, 10_000_000)
    for row in range(100_000):  # three times the slots, each of them full again soon
        buckets.charge(f"client-{row}", 1)
        clock.now += 0.001
    assert sum(wait_of(buckets, debtor, 1) is not None for debtor in debtors) == len(debtors)


def test_an_ipv6_network_is_one_client() -> None:
    assert client_of("2001:db8:1:2:3::1") == client_of("2001:db8:1:2::ffff") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1") == "10.0.0.1"
    assert client_of("::1") == "::1"
    assert client_of("no-address") == "no-address"


def test_a_client_over_its_quota_gets_429_and_one_that_is_refused_for_another_reason_pays_nothing(
    stocked: Project,
) -> None:
    app = build(stocked, quota_requests_per_s=0.1, quota_burst_s=30.0)  # three at once, then one in ten seconds
    application = app._application
    request = HEAD % len(ROW) + b"\r\n" + ROW

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        application.admission.limit = 1
        with application.computing.enter():
            protocol.data_received(request * 5)
            await asyncio.sleep(0.01)
        application.admission.limit = 1000
        await asyncio.sleep(1.2)  # the breath after a refusal
        protocol.data_received(request * 5)  # pipelined
        await asyncio.sleep(0.01)
        parts = pipe.written.split(b"HTTP/1.1 ")[1:]
        assert [part[:3] for part in parts] == [b"503"] * 5 + [b"200"] * 3 + [b"429"] * 2
        assert b"retry-after: 10\r\n" in parts[8]
        assert b"at most 0.1 requests per second, 30 s of it at once" in parts[8]
        protocol.connection_lost(None)
        lines = (await call(app, "GET", "/metrics")).body.decode().splitlines()
        assert [line[-2:] for line in lines if line.startswith("noa_requests_over_quota")] == [" 2"]
        assert application.admission.in_flight == 0

    asyncio.run(main())
    application.close()


def test_a_body_beyond_the_quota_is_refused_before_it_is_read(stocked: Project) -> None:
    app = build(stocked, quota_bytes_per_s=1000, quota_burst_s=1.0)
    body = ROW + b" " * 200_000

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(HEAD % len(body) + b"\r\n" + body)
        await asyncio.sleep(0.02)
        assert b"HTTP/1.1 200" in pipe.written
        protocol.data_received(HEAD % len(body) + b"\r\n" + body[:10])
        await asyncio.sleep(0.02)
        last = pipe.written.split(b"HTTP/1.1 ")[-1]
        assert last[:3] == b"429"
        assert b"retry-after: 200\r\n" in last or b"retry-after: 199\r\n" in last
        protocol.connection_lost(None)
        chunks = [ROW, b" " * 5000]  # of a length that nobody said
        assert (await call(app, "POST", "/predict/digits", chunks, JSON)).status == 200
        assert (await call(app, "POST", "/predict/digits", chunks, JSON)).headers["retry-after"] in ("4", "5")
        assert (app._application.admission.in_flight, app._application.admission.num_bytes) == (0, 0)

    asyncio.run(main())
    app._application.close()


def test_each_key_has_its_own_quota_wherever_it_calls_from(stocked: Project) -> None:
    file = KeyFile(stocked.settings.serving.keys_file)
    keys = [file.add(name, now=datetime.now(UTC))[1] for name in ("a", "b")]
    app = build(stocked, quota_requests_per_s=0.01, quota_burst_s=1.0)

    async def main() -> None:
        for key in keys:
            headers = {**JSON, "authorization": f"Bearer {key}"}
            found = [await call(app, "POST", "/predict/digits", ROW, headers) for _ in range(2)]
            assert [answer.status for answer in found] == [200, 429]
        assert (await call(app, "POST", "/predict/digits", ROW, JSON)).status == 401

    try:
        asyncio.run(main())
    finally:
        file.path.unlink()
        app._application.close()


def test_a_key_with_a_quota_of_its_own_is_limited_where_others_are_not_and_another_one_counts_at_once(
    stocked: Project,
) -> None:
    file = KeyFile(stocked.settings.serving.keys_file)
    quota = KeyQuota(requests_per_s=0.1, burst_requests=2)
    key, limited = file.add("limited", now=datetime.now(UTC), quota=quota)
    free = file.add("free", now=datetime.now(UTC))[1]
    assert file.read()[0].quota == quota
    app = build(stocked)  # the settings limit nobody
    guard = app._application.guard
    large = ROW + b" " * (2 << 20)

    async def ways(key: str) -> list[int]:
        """Ask through the protocol, and through ASGI."""
        protocol, pipe = open_pipe(app)
        head = HEAD + b"x-api-key: %b\r\n" % key.encode()
        protocol.data_received(head % len(ROW) + b"\r\n" + ROW)
        await asyncio.sleep(0.02)
        protocol.connection_lost(None)
        body = (await call(app, "POST", "/predict/digits", large, {**JSON, "x-api-key": key})).status
        return [int(part[:3]) for part in pipe.written.split(b"HTTP/1.1 ")[1:]] + [body]

    async def main() -> None:
        assert await ways(limited) + await ways(limited) == [200, 200, 429, 429]
        refusal = await call(app, "POST", "/predict/digits", ROW, {**JSON, "x-api-key": limited})
        assert refusal.headers["retry-after"] == "10"
        assert "at most 0.1 requests per second, 20 s of it at once" in refusal.body.decode()
        assert [status for _ in range(5) for status in await ways(free)] == [200] * 10
        file.limit("limited", KeyQuota(requests_per_s=100.0, burst_requests=4))
        guard.look()
        assert await ways(limited) + await ways(limited) == [200] * 4  # no debt of the old rate
        file.limit(key.id, KeyQuota(bytes_per_s=1, burst_bytes=1))
        guard.look()
        assert await ways(limited) == [200, 429]
        file.limit(key.id, None)
        guard.look()
        assert guard.quotas is None  # nothing is looked at any more
        assert await ways(limited) + await ways(limited) == [200] * 4
        lines = (await call(app, "GET", "/metrics", b"", {"x-api-key": control})).body.decode().splitlines()
        assert [line[-2:] for line in lines if line.startswith("noa_requests_over_quota")] == [" 4"]

    control = file.add("control", now=datetime.now(UTC), verbs=["control"])[1]
    guard.look()
    try:
        asyncio.run(main())
    finally:
        file.path.unlink()
        app._application.close()


def test_grpc_keeps_the_quota_of_a_key(stocked: Project) -> None:
    file = KeyFile(stocked.settings.serving.keys_file)
    key = file.add("shop", now=datetime.now(UTC), quota=KeyQuota(requests_per_s=0.1, burst_requests=3))[1]
    app = build(stocked)
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    headers = {"authorization": f"Bearer {key}"}
    try:
        with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
            for _ in range(3):
                client.infer("digits", [tensor], headers=headers)
            with pytest.raises(triton.InferenceServerException, match="used up its quota") as caught:
                client.infer("digits", [tensor], headers=headers)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    finally:
        file.path.unlink()


def test_grpc_tells_when_to_come_back_and_own_clients_do(stocked: Project) -> None:
    app = build(stocked, quota_requests_per_s=2.0, quota_burst_s=0.5)
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    with serving_grpc(app) as address, triton.InferenceServerClient(address) as client:
        client.infer("digits", [tensor])
        with pytest.raises(triton.InferenceServerException, match="used up its quota") as caught:
            client.infer("digits", [tensor])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    with serving_http(build(stocked, quota_requests_per_s=2.0, quota_burst_s=0.5)) as url, Client(url) as own:
        begun = time.monotonic()
        assert [own.predict("digits", {"x": X}).version for _ in range(2)] == [1, 1]
        assert time.monotonic() - begun >= 0.9  # it waited as it was told


def test_workers_count_a_key_s_own_quota_together_and_take_another_one_without_a_restart(
    stocked: Project, tmp_path: Path
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("shop", now=datetime.now(UTC), quota=KeyQuota(requests_per_s=0.01, burst_requests=20))[1]
    settings = with_quota(stocked, keys_file=file.path)
    rules = {"digits": endpoint("digits@champion")}

    def ask(address: ServerAddress) -> tuple[int, int]:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
        connection.request("POST", "/predict/digits", ROW, {**JSON, "x-api-key": key})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, int(answer.headers.get("retry-after", 0))

    with start_server(settings, endpoints=rules, workers=2, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        found = [status for status, _ in (ask(address) for _ in range(60)) if status != 503]
        assert found == [200] * 20 + [429] * (len(found) - 20)
        file.limit("shop", KeyQuota(requests_per_s=1000.0, burst_requests=1000))
        deadline = time.monotonic() + 10
        while [ask(address)[0] for _ in range(20)] != [200] * 20:  # each worker looks for itself
            assert time.monotonic() < deadline
        file.limit("shop", KeyQuota(requests_per_s=1.0, burst_requests=1))
        while (refused := ask(address))[0] != 429:
            assert time.monotonic() < deadline
        assert refused[1] == 1


def test_workers_count_together_and_a_forwarded_address_is_not_believed(stocked: Project, tmp_path: Path) -> None:
    settings = with_quota(stocked, quota_requests_per_s=0.01, quota_burst_s=2000.0)  # twenty, then one in 100 s
    rules = {"digits": endpoint("digits@champion")}
    with start_server(settings, endpoints=rules, workers=2, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        statuses: list[int] = []
        for turn in range(120):
            connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
            body = ROW + b" " * (1 << 20) if turn % 8 == 0 else ROW  # some through ASGI, which a proxy's header reaches
            headers = {**JSON, "x-forwarded-for": f"10.0.0.{turn}"}
            connection.request("POST", "/predict/digits", body, headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            if answer.status == 429:
                assert 80 <= int(answer.headers["retry-after"]) <= 100
            if answer.status != 503:  # a worker that is not ready yet charges nothing
                statuses.append(answer.status)
        assert statuses == [200] * 20 + [429] * (len(statuses) - 20)
        assert len(statuses) > 30
