"""Refused connections are read again after a breath, at a rate that leaves the time to what is computed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving_kit import Project, affine_model, build_app, make_project, open_pipe, slow_model

from noa.settings import Settings
from noa_serving._asgi import AsgiApplication
from noa_serving._breath import LONGEST_S, REFUSALS_PER_S, Breaths


class Clock(asyncio.AbstractEventLoop):
    """A loop that has a clock and timers only, and runs them when it is told the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, object, tuple[object, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: object, *args: object, context: object = None) -> object:  # type: ignore[override]
        self.timers.append((when, callback, args))
        return object()

    def advance(self, to: float) -> None:
        while due := [timer for timer in self.timers if timer[0] <= to]:
            timer = min(due, key=lambda one: one[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1](*timer[2])  # type: ignore[operator]
        self.now = to


def test_connections_go_on_in_order_and_no_faster_than_the_limit() -> None:
    clock, breaths = Clock(), Breaths()
    paused: list[int] = []
    resumed: list[tuple[int, float]] = []
    count = 500
    for number in range(count):
        breaths.take(clock, lambda n=number: paused.append(n), lambda n=number: resumed.append((n, clock.now)))
    assert paused[0] < 20  # the first few ask again so soon that a pause is not worth its price
    assert paused == list(range(paused[0], count))
    clock.advance(clock.now + 10)
    assert [number for number, _ in resumed] == paused
    assert len(breaths) == 0
    assert resumed[-1][1] - 100.0 == pytest.approx(count / REFUSALS_PER_S, abs=0.01)
    for (_, before), (_, after) in zip(resumed, resumed[100:], strict=False):
        assert after - before >= 100 / REFUSALS_PER_S - 0.02


def test_nobody_waits_longer_than_the_shortest_retry_after() -> None:
    clock, breaths = Clock(), Breaths()
    resumed: list[float] = []
    for _ in range(round(5 * REFUSALS_PER_S)):
        breaths.take(clock, lambda: None, lambda: resumed.append(clock.now))
    clock.advance(200.0)
    assert max(resumed) - 100.0 <= LONGEST_S + 0.001


def test_a_calm_time_is_forgotten() -> None:
    clock, breaths = Clock(), Breaths()
    for _ in range(1000):
        breaths.take(clock, lambda: None, lambda: None)
    clock.advance(200.0)
    paused: list[bool] = []
    breaths.take(clock, lambda: paused.append(True), lambda: None)
    assert not paused


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[AsgiApplication]:
    project: Project = make_project(tmp_path_factory.mktemp("breath"), empty_state)
    project.publish("digits", affine_model(2.0))
    project.publish("slow", slow_model)
    table = project.settings.model_dump()
    settings = Settings.model_validate({**table, "serving": {**table["serving"], "max_in_flight": 1}})
    app = build_app(settings, digits="digits@champion", slow="slow@champion")
    yield app
    app._application.close()


SMALL = b'{"inputs": [[1, 2, 3, 4]]}'
SLOW = json.dumps({"inputs": np.ones((32, 384)).tolist()}).encode()  # a good part of a second of one core


def message(path: str, body: bytes = SMALL) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_refused_connections_are_not_read_for_a_moment_and_all_are_answered_in_the_end(app: AsgiApplication) -> None:
    application = app._application

    async def main() -> None:
        busy, slow_pipe = open_pipe(app)
        busy.data_received(message("/predict/slow", SLOW))
        assert application.admission.is_full
        others = [open_pipe(app) for _ in range(400)]
        for protocol, _ in others:
            protocol.data_received(message("/predict/digits"))
        assert all(b"HTTP/1.1 503" in pipe.written and b"retry-after: " in pipe.written for _, pipe in others)
        assert slow_pipe.is_read
        resting = [pipe for _, pipe in others if not pipe.is_read]
        assert len(resting) > 350
        others[399][1].is_closed = True  # its client has gone meanwhile
        deadline = time.monotonic() + 20
        while application.admission.in_flight or any(not pipe.is_read for pipe in resting[:-1]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert not resting[-1].is_read
        for protocol, pipe in others[:-1]:
            pipe.written = b""
            protocol.data_received(message("/predict/digits"))
        await asyncio.sleep(0.05)
        assert all(b"HTTP/1.1 200" in pipe.written for _, pipe in others[:-1])
        for protocol, _ in [(busy, slow_pipe), *others]:
            protocol.connection_lost(None)

    asyncio.run(main())


def test_a_breath_does_not_read_past_a_request_that_asgi_still_answers(app: AsgiApplication) -> None:
    async def main() -> None:
        busy, slow_pipe = open_pipe(app)
        busy.data_received(message("/predict/slow", SLOW))
        others = [open_pipe(app) for _ in range(400)]
        for other, _ in others:
            other.data_received(message("/predict/digits"))
        protocol, pipe = others[-1]
        assert b"HTTP/1.1 503" in pipe.written
        get = b"GET /status HTTP/1.1\r\nhost: here\r\n\r\n"
        protocol.data_received(get * 3)  # in the same breath, as a pipelining client sends it
        assert not pipe.is_read
        protocol._end_breath()
        assert not pipe.is_read
        deadline = time.monotonic() + 20
        while pipe.written.count(b"HTTP/1.1 200") < 3 or not pipe.is_read:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        while not slow_pipe.written:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        protocol.connection_lost(None)
        busy.connection_lost(None)

    asyncio.run(main())
