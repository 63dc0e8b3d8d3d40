"""What a client sends beyond what is read: bodies after their answer, chunk sizes, trailers, and other hosts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_kit import Pipe, Project, affine_model, build_app, make_project, open_pipe

from noa.settings import Settings
from noa_serving._asgi import AsgiApplication

BODY = b'{"inputs": [[1, 2, 3, 4]]}'
GOOD = b'"total":[30.0]'
HEAD = b"%b HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
LIVE = HEAD % b"GET /v2/health/live"
NOBODY = HEAD % b"POST /predict/nobody"  # refused before its body is read
PREDICT = HEAD % b"POST /predict/digits"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("rest"), empty_state)
    project.publish("digits", affine_model(3.0))
    return project


def build(project: Project, **serving: object) -> AsgiApplication:
    table = project.settings.model_dump()
    whole = Settings.model_validate({**table, "serving": {**table["serving"], **serving}})
    return build_app(whole, digits="digits@champion", nobody="digits@nobody")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def connected(app: AsgiApplication) -> Iterator[tuple[Any, Pipe]]:
    protocol, pipe = open_pipe(app)
    yield protocol, pipe
    protocol.connection_lost(None)


async def feed(protocol: Any, pipe: Pipe, data: bytes, *, step: int) -> int:
    """Send data in reads of `step` bytes while the connection is open; return how much was taken."""
    for start in range(0, len(data), step):
        if pipe.is_closed:
            return start
        protocol.data_received(data[start : start + step])
        await asyncio.sleep(0)
    return len(data)


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (LIVE + b"content-length: 1000000\r\n\r\n", b"1"),
        (NOBODY + b"content-length: 2000000\r\n\r\n", b"1"),
        (LIVE + CHUNKED, b"1\r\na\r\n"),
        (LIVE + CHUNKED + CHUNK + b"0\r\nx-trailer: ", b"1"),
        (HEAD % b"HEAD /" + b"content-length: 9\r\n\r\n", b""),
    ],
    ids=["get", "refused post", "chunks", "trailer", "silence"],
)
def test_a_body_that_drips_after_its_answer_ends_with_the_time_limit(
    project: Project, head: bytes, drip: bytes
) -> None:
    app = build(project, timeout_s=0.3)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            protocol.data_received(head)
            await until(lambda: b"HTTP/1.1 " in pipe.written)
            assert not pipe.is_closed
            async with asyncio.timeout(4):  # less than an idle connection is kept
                while not pipe.is_closed:
                    await asyncio.sleep(0.05)
                    if drip and not pipe.is_closed:
                        protocol.data_received(drip)

    asyncio.run(main())
    app._application.close()


@pytest.mark.parametrize("step", [1000, 16 << 10, 256 << 10])
@pytest.mark.parametrize(("head", "most"), [(LIVE, 64 << 10), (NOBODY, 1 << 20)])
def test_a_body_that_nobody_reads_is_thrown_away_within_a_limit(
    project: Project, head: bytes, most: int, step: int
) -> None:
    app = build(project, max_body_bytes=1 << 20)

    async def main() -> None:
        for framing, body in (
            (b"content-length: 1000000000\r\n\r\n", b"x" * (4 << 20)),
            (CHUNKED, b"3e8\r\n%b\r\n" % (b"x" * 1000) * 4000),
        ):
            with connected(app) as (protocol, pipe):
                protocol.data_received(head + framing)
                await until(lambda pipe=pipe: b"HTTP/1.1 " in pipe.written)
                taken = await feed(protocol, pipe, body, step=step)
                assert pipe.is_closed
                assert taken <= 1.05 * most + 2 * step

    asyncio.run(main())
    app._application.close()


def test_a_small_body_that_nobody_reads_keeps_the_connection(project: Project) -> None:
    app = build(project)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            for _ in range(3):
                protocol.data_received(LIVE + b"content-length: 60000\r\n\r\n")
                await asyncio.sleep(0.01)
                protocol.data_received(b"x" * 60000)
            protocol.data_received(PREDICT + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            await until(lambda: GOOD in pipe.written)
            assert pipe.written.count(b"HTTP/1.1 200") == 4

    asyncio.run(main())
    app._application.close()


@pytest.mark.parametrize("step", [1000, 256 << 10])
@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"0" * 200_000 + CHUNK + b"0\r\n\r\n",
        CHUNKED + b"1;" + b"x" * 200_000 + b"\r\n{\r\n0\r\n\r\n",
        CHUNKED + CHUNK + b"0\r\n" + b"a: b\r\n" * 200_000 + b"\r\n",
        CHUNKED + CHUNK + b"0\r\na: " + b"b" * 200_000 + b"\r\n\r\n",
    ],
    ids=["zeros", "extension", "trailers", "trailer"],
)
def test_chunk_sizes_and_trailers_without_end_are_refused(project: Project, data: bytes, step: int) -> None:
    app = build(project)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            taken = await feed(protocol, pipe, PREDICT + data, step=step)
            assert pipe.is_closed
            assert pipe.written.startswith(b"HTTP/1.1 400")
            assert b"chunk sizes or trailers" in pipe.written
            assert taken <= max(70_000, step)

    asyncio.run(main())
    app._application.close()


@pytest.mark.parametrize("step", [1000, 256 << 10])
def test_many_small_chunks_and_a_few_trailers_are_read(project: Project, step: int) -> None:
    app = build(project)
    spaces = b"1\r\n \r\n" * 40_000
    trailers = b"a: b\r\n" * 100

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            await feed(protocol, pipe, PREDICT + CHUNKED + spaces + CHUNK + b"0\r\n" + trailers + b"\r\n", step=step)
            await until(lambda: GOOD in pipe.written)
            assert not pipe.is_closed

    asyncio.run(main())
    app._application.close()


def test_trailers_are_no_headers(project: Project) -> None:
    app = build(project)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            protocol.data_received(PREDICT + CHUNKED + CHUNK + b"0\r\ncontent-encoding: gzip\r\nhost: b\r\n\r\n")
            await until(lambda: b"HTTP/1.1 " in pipe.written)
            assert GOOD in pipe.written

    asyncio.run(main())
    app._application.close()


HOSTS = [
    (b"POST /predict/digits HTTP/1.1\r\n", 400),
    (b"POST /predict/digits HTTP/1.1\r\nhost: a\r\nHost: b\r\n", 400),
    (b"POST /predict/digits HTTP/1.1\r\nHOST: a\r\n", 200),
    (b"POST /predict/digits HTTP/1.1\r\nhost: a\r\nx-a: 1\r\nx-a: 2\r\n", 200),
    (b"POST /predict/digits HTTP/1.0\r\n", 200),
    (b"POST /predict/digits HTTP/1.0\r\nhost: a\r\nhost: a\r\n", 400),
    (b"POST /v2/models/digits HTTP/1.1\r\n", 400),
    (b"POST /v2/models/digits HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
]


@pytest.mark.parametrize(("head", "status"), HOSTS)
def test_a_request_names_one_host(project: Project, head: bytes, status: int) -> None:
    app = build(project)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            before = PREDICT + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
            data = head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
            protocol.data_received(before + data)
            await until(lambda: pipe.written.count(b"HTTP/1.1 ") == 2)
            first, second = pipe.written.split(b"HTTP/1.1 ")[1:]
            assert (first[:3], GOOD in first) == (b"200", True)
            assert int(second[:3]) == status
            assert (b"`Host`" in second) == (status == 400)
            assert pipe.is_closed == (status == 400 or b"HTTP/1.0" in head)

    asyncio.run(main())
    app._application.close()


def test_a_connection_that_asks_for_another_protocol_goes_on_as_before(project: Project) -> None:
    app = build(project, timeout_s=0.1)

    async def main() -> None:
        with connected(app) as (protocol, pipe):
            protocol.data_received(LIVE + b"connection: upgrade\r\nupgrade: other\r\n\r\n")
            await until(lambda: b"HTTP/1.1 200" in pipe.written)
            await asyncio.sleep(0.3)
            assert not pipe.is_closed
            protocol.data_received(LIVE + b"\r\n")
            await until(lambda: pipe.written.count(b"HTTP/1.1 200") == 2)

    asyncio.run(main())
    app._application.close()
