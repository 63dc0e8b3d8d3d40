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

from noa.settings import ServingSettings, Settings
from noa_serving import Client, start_server
from noa_serving._asgi import AsgiApplication
from noa_serving._http import RequestRefusedError
from noa_serving._quotas import Quotas, client_of, make_shared
from noa_serving.api_keys import KeyFile

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


def wait_of(buckets: Quotas, client: str, num_bytes: int = 0) -> int | None:
    """Return after how many seconds the client may come again, None if it is let in."""
    try:
        buckets.charge(client, num_bytes)
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
    assert wait_of(buckets, "a", 1) == 58
    buckets.add_bytes("a", 2_000)
    assert wait_of(buckets, "a", 1) == 60
    clock.now += 60.1
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
