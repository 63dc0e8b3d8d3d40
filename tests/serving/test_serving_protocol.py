"""The protocol class over real sockets: pipelining, fragments, chunks, slow bodies, and the same answers as through
ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httptools
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_kit import Pipe, Project, affine_model, build_app, call, make_project, open_pipe, slow_model

from noa.settings import Settings
from noa_serving import Client
from noa_serving._asgi import AsgiApplication
from noa_serving._client_wire import Request
from noa_serving._protocol import MAX_HOT_BODY_BYTES, MAX_UNPLACED_BODY_BYTES

BODY = b'{"inputs": [[1, 2, 3, 4]]}'
GOOD = b'"total":[30.0]'


def message(body: bytes = BODY, *headers: str, path: str = "/predict/digits", length: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: here", "content-type: application/json", *headers]
    lines += [f"content-length: {len(body)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class Answers:
    """Parses a stream of answers, as many as are in it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.whole = 0

    def on_message_begin(self) -> None:
        self.bodies.append(b"")
        self.headers.append({})

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[-1][name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())
        self.whole += 1


@pytest.fixture
def wire(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def read(wire: socket.socket, count: int) -> Answers:
    answers = Answers()
    while answers.whole < count:
        data = wire.recv(65536)
        if not data:
            break
        answers.parser.feed_data(data)
    return answers


@pytest.mark.bentoml
def test_small_requests_are_answered_without_asgi_under_bentoml(url: str) -> None:
    def fast() -> int:
        with Client(url) as client:
            text = client._call(Request("GET", "/metrics")).body.decode()
        return int(re.findall(r"^noa_fast_answers_total\{.*\} (\d+)$", text, re.MULTILINE)[0])

    before = fast()
    with Client(url) as client:
        for _ in range(3):
            client.predict("digits", np.ones((1, 4), np.float32))
    assert fast() == before + 3


@pytest.mark.bentoml
def test_pipelined_requests_are_answered_in_order_whatever_way_they_go(wire: socket.socket) -> None:
    big = json.dumps({"inputs": [[1, 2, 3, 4]] * 3000}).encode()
    assert len(big) > 2000
    get = b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n"
    chunked = message(b"", "transfer-encoding: chunked", length=False) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    wire.sendall(message() + get + message(b"{") + message(big) + chunked + message() + get)
    answers = read(wire, 7)
    assert answers.statuses == [200, 200, 400, 200, 200, 200, 200]
    assert [b"live" in body for body in answers.bodies] == [False, True, False, False, False, False, True]
    assert GOOD in answers.bodies[0]
    assert len(json.loads(answers.bodies[3])["outputs"]["total"]) == 3000
    assert GOOD in answers.bodies[4]


@pytest.mark.bentoml
@pytest.mark.parametrize("step", [1, 7, 50])
def test_requests_in_fragments_are_put_together(wire: socket.socket, step: int) -> None:
    data = message() + message()
    for start in range(0, len(data), step):
        wire.send(data[start : start + step])
    answers = read(wire, 2)
    assert answers.statuses == [200, 200]
    assert all(GOOD in body for body in answers.bodies)


@pytest.mark.bentoml
def test_expect_continue_and_close_are_honoured(wire: socket.socket) -> None:
    head = message(BODY, "expect: 100-continue")[: -len(BODY)]
    wire.sendall(head)
    assert wire.recv(100).startswith(b"HTTP/1.1 100 ")
    wire.sendall(BODY)
    assert read(wire, 1).statuses == [200]
    wire.sendall(message(BODY, "connection: close"))
    answers = read(wire, 2)
    assert (answers.statuses, answers.headers[0][b"connection"]) == ([200], b"close")


@pytest.mark.bentoml
def test_answers_have_a_date_and_name_the_version(wire: socket.socket) -> None:
    wire.sendall(message())
    headers = read(wire, 1).headers[0]
    assert {b"date", b"noa-model", b"noa-version", b"noa-digest", b"content-type"} <= set(headers)


@pytest.mark.bentoml
@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 40,
        b"POST /predict/digits HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /predict/digits HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /predict/digits HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_malformed_http_is_400_and_the_connection_ends(wire: socket.socket, data: bytes) -> None:
    wire.sendall(data)
    assert wire.recv(1000).startswith(b"HTTP/1.1 400")
    assert wire.recv(1000) == b""


@pytest.mark.bentoml
def test_a_half_closed_connection_does_not_disturb_the_server(wire: socket.socket, url: str) -> None:
    wire.sendall(message()[:-3])
    wire.shutdown(socket.SHUT_WR)
    with Client(url) as client:
        assert client.predict("digits", np.ones((1, 4), np.float32)).version == 2


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("local"), empty_state)
    project.publish("digits", affine_model(3.0))
    project.publish("slow", slow_model)
    return project


def shortened(project: Project, **serving: object) -> AsgiApplication:
    table = project.settings.model_dump()
    whole = Settings.model_validate({**table, "serving": {**table["serving"], **serving}})
    return build_app(whole, digits="digits@champion", slow="slow@champion")


async def until(pipe: Pipe, text: bytes) -> None:
    async with asyncio.timeout(20):
        while text not in pipe.written:
            await asyncio.sleep(0.005)


def test_a_body_that_stops_arriving_is_408_and_closed(local: Project) -> None:
    app = shortened(local, timeout_s=0.05)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(message()[:-3])
        await until(pipe, b"HTTP/1.1 408")
        assert pipe.is_closed
        protocol.connection_lost(None)

    asyncio.run(main())


def test_a_head_that_stops_arriving_is_408_and_a_silent_connection_is_closed(local: Project) -> None:
    app = shortened(local, timeout_s=0.05)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(b"POST /predict/digits HTTP/1.1\r\nhost: x\r\n")
        await until(pipe, b"HTTP/1.1 408")
        assert pipe.is_closed
        protocol.connection_lost(None)
        silent, its_pipe = open_pipe(app)
        async with asyncio.timeout(20):
            while not its_pipe.is_closed:
                await asyncio.sleep(0.005)
        assert its_pipe.written == b""
        silent.connection_lost(None)

    asyncio.run(main())


def test_a_head_without_end_is_431_and_closed(wire: socket.socket) -> None:
    wire.sendall(b"POST /predict/digits HTTP/1.1\r\nhost: x\r\nx-long: ")
    sent = 0
    answer = b""
    wire.settimeout(20)
    with contextlib.suppress(ConnectionError):
        while sent < 64 << 20:
            sent += wire.send(b"a" * 65536)
    with contextlib.suppress(ConnectionError):
        answer = wire.recv(65536)
    assert sent < 64 << 20
    assert answer.startswith(b"HTTP/1.1 431") or answer == b""


def test_requests_behind_a_slow_model_wait_their_turn(local: Project) -> None:
    app = shortened(local)
    slow = json.dumps({"inputs": np.ones((1, 384)).tolist()}).encode()

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(message(slow, path="/predict/slow") + message())
        assert pipe.written == b""
        await until(pipe, GOOD)
        assert pipe.written.count(b"HTTP/1.1 200") == 2
        assert pipe.written.index(b"noa-model: slow") < pipe.written.index(b"noa-model: digits")
        protocol.connection_lost(None)

    asyncio.run(main())
    app._application.close()


CHUNKED = message(b"", "transfer-encoding: chunked", length=False) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SLOW = json.dumps({"inputs": np.ones((1, 384)).tolist()}).encode()


def test_what_two_connections_send_in_one_turn_is_one_batch(local: Project) -> None:
    app = shortened(local)

    async def main() -> None:
        pipes = [open_pipe(app) for _ in range(3)]
        for number, (protocol, _) in enumerate(pipes):
            protocol.data_received(message(b'{"inputs": [[%d, 2, 3, 4]]}' % number) * 2)
        assert all(pipe.written == b"" for _, pipe in pipes)
        await asyncio.sleep(0)
        ticks = app._application.computing.ticks
        assert (ticks.batches, ticks.requests) == (1, 6)
        for number, (protocol, pipe) in enumerate(pipes):
            assert pipe.written.count(b'"total":[%d.0]' % (3 * (number + 9))) == 2
            protocol.connection_lost(None)

    asyncio.run(main())


def test_any_mix_of_ways_on_one_connection_is_answered_in_order(local: Project) -> None:
    app = shortened(local)
    ways = [
        (message(SLOW, path="/predict/slow"), b"noa-model: slow"),
        (message(), b"noa-model: digits"),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n", b'{"live":true}'),
        (CHUNKED, b"noa-model: digits"),
    ]

    async def main(order: list[int]) -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(b"".join(ways[index][0] for index in order))
        answers = Answers()
        async with asyncio.timeout(60):
            while pipe.written.count(b"HTTP/1.1 ") < len(order):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        answers.parser.feed_data(pipe.written)
        places = [pipe.written.split(b"HTTP/1.1 ")[1 + place] for place in range(len(order))]
        assert all(ways[index][1] in text for index, text in zip(order, places, strict=True))
        assert answers.statuses == [200] * len(order)
        protocol.connection_lost(None)
        await asyncio.sleep(0)

    for order in ([0, 1, 2, 3, 1], [1, 2, 0, 1, 0], [3, 1, 0, 2], [0, 0, 2, 2, 1], [1] * 80):
        asyncio.run(main(order))
    assert app._application.admission.in_flight == 0
    app._application.close()


def test_a_client_that_goes_away_takes_its_work_out_of_the_queue(local: Project) -> None:
    app = shortened(local, p99_target_ms=60_000)  # one run at a time, however busy the machine is
    long = json.dumps({"inputs": np.ones((32, 384)).tolist()}).encode()

    async def main() -> None:
        protocol, _ = open_pipe(app)
        protocol.data_received(message(long, path="/predict/slow"))
        for _ in range(3):
            await asyncio.sleep(0)  # it runs
        other, _ = open_pipe(app)
        other.data_received(message(SLOW, path="/predict/slow") * 3)
        assert app._application.computing.queue.waiting_items == 3
        other.connection_lost(None)
        assert app._application.computing.queue.waiting_items == 0
        assert app._application.admission.in_flight == 1
        protocol.connection_lost(None)
        assert app._application.admission.in_flight == 1  # the run has not ended
        async with asyncio.timeout(20):
            while app._application.admission.in_flight:
                await asyncio.sleep(0.005)

    asyncio.run(main())
    app._application.close()


def test_a_request_before_a_half_close_is_answered(wire: socket.socket) -> None:
    wire.sendall(message())
    wire.shutdown(socket.SHUT_WR)
    assert read(wire, 1).statuses == [200]


def test_a_deadline_of_the_request_is_kept_whatever_way_it_goes(local: Project) -> None:
    app = shortened(local)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(
            message(BODY, "noa-timeout-ms: 0")
            + message(SLOW, "noa-timeout-ms: 1", path="/predict/slow")
            + message(BODY, "noa-timeout-ms: soon")
            + message(BODY, "noa-timeout-ms: 20000")
        )
        await until(pipe, GOOD)
        answers = Answers()
        answers.parser.feed_data(pipe.written)
        assert answers.statuses == [504, 504, 400, 200]
        protocol.connection_lost(None)

    asyncio.run(main())
    app._application.close()


def test_a_graceful_end_answers_the_request_whose_body_is_arriving(local: Project) -> None:
    app = shortened(local)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(message()[:-3])
        protocol.shutdown()
        assert not pipe.is_closed
        protocol.data_received(message()[-3:])
        await until(pipe, GOOD)
        assert b"connection: close" in pipe.written
        assert pipe.is_closed
        protocol.connection_lost(None)

    asyncio.run(main())


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(local: Project) -> None:
    app = shortened(local)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.timeout_keep_alive = 0.05
        protocol.data_received(message())
        assert not pipe.is_closed
        async with asyncio.timeout(20):
            while not pipe.is_closed:
                await asyncio.sleep(0.01)
        protocol.connection_lost(None)

    asyncio.run(main())


relaxed = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(
    bodies=st.lists(
        st.sampled_from([BODY, b"{", b"", b"[]", b'{"inputs": [[1,2]]}', b" " * 300]), min_size=1, max_size=5
    ),
    cuts=st.lists(st.integers(1, 400), max_size=8),
)
def test_any_cut_of_any_requests_gives_the_answers_of_asgi(
    app: AsgiApplication, bodies: list[bytes], cuts: list[int]
) -> None:
    async def main() -> None:
        protocol, pipe = open_pipe(app)
        data = b"".join(map(message, bodies))
        for cut in [*cuts, len(data)]:
            if data:
                protocol.data_received(data[:cut])
            data = data[cut:]
        await asyncio.sleep(0)
        answers = Answers()
        answers.parser.feed_data(pipe.written)
        for index, body in enumerate(bodies):
            expected = await call(app, "POST", "/predict/digits", body, {"content-type": "application/json"})
            assert (answers.statuses[index], answers.bodies[index]) == (expected.status, expected.body)
        assert answers.whole == len(bodies)
        protocol.connection_lost(None)

    asyncio.run(main())


@relaxed
@given(data=st.binary(max_size=300), prefix=st.integers(0, 200))
def test_any_bytes_on_the_wire_leave_the_protocol_whole(app: AsgiApplication, data: bytes, prefix: int) -> None:
    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(message()[:prefix] + data)
        assert b"HTTP/1.1 500" not in pipe.written
        protocol.connection_lost(None)
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_body_that_is_not_small_has_a_place_before_it_is_read(local: Project) -> None:
    app = shortened(local, max_in_flight=1)
    application = app._application
    large = message(BODY + b" " * MAX_UNPLACED_BODY_BYTES)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        protocol.data_received(large[:-1])
        assert application.admission.in_flight == 1
        other, its_pipe = open_pipe(app)
        other.data_received(large)
        await until(its_pipe, b"HTTP/1.1 503")
        other.connection_lost(None)
        protocol.data_received(large[-1:])
        await until(pipe, GOOD)
        assert (application.admission.in_flight, application.fast_answers) == (0, 1)
        protocol.data_received(large[:-1])
        protocol.connection_lost(None)
        assert application.admission.in_flight == 0

    asyncio.run(main())


def test_large_bodies_go_through_asgi(local: Project) -> None:
    app = shortened(local)

    async def main() -> None:
        protocol, pipe = open_pipe(app)
        body = BODY + b" " * MAX_HOT_BODY_BYTES
        protocol.data_received(message(body))
        await until(pipe, GOOD)
        assert app._application.fast_answers == 0
        protocol.connection_lost(None)

    asyncio.run(main())
