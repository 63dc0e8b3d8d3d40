"""Streams over HTTP: each step is that of a plain loop, to the bit, and nothing is computed for nobody."""

from __future__ import annotations

import asyncio
import gc
import http.client
import io
import json
import socket
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from http_kit import serving_http
from observe_kit import total
from serving_kit import Project, affine_model, ask, call, endpoint, make_project, slow_model, wait_until
from stream_kit import (
    CACHED,
    CHAIN,
    COUNTER,
    END,
    SLOW,
    WIDE,
    build_streams,
    cached_model,
    chain_model,
    counter_model,
    next_event,
    parse,
    posted,
    run_cached,
    run_chain,
    session_of,
    stream_over,
    streaming,
    wide_model,
)

from noa_serving._access_log import line_of
from noa_serving._asgi import AsgiApplication
from noa_serving._observer import Observer, PayloadRow, Record
from noa_serving._off_loop import OffLoop
from noa_serving._stream_counts import StreamCounts

TOKENS = [[3, 1, 4], [1, 5, 9]]


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("writers"), empty_state)
    project.publish("chain", chain_model())
    project.publish("cached", cached_model)
    project.publish("counter", counter_model())
    project.publish("wide", wide_model)
    project.publish("slow", lambda folder: slow_model(folder, steps=60))
    project.publish("plain", affine_model(2.0))
    return project


@pytest.fixture(scope="module")
def app(writers: Project) -> AsgiApplication:
    found, _ = build_streams(
        writers,
        chain=streaming("chain@champion", CHAIN),
        cached=streaming("cached@champion", CACHED),
        counter=streaming("counter@champion", COUNTER),
        wide=streaming("wide@champion", {**WIDE, "max_streams": 2}),
        slow=streaming("slow@champion", {**SLOW, "max_streams": 2}),
        plain=endpoint("plain@champion"),
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


def counts_of(app: AsgiApplication, name: str) -> StreamCounts:
    return app._application.streams.counts[name]


def until_idle(app: AsgiApplication, name: str) -> None:
    wait_until(lambda: counts_of(app, name).active == 0 and app._application.admission.in_flight == 0)


def same(outputs: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> None:
    """Compare what came in JSON with arrays, to the bit."""
    assert outputs.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array(outputs[name], dtype=array.dtype).tobytes() == array.tobytes(), name


# --- what is answered ----------------------------------------------------------------------------------------------


def test_every_step_is_that_of_a_plain_loop_to_the_bit(url: str, chain: onnxruntime.InferenceSession) -> None:
    wanted = run_chain(chain, np.array(TOKENS), CHAIN["max_steps"])
    events = stream_over(url, "/predict/chain/stream", {"inputs": {"tokens": TOKENS}})
    *steps, end = events
    assert len(steps) == len(wanted) > 2
    for number, (event, outputs) in enumerate(zip(steps, wanted, strict=True), start=1):
        assert (event.name, event.id) == ("step", str(number))
        same(event.data["outputs"], outputs)
    assert end.name == "end"
    assert (end.data["steps"], end.data["model"], end.data["version"]) == (len(steps), "chain", 1)
    assert end.data["digest"].startswith("sha256:")


def test_a_cache_goes_from_step_to_step_and_is_not_sent(url: str, cached: onnxruntime.InferenceSession) -> None:
    for token in range(1, 6):
        wanted = run_cached(cached, np.array([[token]]), CACHED["max_steps"])
        *steps, end = stream_over(url, "/predict/cached/stream", {"inputs": {"token": [[token]]}})
        assert [event.name for event in steps] == ["step"] * len(wanted)
        for event, outputs in zip(steps, wanted, strict=True):
            same(event.data["outputs"], outputs)
        stopped = wanted[-1]["next"][0, 0] == END
        assert end.data["reason"] == ("stop" if stopped else "max_steps")


def test_a_cache_may_be_given_and_is_continued(url: str, cached: onnxruntime.InferenceSession) -> None:
    past = np.random.default_rng(1).normal(size=(1, 4, 6)).astype(np.float32)
    names = ["next", "score", "present"]
    first = cached.run(names, {"token": np.array([[7]]), "past": past})
    second = cached.run(names, {"token": first[0], "past": first[2]})
    body = {"inputs": {"token": [[7]], "past": past.tolist()}, "max_steps": 2}
    one, two, end = stream_over(url, "/predict/cached/stream", body)
    same(one.data["outputs"], {"next": first[0], "score": first[1]})
    same(two.data["outputs"], {"next": second[0], "score": second[1]})
    assert end.data["reason"] in ("max_steps", "stop")


def test_items_end_one_by_one_and_the_stream_with_the_last(url: str) -> None:
    *steps, end = stream_over(url, "/predict/counter/stream", {"inputs": {"x": [4.0, 0.0, 9.0]}})
    assert [event.data["outputs"]["y"] for event in steps] == [[5 + n, 1 + n, 10 + n] for n in range(5)]
    assert (end.data["reason"], end.data["steps"]) == ("stop", 5)


def test_one_item_without_the_batch_is_answered_so(url: str, chain: onnxruntime.InferenceSession) -> None:
    wanted = run_chain(chain, np.array([TOKENS[0]]), 3)
    events = stream_over(url, "/predict/chain/stream", {"inputs": {"tokens": TOKENS[0]}, "max_steps": 3})
    for event, outputs in zip(events[:-1], wanted, strict=True):
        same(event.data["outputs"], {name: array[0] for name, array in outputs.items()})


def test_a_request_may_ask_for_fewer_steps_and_outputs(url: str) -> None:
    body = {"instances": [{"tokens": [1, 2]}, {"tokens": [3, 4]}], "max_steps": 2, "outputs": ["score"]}
    *steps, end = stream_over(url, "/predict/chain/stream", body)
    assert [list(event.data["outputs"]) for event in steps] == [["score"]] * 2
    assert len(steps[0].data["outputs"]["score"]) == 2
    assert (end.data["reason"], end.data["steps"]) == ("max_steps", 2)


def test_arrays_come_as_numpy_files_too(url: str, chain: onnxruntime.InferenceSession) -> None:
    file = io.BytesIO()
    np.savez(file, tokens=np.array(TOKENS, np.int64))
    headers = {"content-type": "application/x-npz", "noa-max-steps": "2", "noa-outputs": "next"}
    *steps, _ = stream_over(url, "/predict/chain/stream", file.getvalue(), headers)
    wanted = run_chain(chain, np.array(TOKENS), 2)
    for event, outputs in zip(steps, wanted, strict=True):
        same(event.data["outputs"], {"next": outputs["next"]})


def test_a_connection_is_kept_and_names_the_version(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.connect()
    opened = connection.sock
    for _ in range(2):
        body = json.dumps({"inputs": {"x": [3.0]}, "max_steps": 1})
        connection.request("POST", "/predict/counter/stream", body, {"accept": "text/event-stream"})
        response = connection.getresponse()
        assert [event.name for event in parse(response.read().decode())] == ["step", "end"]
        assert response.headers["noa-model"] == "counter"
        assert (response.headers["noa-version"], response.headers["cache-control"]) == ("1", "no-store")
        assert connection.sock is opened
    connection.request("POST", "/predict/counter", json.dumps({"inputs": {"x": [3.0]}}))
    assert json.loads(connection.getresponse().read())["outputs"]["y"] == [4.0]
    connection.close()


def test_tritons_generate_stream_has_bare_events(url: str, chain: onnxruntime.InferenceSession) -> None:
    wanted = run_chain(chain, np.array([[3, 1, 4]]), 3)
    for path in ("/v2/models/chain/generate_stream", "/v2/models/chain/versions/1/generate_stream"):
        body = {"id": "7", "tokens": [3, 1, 4], "parameters": {"max_steps": 3, "stream": True}}
        events = stream_over(url, path, body)
        assert [event.name for event in events] == [""] * len(wanted)
        for event, outputs in zip(events, wanted, strict=True):
            assert (event.data["model_name"], event.data["model_version"]) == ("chain", "1")
            assert event.data["next"] == outputs["next"].item()
            assert np.float32(event.data["score"]) == outputs["score"][0, 0]
    two = stream_over(url, "/v2/models/chain/generate_stream", {"tokens": TOKENS, "parameters": {"max_steps": 1}})
    assert two[0].data["next"] == run_chain(chain, np.array(TOKENS), 1)[0]["next"].reshape(-1).tolist()
    bare = stream_over(url, "/v2/models/cached/generate_stream", {"token": 3, "parameters": {"max_steps": 1}})
    assert isinstance(bare[0].data["next"], int)


# --- what is refused -----------------------------------------------------------------------------------------------

GOOD = {"inputs": {"tokens": [[1, 2]]}}
STREAM = "/predict/chain/stream"
GENERATE = "/v2/models/chain/generate_stream"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        ("/predict/plain/stream", {}, {}, 404, "endpoint `plain` has no streams"),
        ("/v2/models/plain/generate_stream", {}, {}, 404, "endpoint `plain` has no streams"),
        ("/predict/nobody/stream", {}, {}, 404, "no model `nobody`"),
        ("/v2/models/chain/versions/9/generate_stream", {"tokens": [1]}, {}, 404, "version `9`"),
        ("/v2/models/chain/versions/x/generate_stream", {"tokens": [1]}, {}, 404, "no version `x`"),
        (STREAM, {"inputs": {"token": [[1]]}}, {}, 400, "input `token` is not known"),
        (STREAM, {"inputs": {"tokens": [[0.5]]}}, {}, 400, "wrong dtype"),
        (STREAM, {"inputs": {"tokens": [[]]}}, {}, 400, "input `tokens` is empty"),
        ("/predict/cached/stream", {"inputs": {"past": [[[0.0] * 6]]}}, {}, 400, "input `token` is missing"),
        (
            "/predict/cached/stream",
            {"inputs": {"token": [[1]], "past": [[[0.0] * 5]]}},
            {},
            400,
            "`past` has the wrong",
        ),
        (STREAM, {**GOOD, "outputs": ["present"]}, {}, 400, "output `present` is not one that this stream sends"),
        (STREAM, {**GOOD, "outputs": ["next", "next"]}, {}, 400, "asked for twice"),
        (STREAM, {**GOOD, "max_steps": 41}, {}, 400, "a whole number from 1 to 40"),
        (STREAM, {**GOOD, "max_steps": 0}, {}, 400, "a whole number from 1 to 40"),
        (STREAM, {**GOOD, "max_steps": True}, {}, 400, "received true/false"),
        (STREAM, {**GOOD, "steps": 1}, {}, 400, "the key `steps` is not known"),
        (STREAM, GOOD, {"noa-max-steps": "x"}, 400, "the header `noa-max-steps` is wrong"),
        (STREAM, GOOD, {"noa-timeout-ms": "x"}, 400, "the header `noa-timeout-ms` is wrong"),
        (STREAM, GOOD, {"noa-timeout-ms": "0"}, 504, "took too long"),
        (STREAM, GOOD, {"accept": "application/json"}, 406, "answered in events"),
        (STREAM, GOOD, {"content-type": "application/octet-stream"}, 415, "content type"),
        (STREAM, b"{", {}, 400, "not valid JSON"),
        (STREAM, {"inputs": {"x": [999.0]}}, {}, 400, "`x` is not known"),
        ("/predict/counter/stream", {"inputs": {"x": [999.0]}}, {}, 400, "cannot compute these values"),
        (GENERATE, {"tokens": [1], "parameters": {"temperature": 0}}, {}, 400, "parameter `temperature` is not known"),
        (GENERATE, {"tokens": [1], "parameters": {"max_steps": 99}}, {}, 400, "a whole number from 1 to 40"),
        (GENERATE, {"tokens": [1], "parameters": 1}, {}, 400, "`parameters` is no object"),
        (GENERATE, {"tokens": [1], "id": 1}, {}, 400, "`id` is not text"),
        (GENERATE, {"tokens": [1], "text_input": "a"}, {}, 400, "input `text_input` is not known"),
    ],
)
def test_what_is_wrong_before_the_first_step_has_its_own_status(
    url: str, app: AsgiApplication, path: str, body: object, headers: dict[str, str], status: int, said: str
) -> None:
    with posted(url, path, body, headers) as response:
        text = response.read().decode()
        assert response.status == status, text
        assert said in json.loads(text)["error"]
    assert app._application.admission.in_flight == 0
    assert all(counts.active == 0 for counts in app._application.streams.counts.values())


def test_other_methods_and_an_older_http_are_refused(app: AsgiApplication, url: str) -> None:
    for path in (STREAM, GENERATE):
        answer = ask(app, "GET", path)
        assert (answer.status, "takes another method" in answer.error) == (405, True)
    body = json.dumps(GOOD).encode()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as old:
        old.sendall(b"POST %b HTTP/1.0\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (STREAM.encode(), len(body), body))
        answered = b""
        while part := old.recv(4096):
            answered += part
    assert answered.startswith(b"HTTP/1.1 400")
    assert b"a stream needs HTTP/1.1" in answered


def test_an_error_after_the_first_step_is_an_event(url: str, app: AsgiApplication) -> None:
    before = counts_of(app, "counter").ended["error"]
    events = stream_over(url, "/predict/counter/stream", {"inputs": {"x": [0.0, 97.0]}, "max_steps": 10})
    assert [event.name for event in events] == ["step"] * 3 + ["error"]
    assert events[-1].data["status"] == 400
    assert "cannot compute these values" in events[-1].data["error"]
    bare = stream_over(url, "/v2/models/counter/generate_stream", {"x": [0.0, 97.0]})
    assert [list(event.data) for event in bare] == [["model_name", "model_version", "y"]] * 3 + [["error"]]
    until_idle(app, "counter")
    assert counts_of(app, "counter").ended["error"] == before + 2


def test_a_stream_that_grows_too_large_ends_with_an_error(writers: Project) -> None:
    app, _ = build_streams(writers, chain=streaming("chain@champion", {**CHAIN, "stop": {}, "max_bytes": 1024}))
    tokens = [[1] * 120]
    answer = ask(app, "POST", STREAM, {"inputs": {"tokens": tokens}})
    events = parse(answer.body.decode())
    assert [event.name for event in events] == ["step"] * 9 + ["error"]
    assert events[-1].data["status"] == 413
    assert "too large" in events[-1].data["error"]
    answer = ask(app, "POST", STREAM, {"inputs": {"tokens": [[1] * 200]}})
    assert answer.status == 413
    app._application.close()


# --- deadlines, places, clients that go or do not read -------------------------------------------------------------

SLOW_BODY = {"inputs": {"x": [[1.0] * 384]}}
SLOW_PATH = "/predict/slow/stream"


def test_a_deadline_ends_a_stream_with_what_it_has(url: str, app: AsgiApplication) -> None:
    *steps, end = stream_over(url, SLOW_PATH, SLOW_BODY, {"noa-timeout-ms": "500"})
    assert 1 <= len(steps) < 10_000
    assert end.name == "end"
    assert (end.data["reason"], end.data["steps"]) == ("deadline", len(steps))
    until_idle(app, "slow")
    bare = {"x": [1.0] * 384, "parameters": {"timeout": 500_000}}
    assert 1 <= len(stream_over(url, "/v2/models/slow/generate_stream", bare)) < 10_000
    until_idle(app, "slow")


def test_a_client_that_goes_away_ends_its_stream(url: str, app: AsgiApplication) -> None:
    counts = counts_of(app, "slow")
    gone = counts.ended["gone"]
    with posted(url, SLOW_PATH, SLOW_BODY) as response:
        assert [next_event(response).id for _ in range(2)] == ["1", "2"]
        assert counts.active == 1
        assert ask(app, "GET", "/status").json["endpoints"]["slow"]["streams"]["active"] == 1  # type: ignore[index]
    until_idle(app, "slow")
    steps = counts.steps
    assert counts.ended["gone"] == gone + 1
    assert ask(app, "GET", "/v2/health/live").status == 200
    assert counts.steps == steps


def test_a_client_that_goes_away_before_its_first_step_is_not_computed_for(url: str, app: AsgiApplication) -> None:
    counts = counts_of(app, "slow")
    steps, ended = counts.steps, dict(counts.ended)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(SLOW_BODY).encode()
    with posted(url, SLOW_PATH, SLOW_BODY) as first:  # the model is busy with another one
        next_event(first)
        with socket.create_connection((host, int(port)), timeout=20) as short:
            short.sendall(
                b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (SLOW_PATH.encode(), len(body))
            )
            wait_until(lambda: counts.active == 2)
            short.sendall(body)
        wait_until(lambda: counts.active == 1)
    until_idle(app, "slow")
    assert counts.steps > steps
    assert counts.ended["gone"] == ended["gone"] + 1  # of the first; the other had no step that was sent


def test_more_streams_than_allowed_are_refused_until_one_ends(url: str, app: AsgiApplication) -> None:
    refused = counts_of(app, "slow").refused
    with posted(url, SLOW_PATH, SLOW_BODY) as one, posted(url, SLOW_PATH, SLOW_BODY) as two:
        next_event(one)
        next_event(two)
        with posted(url, SLOW_PATH, SLOW_BODY) as three:
            assert three.status == 503
            assert int(three.headers["retry-after"]) >= 1
            text = json.loads(three.read())["error"]
            assert "endpoint `slow` has as many streams as it may; expected at most 2" in text
        with posted(url, "/predict/slow", SLOW_BODY) as single:  # one answer is no stream
            assert single.status == 200
    until_idle(app, "slow")
    assert counts_of(app, "slow").refused == refused + 1
    with posted(url, SLOW_PATH, SLOW_BODY) as again:
        assert next_event(again).id == "1"
    until_idle(app, "slow")


def test_nothing_is_computed_while_a_client_does_not_read(url: str, app: AsgiApplication) -> None:
    counts = counts_of(app, "wide")
    before = counts.steps
    with posted(url, "/predict/wide/stream", {"inputs": {"x": [0.0]}, "max_steps": 3000}) as response:
        seen = [next_event(response).data["outputs"]["y"]]
        stands: list[int] = []

        def is_still() -> bool:
            stands.append(counts.steps)
            return len(stands) > 40 and stands[-1] == stands[-40]

        wait_until(is_still, what="the steps to end")
        ahead = counts.steps - before
        # What the sockets hold, of some 100 KB each, and not the 3000 that were asked for.
        assert ahead < 300
        seen += [next_event(response).data["outputs"]["y"] for _ in range(ahead + 20)]
        assert seen == [[1.0 + n] for n in range(len(seen))]
    until_idle(app, "wide")


def test_a_client_that_never_reads_is_cut_off_at_the_deadline(url: str, app: AsgiApplication) -> None:
    counts = counts_of(app, "wide")
    ended, steps = counts.ended["deadline"], counts.steps
    body = b'{"inputs": {"x": [0.0]}}'
    head = b"POST /predict/wide/stream HTTP/1.1\r\nhost: a\r\nnoa-timeout-ms: 1500\r\ncontent-length: %d\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        client.sendall(head % len(body) + body)
        wait_until(lambda: counts.steps > steps)
        until_idle(app, "wide")
        assert counts.ended["deadline"] == ended + 1
        assert 0 < counts.steps - steps < 300
        answered = b""
        with suppress(ConnectionResetError):
            while part := client.recv(1 << 20):
                answered += part
        assert answered.startswith(b"HTTP/1.1 200")
        assert not answered.endswith(b"0\r\n\r\n")


def test_a_stream_that_has_begun_waits_while_the_server_is_full(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, max_in_flight=1)
    project.publish("counter", counter_model(1e9))
    app, _ = build_streams(project, counter=streaming("counter@champion", {**COUNTER, "max_steps": 90}))
    admission = app._application.admission

    async def main() -> list[str]:
        sent: list[bytes] = []
        held = False

        async def send(message: dict[str, Any]) -> None:
            nonlocal held
            sent.append(message.get("body", b""))
            if b"id: 3\n" in sent[-1]:  # another request takes the only place, and keeps it for a while
                admission.enter()
                held = True
                asyncio.get_running_loop().call_later(0.1, admission.leave)

        async def receive() -> dict[str, Any]:
            if sent:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b'{"inputs": {"x": [0.0]}, "max_steps": 6}'}

        scope = {"type": "http", "method": "POST", "path": "/predict/counter/stream", "headers": []}
        receives = iter([await receive()])

        async def once() -> dict[str, Any]:
            found = next(receives, None)
            return found if found is not None else await asyncio.Event().wait()  # type: ignore[func-returns-value]

        await app(scope, once, send)  # type: ignore[arg-type]
        assert held
        return [event.name for event in parse(b"".join(sent).decode())]

    assert asyncio.run(main()) == ["step"] * 6 + ["end"]
    assert (admission.in_flight, admission.refused) == (0, 0)
    app._application.close()


# --- versions ------------------------------------------------------------------------------------------------------


@contextmanager
def served(project: Project, **endpoints: Any) -> Iterator[tuple[AsgiApplication, Any, str]]:
    app, follower = build_streams(project, **endpoints)
    with serving_http(app) as url:
        yield app, follower, url


def test_a_swap_in_the_middle_changes_no_stream_and_the_old_version_is_freed_after_it(project: Project) -> None:
    project.publish("counter", counter_model(1e9))
    rule = streaming("counter@champion", {**COUNTER, "emits": ["y", "row"]})
    with served(project, counter=rule) as (app, follower, url):
        body = {"inputs": {"x": [0.0]}, "max_steps": 50}
        found = app._application.endpoints["counter"].current
        assert found is not None
        old = weakref.ref(found)
        del found
        with posted(url, "/predict/counter/stream", body) as response:
            first = next_event(response)
            assert first.data["outputs"]["y"] == [1.0]
            assert response.headers["noa-version"] == "1"
            project.publish("counter", counter_model(3.0))
            follower.poll()
            now = app._application.endpoints["counter"].current
            assert now is not None
            assert now.number == 2
            del now
            events = parse(response.read().decode())
        assert [event.data["outputs"]["y"] for event in events[:-1]] == [[float(n)] for n in range(2, 51)]
        assert (events[-1].data["version"], events[-1].data["reason"]) == (1, "max_steps")
        again = stream_over(url, "/predict/counter/stream", body)
        assert (again[-1].data["version"], again[-1].data["steps"], again[-1].data["reason"]) == (2, 3, "stop")
        until_idle(app, "counter")
        gc.collect()
        wait_until(lambda: old() is None, what="the old version to be freed")
        page = ask(app, "GET", "/metrics").body.decode()
        assert total(page, "noa_stage_seconds_count", version="1", stage="run") == 50
    app._application.close()


def test_streams_of_a_moment_share_their_runs(app: AsgiApplication) -> None:
    ticks = app._application.computing.ticks
    batches, requests = ticks.batches, ticks.requests

    async def main() -> list[list[float]]:
        bodies = [json.dumps({"inputs": {"x": [-float(row)]}, "max_steps": 5}).encode() for row in range(12)]
        headers = {"content-type": "application/json"}
        answers = await asyncio.gather(*(call(app, "POST", "/predict/counter/stream", b, headers) for b in bodies))
        return [[event.data["outputs"]["y"][0] for event in parse(one.body.decode())[:-1]] for one in answers]

    found = asyncio.run(main())
    assert found == [[1.0 - row + n for n in range(5)] for row in range(12)]
    assert ticks.requests - requests == 60
    assert ticks.batches - batches <= 15


def test_streams_of_slow_models_share_their_runs_too(url: str, app: AsgiApplication) -> None:
    queue = app._application.computing.queue
    with posted(url, SLOW_PATH, SLOW_BODY) as one, posted(url, SLOW_PATH, SLOW_BODY) as two:
        next_event(one), next_event(two)
        batches, requests = queue.batches, queue.requests
        for _ in range(4):
            assert next_event(one).data == next_event(two).data
        assert queue.batches - batches < queue.requests - requests
    until_idle(app, "slow")


def test_an_arm_takes_whole_streams(project: Project) -> None:
    project.publish("counter", counter_model(1e9))
    project.publish("counter", counter_model(3.0), alias="candidate")
    arms = {"candidate": {"model": "counter@candidate", "share": 0.5}}
    rule = streaming("counter@champion", COUNTER, arms=arms, sticky="x-user")
    app, _ = build_streams(project, counter=rule)
    seen: set[tuple[str, int]] = set()
    for user in range(12):
        body = {"inputs": {"x": [0.0]}, "max_steps": 4}
        answer = ask(app, "POST", "/predict/counter/stream", body, {"x-user": str(user)})
        end = parse(answer.body.decode())[-1].data
        assert answer.headers.get("noa-arm", "") == end.get("arm", "")
        seen.add((end.get("arm", ""), end["steps"]))
    assert seen == {("", 4), ("candidate", 3)}
    page = ask(app, "GET", "/metrics").body.decode()
    counted = {arm: total(page, "noa_requests_total", route="stream", arm=arm) for arm in ("main", "candidate")}
    assert sum(counted.values()) == 12
    assert min(counted.values()) > 0
    answer = ask(app, "POST", "/v2/models/counter/versions/2/generate_stream", {"x": [0.0]})
    assert answer.headers["noa-version"] == "2"
    app._application.close()


# --- who may, and what is told -------------------------------------------------------------------------------------


def test_keys_and_quotas_hold_for_streams(tmp_path: Path, empty_state: Path) -> None:
    key = "k" * 16
    project = make_project(tmp_path, empty_state, api_keys=[key], quota_requests_per_s=0.001, quota_burst_s=2000.0)
    project.publish("counter", counter_model())
    app, _ = build_streams(project, counter=streaming("counter@champion", COUNTER))
    body = {"inputs": {"x": [0.0]}, "max_steps": 2}
    path = "/predict/counter/stream"
    assert ask(app, "POST", path, body).status == 401
    assert ask(app, "POST", path, body, {"authorization": "Bearer wrong"}).status == 401
    good = {"authorization": f"Bearer {key}"}
    assert [ask(app, "POST", path, body, good).status for _ in range(3)] == [200, 200, 429]  # a stream is one request
    assert ask(app, "GET", "/v2/models/counter/generate_stream").status == 401
    app._application.close()


def test_metrics_count_streams_and_steps(project: Project) -> None:
    project.publish("counter", counter_model())
    app, _ = build_streams(project, counter=streaming("counter@champion", COUNTER), plain=endpoint("counter@champion"))
    assert total(ask(app, "GET", "/metrics").body.decode(), "noa_streams_total") == 0
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"x": [0.0]}})
    ask(app, "POST", "/v2/models/counter/generate_stream", {"x": [0.0, -9.0], "parameters": {"max_steps": 3}})
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"x": [0.0, 98.0]}})
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"y": 1}})
    page = ask(app, "GET", "/metrics").body.decode()
    ended = {
        reason: total(page, "noa_streams_total", endpoint="counter", reason=reason) for reason in ("stop", "error")
    }
    assert ended == {"stop": 1, "error": 1}
    assert total(page, "noa_streams_total", reason="max_steps") == 1
    assert total(page, "noa_stream_steps_total", endpoint="counter") == 5 + 3 + 2
    assert total(page, "noa_stream_step_seconds_count") == 10
    assert total(page, "noa_stream_first_seconds_count") == 3
    assert total(page, "noa_streams_active") == 0
    codes = {code: total(page, "noa_requests_total", route="stream", code=code) for code in ("200", "400")}
    assert codes == {"200": 1, "400": 2}
    assert total(page, "noa_stage_seconds_count", endpoint="counter", stage="run") == 10
    assert 'endpoint="plain",worker' not in "".join(line for line in page.splitlines() if "noa_stream" in line)
    app._application.close()


class _Kept:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def write(self, rows: Any) -> int:
        self.found += rows
        return 0


def test_logs_tell_of_a_stream_once_and_the_payload_log_has_its_first_inputs_and_last_outputs(project: Project) -> None:
    project.publish("counter", counter_model())
    lines, rows = _Kept(), _Kept()
    observer = Observer(
        access_log=OffLoop[Record]("access_log", lines.write),
        payloads=OffLoop[PayloadRow]("payload_log", rows.write),
        payload_share=1.0,
    )
    app, _ = build_streams(project, observer, counter=streaming("counter@champion", COUNTER))
    app._application.start()
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"x": [0.0]}})
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"x": [0.0, 98.0]}})
    ask(app, "POST", "/predict/counter/stream", {"inputs": {"z": [0.0]}})
    app._application.close()
    told = [line_of(one) for one in lines.found]
    assert [(one["route"], one["status"], one.get("steps"), one.get("ended")) for one in told] == [
        ("stream", 200, 5, "stop"),
        ("stream", 400, 2, "error"),
        ("stream", 400, None, None),
    ]
    assert told[0]["version"] == 1
    (row,) = rows.found
    assert {name: array.tolist() for name, array in row.inputs.items()} == {"x": [0.0]}
    assert {name: array.tolist() for name, array in row.outputs.items()} == {"y": [5.0]}


def test_the_description_has_the_routes_and_their_requests_work(app: AsgiApplication) -> None:
    paths: Any = ask(app, "GET", "/openapi.json").json["paths"]
    assert "/predict/plain/stream" not in paths
    operation = paths["/predict/cached/stream"]["post"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"]["properties"]["max_steps"]["maximum"] == CACHED["max_steps"]
    assert content["schema"]["properties"]["inputs"]["anyOf"][0]["required"] == ["token"]
    example = {**content["example"], "max_steps": 2}
    assert parse(ask(app, "POST", "/predict/cached/stream", example).body.decode())[-1].name == "end"
    assert "text/event-stream" in paths["/v2/models/chain/generate_stream"]["post"]["responses"]["200"]["content"]
    page = ask(app, "GET", "/docs").body.decode()
    assert "curl -N" in page
    assert "/predict/chain/stream" in page
    config = ask(app, "GET", "/v2/models/chain/config").json
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert "model_transaction_policy" not in ask(app, "GET", "/v2/models/plain/config").json


def test_many_clients_at_once_get_each_their_own_steps(url: str, chain: onnxruntime.InferenceSession) -> None:
    prompts = [[1 + n % 7, 2 + n % 5, n % 11] for n in range(16)]

    def one(prompt: list[int]) -> list[int]:
        *steps, _ = stream_over(url, STREAM, {"inputs": {"tokens": [prompt]}, "max_steps": 8})
        return [event.data["outputs"]["next"][0][0] for event in steps]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, prompts))
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == [step["next"].item() for step in run_chain(chain, np.array([prompt]), 8)]
