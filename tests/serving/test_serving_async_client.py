"""The asynchronous client against a real server: many calls at once, reuse, retries and errors."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
from http_kit import serving_http
from serving_kit import ask

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa_serving import AsyncClient, Client, NoAnswerError
from noa_serving._asgi import AsgiApplication
from noa_serving._client_stub import client_stub

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)


@pytest.fixture(scope="module")
def address(app: AsgiApplication) -> Iterator[str]:
    with serving_http(app) as url:
        yield url


def use(url: str, calls: Callable[[AsyncClient], Awaitable[None]], **options: float) -> None:
    async def run() -> None:
        async with AsyncClient(url, **options) as client:  # type: ignore[arg-type]  # numbers only
            await calls(client)

    asyncio.run(run())


def test_many_calls_at_once_share_a_few_connections(address: str) -> None:
    async def calls(client: AsyncClient) -> None:
        rows = [X * index for index in range(1, 51)]
        found = await asyncio.gather(*(client.predict("digits", {"x": row}) for row in rows))
        for row, prediction in zip(rows, found, strict=True):
            assert np.array_equal(prediction.outputs["y"], row * 3)
            assert (prediction.model, prediction.version) == ("digits", 2)
        assert 1 <= len(client._idle) <= 4

    use(address, calls, max_connections=4)


def test_names_casts_json_and_metadata_are_those_of_the_other_client(address: str) -> None:
    async def calls(client: AsyncClient) -> None:
        whole = await client.predict("digits", X.astype(np.int64), outputs=["total"])
        assert whole.outputs["total"].tolist() == [30.0, 78.0]
        assert (await client.predict_json("digits", {"inputs": [[1, 2, 3, 4]]}))["version"] == 2
        assert (await client.inputs("digits"))[0].shape == ("batch", 4)
        assert not await client.ready()  # `absent` waits for its alias
        assert "digits" in str(await client.status())

    use(address, calls)


def test_errors_have_the_servers_words(address: str) -> None:
    async def calls(client: AsyncClient) -> None:
        with pytest.raises(InvalidInputError, match="wrong shape"):
            await client.predict("digits", {"x": X[:, :3]})
        with pytest.raises(NotFoundError, match="`nobody`"):
            await client.predict("nobody", {"x": X})
        with pytest.raises(ServiceError, match="not ready"):
            await client.predict("absent", {"x": X})

    use(address, calls, timeout_s=0.5)
    with pytest.raises(InvalidInputError, match="not the URL"):
        AsyncClient("ftp://127.0.0.1")


def test_the_stub_on_the_servers_page_calls_the_endpoint(app: AsgiApplication, address: str) -> None:
    application = app._application
    names: dict[str, Callable[..., dict[str, np.ndarray]]] = {}
    for endpoint in ("digits", "mixed"):
        source = client_stub(application.endpoints[endpoint].require())
        assert html.escape(source) in ask(app, "GET", "/docs").body.decode()
        exec(source, names)
    with Client(address) as client:
        assert np.array_equal(names["predict_digits"](client, X)["y"], X * 3)
        flags = np.array([True])
        found = names["predict_mixed"](client, pixels=np.zeros((1, 2, 2), np.uint8), index=np.array([1]), flag=flags)
        assert found["picked"].tolist() == [20.0]


def answering(*answers: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a server that gives one answer per connection and closes it without a word."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    return handle


OK = b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"model": "one"}'
CHUNKED = (
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8;x=1\r\n{"model"\r\n8\r\n: "one"}\r\n0\r\nt: 1\r\n\r\n'
)
BUSY = b"HTTP/1.1 503 Busy\r\nretry-after: %b\r\ncontent-length: 0\r\n\r\n"


def against(calls: Callable[[AsyncClient], Awaitable[None]], *answers: bytes, timeout_s: float = 5.0) -> None:
    async def run() -> None:
        server = await asyncio.start_server(answering(*answers), "127.0.0.1", 0)
        async with (
            server,
            AsyncClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=timeout_s) as client,
        ):
            await calls(client)

    asyncio.run(run())


@pytest.mark.parametrize("answers", [(OK, OK), (CHUNKED, OK), (BUSY % b"0", OK, OK)], ids=["closed", "chunked", "busy"])
def test_closed_connections_are_replaced_and_busy_servers_asked_again(answers: tuple[bytes, ...]) -> None:
    async def calls(client: AsyncClient) -> None:
        for _ in range(2):
            assert await client.metadata("digits") == {"model": "one"}

    against(calls, *answers)


OTHER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (BUSY % b"50", r"answered 503.*received status 503"),
        (b"nonsense\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no length"),
        (b"", "does not answer"),
        (OTHER % (15, b"<html>hi</html>"), r"not that of a server of noa.*received status 200: <html>hi</html>"),
        (OTHER % (2, b"[]"), r"not that of a server of noa.*received status 200: \[\]"),
        (OTHER % (9, b'{"ok": 1}'), r"not that of a server of noa.*received an object of `ok`"),
    ],
)
def test_what_is_no_answer_is_an_error_with_all_its_parts(answer: bytes, text: str) -> None:
    async def calls(client: AsyncClient) -> None:
        with pytest.raises(ServiceError, match=text) as caught:
            await client.inputs("digits")
        assert None not in caught.value.to_dict().values()

    against(calls, answer, timeout_s=2.0)


def test_a_server_that_says_nothing_is_told_from_one_that_is_away() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def run() -> tuple[NoAnswerError, NoAnswerError]:
        server = await asyncio.start_server(silence, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, AsyncClient(f"127.0.0.1:{port}", timeout_s=0.2) as client:
            with pytest.raises(NoAnswerError) as silent:
                await client.inputs("digits")
        async with AsyncClient(f"localhost:{port}", timeout_s=5) as client:
            with pytest.raises(NoAnswerError) as away:
                await client.inputs("digits")
        return silent.value, away.value

    silent, away = asyncio.run(run())
    assert (silent.received, silent.facts["is_refused"]) == ("nothing within 0.2 s", False)
    assert (away.received, away.facts["is_refused"]) == ("connection refused: nothing listens there", True)
    assert "log" in str(silent.remedy)
    assert "noa up" in str(away.remedy)
