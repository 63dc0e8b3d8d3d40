"""noa's clients read streams step by step, raise what ends them badly, and leave nothing open."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from http_kit import serving_http
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_kit import make_project, slow_model, wait_until
from stream_kit import (
    CACHED,
    CHAIN,
    COUNTER,
    SLOW,
    build_streams,
    cached_model,
    chain_model,
    counter_model,
    run_cached,
    run_chain,
    session_of,
    streaming,
)

from noa.errors import InvalidInputError, NotFoundError, ServiceError
from noa_serving import AsyncClient, Client, Step, StreamEnd
from noa_serving._asgi import AsgiApplication
from noa_serving.client_streams import Event, EventReader, StepReader

PROMPT = np.array([[3, 1, 4]], dtype=np.int64)
METADATA = {"outputs": [{"name": "y", "datatype": "FP32"}, {"name": "t", "datatype": "BYTES"}]}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> AsgiApplication:
    project = make_project(tmp_path_factory.mktemp("stream_clients"), empty_state)
    project.publish("chain", chain_model())
    project.publish("cached", cached_model)
    project.publish("counter", counter_model())
    project.publish("slow", lambda folder: slow_model(folder, steps=60))
    found, _ = build_streams(
        project,
        chain=streaming("chain@champion", CHAIN),
        cached=streaming("cached@champion", CACHED),
        counter=streaming("counter@champion", COUNTER),
        slow=streaming("slow@champion", {**SLOW, "max_streams": 1}),
    )
    return found


@pytest.fixture(scope="module")
def url(app: AsgiApplication) -> Iterator[str]:
    with serving_http(app) as address:
        yield address


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session_of(chain_model(), tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session_of(cached_model, tmp_path_factory.mktemp("cached"))


async def collect(url: str, *arguments: Any, **more: Any) -> tuple[list[Step], StreamEnd | None]:
    async with AsyncClient(url) as client:
        stream = client.stream(*arguments, **more)
        steps = [step async for step in stream]
        return steps, stream.end


def collect_now(url: str, *arguments: Any, **more: Any) -> tuple[list[Step], StreamEnd | None]:
    with Client(url) as client:
        stream = client.stream(*arguments, **more)
        return list(stream), stream.end


def collect_async(url: str, *arguments: Any, **more: Any) -> tuple[list[Step], StreamEnd | None]:
    return asyncio.run(collect(url, *arguments, **more))


both = pytest.mark.parametrize("collect", [collect_now, collect_async], ids=["sync", "async"])
Collect = Callable[..., tuple[list[Step], StreamEnd | None]]


@both
def test_steps_are_arrays_of_the_models_dtypes_to_the_bit(
    url: str, collect: Collect, chain: onnxruntime.InferenceSession
) -> None:
    wanted = run_chain(chain, PROMPT, CHAIN["max_steps"])
    steps, end = collect(url, "chain", {"tokens": PROMPT.astype(np.int32)})
    assert [step.number for step in steps] == list(range(1, len(wanted) + 1))
    for step, outputs in zip(steps, wanted, strict=True):
        for name, array in outputs.items():
            assert step.outputs[name].dtype == array.dtype
            assert step.outputs[name].tobytes() == array.tobytes()
    assert end is not None
    assert (end.steps, end.model, end.version) == (len(wanted), "chain", 1)


@both
def test_fewer_steps_and_outputs_and_an_empty_cache(
    url: str, collect: Collect, cached: onnxruntime.InferenceSession
) -> None:
    inputs = {"token": np.array([[3]]), "past": np.zeros((1, 0, 6), np.float32)}
    steps, end = collect(url, "cached", inputs, outputs=["next"], max_steps=3)
    wanted = run_cached(cached, np.array([[3]]), 3)
    assert [step.outputs["next"].tolist() for step in steps] == [one["next"].tolist() for one in wanted]
    assert list(steps[0].outputs) == ["next"]
    assert end is not None
    bare, _ = collect(url, "counter", np.array([3.0], np.float32))
    assert [step.outputs["y"].tolist() for step in bare] == [[4.0], [5.0]]


@both
def test_a_deadline_of_the_caller_ends_the_stream(url: str, collect: Collect) -> None:
    steps, end = collect(url, "slow", {"x": np.ones((1, 384), np.float32)}, deadline_s=1.0)
    assert end is not None
    assert (end.reason, end.steps) == ("deadline", len(steps))


@both
@pytest.mark.parametrize(
    ("endpoint", "inputs", "kind", "said"),
    [
        ("nobody", {"x": np.zeros(1, np.float32)}, NotFoundError, "no model `nobody`"),
        ("chain", {"tokens": np.array([[0.5]])}, InvalidInputError, "loses values"),
        ("counter", {"x": np.array([np.nan], np.float32)}, InvalidInputError, "NaN"),
        ("counter", {"x": np.array([500.0], np.float32)}, InvalidInputError, "cannot compute these values"),
        ("counter", {"x": np.array([0.0, 98.0], np.float32)}, InvalidInputError, "cannot compute these values"),
    ],
)
def test_what_goes_wrong_before_or_in_a_stream_is_the_same_error(
    url: str, collect: Collect, endpoint: str, inputs: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        collect(url, endpoint, inputs)


def test_a_stream_that_is_left_is_not_computed_on(url: str, app: AsgiApplication) -> None:
    counts = app._application.streams.counts["slow"]
    x = {"x": np.ones((1, 384), np.float32)}
    with Client(url) as client:
        with client.stream("slow", x) as steps:
            assert next(steps).number == 1
            assert client.predict("counter", {"x": np.array([1.0], np.float32)}).outputs["y"].tolist() == [2.0]
        wait_until(lambda: counts.active == 0)
        for step in client.stream("slow", x):
            if step.number == 2:
                break
        wait_until(lambda: counts.active == 0)

    async def leave() -> None:
        async with AsyncClient(url) as client, client.stream("slow", x) as steps:
            async for step in steps:
                if step.number == 2:
                    break

    asyncio.run(leave())
    wait_until(lambda: counts.active == 0)
    assert counts.ended["gone"] >= 3


def test_a_busy_server_is_asked_again(url: str, app: AsgiApplication) -> None:
    counts = app._application.streams.counts["slow"]
    x = {"x": np.ones((1, 384), np.float32)}
    with Client(url) as first, Client(url) as second:
        running = first.stream("slow", x)
        next(running)
        threading.Timer(0.3, running.close).start()
        with second.stream("slow", x, max_steps=1) as steps:
            assert next(steps).number == 1
    assert counts.refused >= 1
    wait_until(lambda: counts.active == 0)
    with Client(url, timeout_s=0.5) as first, Client(url, timeout_s=0.5) as second:
        running = first.stream("slow", x)
        next(running)
        with pytest.raises(ServiceError, match="as many streams as it may"):
            next(second.stream("slow", x))
        running.close()
    wait_until(lambda: counts.active == 0)


@contextmanager
def answering(*parts: bytes) -> Iterator[str]:
    """A server that knows one model and answers its stream with these bytes, then closes."""
    metadata = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], **METADATA}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    if head.startswith(b"GET"):
                        size = len(metadata)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size)
                        connection.sendall(metadata)
                        continue
                    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    for part in parts:
                        connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(20)
                    while connection.recv(65536):  # closed with bytes unread, it would be reset before it is read
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)


ONE_STEP = b'event: step\nid: 1\ndata: {"outputs": {"y": [1.5]}}\n\n'


@both
def test_a_stream_without_an_end_is_an_error(collect: Collect) -> None:
    x = np.zeros(1, np.float32)
    with answering(ONE_STEP) as url, pytest.raises(ServiceError, match="broke off after 1 steps"):
        collect(url, "m", {"x": x})
    with (
        answering(b"event: step\nid: x\ndata: {}\n\n") as url,
        pytest.raises(ServiceError, match="not that of a server"),
    ):
        collect(url, "m", {"x": x})
    told = b'event: error\ndata: {"error": "the queue is full", "status": 503}\n\n'
    with answering(ONE_STEP, told) as url, pytest.raises(ServiceError, match="the queue is full"):
        collect(url, "m", {"x": x})


@given(st.lists(st.integers(1, 9), max_size=40))
@settings(deadline=None)
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    text = (
        b': a comment\r\nevent: step\r\nid: 1\r\ndata: {"a":\r\ndata: 1}\r\n\r\n\nevent:end\ndata:{}\n\nevent: rest\n'
    )
    reader, found, start = EventReader(), list[Event](), 0
    for size in (*cuts, len(text)):
        found += reader.feed(text[start : start + size])
        start += size
    assert found == [Event("step", "1", '{"a":\n1}'), Event("end", "", "{}")]


def test_numbers_that_json_has_not_and_texts_come_as_they_can() -> None:
    reader = StepReader(METADATA, "http://here")
    data = 'event: step\nid: 4\ndata: {"outputs": {"y": [[1.5, null]], "t": ["ä", "\\n"]}}\n\n'.encode()
    (step,) = reader.read(data)
    assert isinstance(step, Step)
    assert step.number == 4
    assert step.outputs["y"].dtype == np.float32
    assert np.isnan(step.outputs["y"][0, 1])
    assert step.outputs["t"].tolist() == ["ä", "\n"]
