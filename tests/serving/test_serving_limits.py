"""Overload, deadlines, keys and sizes: refused early and clearly, and no place is lost."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_kit import Project, affine_model, ask, build_app, call, make_project, slow_model

from noa.settings import Settings
from noa_serving._admission import Admission
from noa_serving._asgi import AsgiApplication

KEY = "a-key-of-sixteen-characters"
ROW = json.dumps({"inputs": [[1, 2, 3, 4]]}).encode()
SLOW = json.dumps({"inputs": np.ones((32, 384)).tolist()}).encode()  # a good part of a second of one core
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("stocked"), empty_state)
    project.publish("digits", affine_model(2.0))
    project.publish("slow", slow_model)
    return project


def limited(project: Project, **serving: object) -> AsgiApplication:
    table = project.settings.model_dump()
    settings = Settings.model_validate({**table, "serving": {**table["serving"], **serving}})
    return build_app(settings, digits="digits@champion", slow="slow@champion")


def test_more_than_the_limit_in_flight_is_refused_at_once_with_retry_after(stocked: Project) -> None:
    app = limited(stocked, max_in_flight=2)

    async def main() -> None:
        busy = [asyncio.create_task(call(app, "POST", "/predict/slow", SLOW, JSON)) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await call(app, "POST", "/predict/slow", SLOW, JSON)
        assert not any(task.done() for task in busy)  # it did not wait for them
        assert refused.status == 503
        assert "at most 2 requests at once" in refused.error
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await call(app, "GET", "/v2/health/live")).status == 200
        assert [answer.status for answer in await asyncio.gather(*busy)] == [200, 200]
        await asyncio.sleep(0.05)
        assert app._application.admission.in_flight == 0
        assert (await call(app, "POST", "/predict/slow", SLOW, JSON)).status == 200

    asyncio.run(main())
    app._application.close()


def test_compute_beyond_the_deadline_is_504_and_keeps_its_place_until_it_ends(stocked: Project) -> None:
    app = limited(stocked, timeout_s=0.2)  # long enough to read the request, far too short to compute it

    async def main() -> None:
        answer = await call(app, "POST", "/predict/slow", SLOW, JSON)
        assert (answer.status, "at most 0.2 s" in answer.error) == (504, True)
        assert app._application.admission.in_flight == 1
        deadline = time.monotonic() + 20
        while app._application.admission.in_flight:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(main())
    app._application.close()


def test_a_client_of_asgi_that_goes_away_takes_its_work_out_of_the_queue(stocked: Project) -> None:
    app = limited(stocked, p99_target_ms=60_000)  # one run at a time, however busy the machine is
    is_gone = asyncio.Event()

    async def main() -> None:
        busy = asyncio.create_task(call(app, "POST", "/predict/slow", SLOW, JSON))
        await asyncio.sleep(0)
        messages = [{"type": "http.request", "body": SLOW, "more_body": False}]
        sent: list[object] = []

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop()
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict/slow", "headers": headers, "query_string": b""}
        leaving = asyncio.create_task(app(scope, receive, send))
        for _ in range(3):
            await asyncio.sleep(0)
        assert app._application.computing.queue.waiting_items == 32
        is_gone.set()
        await leaving
        assert (sent, app._application.computing.queue.waiting_items) == ([], 0)
        assert app._application.admission.in_flight == 1
        assert (await busy).status == 200

    asyncio.run(main())
    app._application.close()


def test_a_request_may_ask_for_a_sooner_deadline_than_the_server_has(stocked: Project) -> None:
    app = limited(stocked)
    answer = ask(app, "POST", "/predict/slow", SLOW, {**JSON, "noa-timeout-ms": "20"})
    assert (answer.status, "at most 0.02 s" in answer.error) == (504, True)
    assert ask(app, "POST", "/predict/digits", ROW, {**JSON, "noa-timeout-ms": "-1"}).status == 400
    assert ask(app, "POST", "/predict/digits", ROW, {**JSON, "noa-timeout-ms": "9000"}).status == 200
    app._application.close()


@pytest.mark.parametrize(
    ("timeout", "status"), [(1, 504), (0, 200), (60_000_000, 200), (None, 200), (-1, 400), (1.5, 400), ("1", 400)]
)
def test_tritons_parameter_timeout_is_a_deadline(stocked: Project, timeout: object, status: int) -> None:
    app = limited(stocked)
    rows = [{"name": "x", "datatype": "FP32", "shape": [1, 384], "data": [1.0] * 384}]
    body = {"inputs": rows, "parameters": {"timeout": timeout}}
    assert ask(app, "POST", "/v2/models/slow/infer", body).status == status
    app._application.close()


def test_a_body_that_does_not_arrive_is_408_and_its_place_is_free_again(stocked: Project) -> None:
    app = limited(stocked, timeout_s=0.05)
    answer = asyncio.run(call(app, "POST", "/predict/digits", ROW[:5], JSON, stall=True))
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert app._application.admission.in_flight == 0


def test_too_large_a_body_is_413_by_its_announced_and_by_its_real_size(stocked: Project) -> None:
    app = limited(stocked, max_body_bytes=100)
    announced = ask(app, "POST", "/predict/digits", b"", {**JSON, "content-length": "101"})
    assert (announced.status, "at most 100 bytes" in announced.error) == (413, True)
    assert ask(app, "POST", "/predict/digits", b"", {**JSON, "content-length": "9" * 30}).status == 413
    chunks = [b" " * 60, b" " * 60, b" " * 60]
    assert asyncio.run(call(app, "POST", "/predict/digits", chunks, JSON)).status == 413
    assert asyncio.run(call(app, "POST", "/predict/digits", [ROW[:9], ROW[9:]], JSON)).status == 200
    assert app._application.admission.in_flight == 0


def test_too_large_a_body_for_an_unknown_name_is_404(stocked: Project) -> None:
    app = limited(stocked)
    body = b" " * (65 << 10)
    for path in (
        "/predict/nosuch",
        "/v2/models/nosuch/infer",
        "/v2/models/nosuch/versions/1/infer",
        "/nosuch",
        "/v2/nosuch",
        "/v2/repository/nosuch",
        "/v2/models/digits/nosuch",
    ):
        for headers in (JSON, {**JSON, "content-length": str(len(body))}):
            answer = asyncio.run(call(app, "POST", path, [body[:60000], body[60000:]], headers))
            assert (answer.status, "nosuch" in answer.error) == (404, True)
            assert answer.headers["connection"] == "close"
    assert ask(app, "POST", "/metrics", b"", {**JSON, "content-length": str(len(body))}).status == 413


def test_too_large_a_batch_is_413(stocked: Project) -> None:
    app = limited(stocked, max_batch_items=3)
    for body in ({"inputs": [[1, 2, 3, 4]] * 4}, {"instances": [[1, 2, 3, 4]] * 4}):
        answer = ask(app, "POST", "/predict/digits", body)
        assert (answer.status, "at most 3 items" in answer.error) == (413, True)
    assert ask(app, "POST", "/predict/digits", {"inputs": [[1, 2, 3, 4]] * 3}).status == 200


def test_keys_guard_everything_but_health(stocked: Project) -> None:
    app = limited(stocked, api_keys=[KEY, KEY[::-1]])
    for path in ("/", "/v2", "/metrics", "/status", "/docs", "/openapi.json", "/v2/models/digits"):
        refused = ask(app, "GET", path)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    for path in ("/v2/health/live", "/v2/health/ready", "/health/startup"):
        assert ask(app, "GET", path).status == 200
    for shown in (None, "", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}"):
        headers = {**JSON} if shown is None else {**JSON, "authorization": shown}
        assert ask(app, "POST", "/predict/digits", ROW, headers).status == 401
    for key in (KEY, KEY[::-1]):
        assert ask(app, "POST", "/predict/digits", ROW, {**JSON, "authorization": f"bearer {key}"}).status == 200


def test_retry_after_is_what_the_present_rate_needs() -> None:
    now = 1000.0
    admission = Admission(40, clock=lambda: now)
    for _ in range(40):
        admission.enter()
    now += 2.0
    for _ in range(10):
        admission.leave()
    assert admission.retry_after_s() == 6  # 30 in flight at 5 per second
    now += 10_000.0
    assert admission.retry_after_s() == 60


def test_silence_before_a_burst_does_not_count_as_slowness() -> None:
    now = 0.0
    admission = Admission(4, clock=lambda: now)
    admission.enter()
    admission.leave()
    now = 3600.0
    for _ in range(4):
        admission.enter()
    now += 0.5
    admission.leave()
    assert admission.retry_after_s() == 2  # 3 in flight at 2 per second


def test_small_models_compute_on_the_loop_and_large_ones_leave_it_free(stocked: Project) -> None:
    app = limited(stocked)
    endpoints = app._application.endpoints
    assert endpoints["digits"].require().runs_inline(1)
    assert not endpoints["slow"].require().runs_inline(1)

    async def main() -> None:
        work = asyncio.create_task(call(app, "POST", "/predict/slow", SLOW, JSON))
        answered = 0
        while not work.done():
            assert (await call(app, "GET", "/v2/health/live")).status == 200
            answered += 1
            await asyncio.sleep(0.001)
        assert answered > 3

    asyncio.run(main())
    app._application.close()


def test_bodies_together_take_no_more_than_the_limit_and_the_first_is_let_in(stocked: Project) -> None:
    app = limited(stocked, max_in_flight_bytes=200_000)
    application = app._application
    large = b'{"inputs": [[1, 2, 3, 4]]}' + b" " * 300_000

    async def begin(scope_headers: list[tuple[bytes, bytes]], first: bytes) -> tuple[asyncio.Task[None], Inbox]:
        inbox = Inbox()
        inbox.put({"type": "http.request", "body": first, "more_body": True})
        scope = {"type": "http", "method": "POST", "path": "/predict/digits", "headers": scope_headers}
        task = asyncio.create_task(app(scope, inbox.receive, inbox.send))
        await asyncio.sleep(0.01)
        return task, inbox

    async def main() -> None:
        kind = (b"content-type", b"application/json")
        first, its_box = await begin([kind, (b"content-length", b"%d" % len(large))], large[:1000])
        assert application.admission.num_bytes == len(large)  # alone it may, though it is larger
        second, box = await begin([kind, (b"content-length", b"1000")], b"{")
        await second
        assert box.sent[0]["status"] == 503
        assert {b"retry-after", b"connection"} <= {name for name, _ in box.sent[0]["headers"]}
        assert b"at most 200000 bytes of bodies at once" in box.sent[1]["body"]
        unsaid, box = await begin([kind], b"{" * 1000)
        await unsaid
        assert box.sent[0]["status"] == 503
        its_box.put({"type": "http.request", "body": large[1000:], "more_body": False})
        await first
        assert its_box.sent[0]["status"] == 200
        assert (application.admission.num_bytes, application.admission.in_flight) == (0, 0)

    asyncio.run(main())
    application.close()


class Inbox:
    """The two ends of an ASGI call that is fed by hand."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any]) -> None:
        self._messages.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        return await self._messages.get()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
