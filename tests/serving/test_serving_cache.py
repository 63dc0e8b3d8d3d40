"""Kept answers: the same inputs and version give the same outputs without a run, and what is kept is bounded."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observe_kit import total
from serving_kit import Project, affine_model, ask, call, make_project, open_pipe, wait_until

from noa.settings import CacheSettings, EndpointSettings, load_settings
from noa_registry import Registry
from noa_serving import Client, start_server
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._response_cache import MAX_INPUT_BYTES, CacheCounts, ResponseCache, hash_inputs

ROWS = {"inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]}}


def make_cache(max_bytes: int = 1 << 20, max_age_s: float | None = None) -> tuple[ResponseCache, list[float]]:
    now = [0.0]
    settings = CacheSettings(max_bytes=max_bytes, max_age_s=max_age_s)
    return ResponseCache(settings, CacheCounts(), clock=lambda: now[0]), now


def arrays(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 900)), max_size=80))
def test_it_is_the_newest_that_fit(asked: list[tuple[int, int]]) -> None:
    """Against a plain model: a dictionary in the order of use, cut to the bytes that were allowed."""
    cache, _ = make_cache(max_bytes=4096)
    model: OrderedDict[int, int] = OrderedDict()
    for item, size in asked:
        key, found = cache.find(arrays(item))
        assert key is not None
        assert (found is not None) == (item in model)
        if found is not None:
            model.move_to_end(item)
            assert found["y"].nbytes == model[item]
            assert set(found["y"].tolist()) <= {item}
            continue
        cache.keep(key, {"y": np.full(size, item, np.uint8)})
        model[item] = size
        while sum(400 + one for one in model.values()) > 4096:
            model.popitem(last=False)
        assert cache.num_bytes == sum(400 + one for one in model.values())
        assert len(cache) == len(model)
    assert cache.own.hits + cache.own.misses == len(asked)


ARRAY = hnp.arrays(
    st.sampled_from([np.float32, np.int32, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)


@given(ARRAY, ARRAY)
def test_other_values_shapes_dtypes_and_names_have_other_hashes(one: np.ndarray, other: np.ndarray) -> None:
    is_same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    assert (hash_inputs({"x": one}) == hash_inputs({"x": other})) == is_same
    assert hash_inputs({"x": one}) != hash_inputs({"z": one})
    both = {"x": one, "z": other}
    assert hash_inputs(both) == hash_inputs(dict(reversed(both.items())))
    assert hash_inputs({"x": np.asarray(one, order="F")}) == hash_inputs({"x": one})


def test_texts_are_told_apart_where_they_end() -> None:
    assert hash_inputs({"x": np.array(["ab", "c"], object)}) != hash_inputs({"x": np.array(["a", "bc"], object)})


def test_an_answer_is_not_older_than_allowed() -> None:
    cache, now = make_cache(max_age_s=10.0)
    key, _ = cache.find(arrays(1))
    assert key is not None
    cache.keep(key, arrays(2))
    now[0] = 10.0
    assert cache.find(arrays(1))[1] is not None
    now[0] = 10.1
    assert cache.find(arrays(1))[1] is None
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_is_too_large_is_neither_looked_for_nor_kept() -> None:
    cache, _ = make_cache(max_bytes=4096)
    assert cache.find({"x": np.zeros(MAX_INPUT_BYTES + 1, np.uint8)}) == (None, None)
    assert cache.own.passed == 1
    key, _ = cache.find(arrays(1))
    assert key is not None
    cache.keep(key, {"y": np.zeros(4096, np.uint8)})
    assert len(cache) == 0


def test_what_is_kept_is_a_copy_that_nobody_can_change() -> None:
    cache, _ = make_cache()
    batch = np.arange(8, dtype=np.float32)
    key, _ = cache.find(arrays(1))
    assert key is not None
    cache.keep(key, {"y": batch[:2]})
    batch[:] = 0
    found = cache.find(arrays(1))[1]
    assert found is not None
    assert found["y"].tolist() == [0.0, 1.0]
    assert found["y"].base is None
    with pytest.raises(ValueError, match="read-only"):
        found["y"][0] = 5


# --- behind an endpoint --------------------------------------------------------------------------------------------


def build_app(project: Project, *, batching: bool = True) -> tuple[AsgiApplication, Endpoint, Follower]:
    settings = EndpointSettings(model="digits@champion", cache=CacheSettings())
    one = Endpoint("digits", settings, threads=1)
    follower = Follower([one], lambda: Registry.open(project.settings.registry), poll_interval_s=0.05)
    follower.poll()
    serving = project.settings.serving.model_copy(update={"batching": batching})
    return AsgiApplication(Application(serving, [one], follower)), one, follower


@pytest.fixture
def project(tmp_path: Path, empty_state: Path) -> Project:
    project = make_project(tmp_path, empty_state)
    project.publish("digits", affine_model(2.0))
    return project


def test_the_same_inputs_are_computed_once_whatever_they_come_as(project: Project) -> None:
    app, one, _ = build_app(project)
    assert one.current is not None
    first = ask(app, "POST", "/predict/digits", ROWS)
    runs = one.current.statistics.run.count
    again = ask(app, "POST", "/predict/digits", ROWS)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    other_route = ask(app, "POST", "/v2/models/digits/infer", {"id": "7", "inputs": [tensor]})
    fewer = ask(app, "POST", "/predict/digits", {**ROWS, "outputs": ["total"]})
    assert one.current.statistics.run.count == runs
    assert "noa-cache" not in first.headers
    for answer in (again, other_route, fewer):
        assert (answer.status, answer.headers["noa-cache"], answer.headers["noa-version"]) == (200, "hit", "1")
    assert again.body == first.body
    assert other_route.json["id"] == "7"
    assert fewer.json["outputs"] == {"total": [20.0]}
    other = ask(app, "POST", "/predict/digits", {"inputs": {"x": [[1.0, 2.0, 3.0, 5.0]]}})
    assert other.json["outputs"] == {"y": [[2.0, 4.0, 6.0, 10.0]], "total": [22.0]}
    assert (one.cache_counts.hits, one.cache_counts.misses) == (3, 2)
    page = ask(app, "GET", "/metrics").body.decode()
    assert total(page, "noa_cache_requests_total", endpoint="digits", result="hit") == 3
    assert total(page, "noa_cache_bytes", endpoint="digits") > 0
    statistics = json.loads(ask(app, "GET", "/v2/models/digits/stats").body)["model_stats"][0]["inference_stats"]
    assert (statistics["cache_hit"]["count"], statistics["cache_miss"]["count"]) == (3, 2)
    assert app._application.admission.in_flight == 0


def test_a_swap_begins_with_nothing_kept(project: Project) -> None:
    app, one, follower = build_app(project)
    for _ in range(2):
        assert ask(app, "POST", "/predict/digits", ROWS).json["outputs"]["total"] == [20.0]  # type: ignore[index]
    project.publish("digits", affine_model(3.0))
    follower.poll()
    swapped = ask(app, "POST", "/predict/digits", ROWS)
    assert "noa-cache" not in swapped.headers
    assert swapped.json["outputs"]["total"] == [30.0]  # type: ignore[index]
    assert ask(app, "POST", "/predict/digits", ROWS).headers["noa-cache"] == "hit"
    assert one.cache_counts.hits == 2


def test_a_refused_request_is_not_kept(project: Project) -> None:
    app, one, _ = build_app(project)
    for _ in range(2):
        assert ask(app, "POST", "/predict/digits", {"inputs": {"x": [[1.0]]}}).status == 400
    assert (one.cache_counts.hits, one.cache_counts.misses) == (0, 0)


def test_both_ways_in_and_batches_keep_each_items_own_answer(project: Project) -> None:
    app, one, _ = build_app(project)
    bodies = [json.dumps({"inputs": {"x": [[float(row), 0.0, 0.0, 0.0]]}}).encode() for row in range(6)]

    async def pipelined() -> bytes:
        protocol, pipe = open_pipe(app)
        head = (
            "POST /predict/digits HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
        )
        protocol.data_received(b"".join(head.format(len(body)).encode() + body for body in bodies))
        for _ in range(3):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return pipe.written

    first = asyncio.run(pipelined())
    assert first.count(b"HTTP/1.1 200") == 6
    assert b"noa-cache" not in first
    second = asyncio.run(pipelined())
    assert second.count(b"noa-cache: hit\r\n") == 6
    for row, body in enumerate(bodies):
        answer = asyncio.run(call(app, "POST", "/predict/digits", body, {"content-type": "application/json"}))
        assert answer.headers["noa-cache"] == "hit"
        assert answer.json["outputs"]["total"] == [2.0 * row]  # type: ignore[index]
        assert answer.body in first
        assert answer.body in second
    assert (one.cache_counts.misses, one.cache_counts.hits) == (6, 12)


def test_a_project_that_asks_for_it_has_it(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text('[endpoints.digits]\nmodel = "digits@champion"\ncache = { max_age_s = 5.0 }\n')
    settings = load_settings(tmp_path, outside=()).settings.endpoints["digits"]
    assert settings.cache == CacheSettings(max_age_s=5.0)
    assert EndpointSettings(model="digits@champion").cache is None


@pytest.mark.bentoml
def test_a_real_server_keeps_answers_over_http_and_grpc(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, grpc_port=0)
    project.publish("digits", affine_model(2.0))
    rule = EndpointSettings(model="digits@champion", cache=CacheSettings())
    with start_server(project.settings, endpoints={"digits": rule}) as process:
        ready = process.wait_ready()
        x = np.array([[1, 2, 3, 4]], np.float32)
        with Client(ready.url) as client:
            answers = [client.predict("digits", {"x": x}).outputs["total"].tolist() for _ in range(3)]
        assert answers == [[20.0]] * 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tritonclient.grpc as triton
        stub = triton.InferenceServerClient(f"127.0.0.1:{ready.grpc_port}")
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(x)
        assert stub.infer("digits", [tensor]).as_numpy("total").tolist() == [20.0]
        stub.close()

        def counted() -> bool:
            with Client(ready.url) as client:
                hits = client.status()["endpoints"]["digits"]["cache"]["hits"]  # type: ignore[index]
            return hits == 3

        wait_until(counted, what="three hits")
