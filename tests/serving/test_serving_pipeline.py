"""Pipelines: several endpoints behind one name, computed by the versions of one moment."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from observe_kit import total
from onnx import helper
from pydantic import ValidationError
from serving_kit import Project, affine_model, ask, make_project, mixed_model, open_pipe, save_onnx, wait_until

from noa.errors import SignatureError
from noa.settings import EndpointSettings, PipelineSettings, Settings, mean_of
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry
from noa_serving import Client, start_server
from noa_serving._application import Application
from noa_serving._asgi import AsgiApplication
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._pipeline import Pipeline, make_pipelines
from noa_serving._pipeline_graph import Graph

CHAIN = {
    "steps": [
        {"name": "one", "endpoint": "double"},
        {"name": "two", "endpoint": "triple", "inputs": {"x": "one.y"}},
    ],
    "outputs": {"y": "two.y", "total": "one.total"},
}
MEAN = {
    "steps": [{"name": "one", "endpoint": "double"}, {"name": "two", "endpoint": "triple"}],
    "outputs": {"y": "mean(one.y, two.y)"},
}
ENDPOINTS = {"double": "double@champion", "triple": "triple@champion"}
ROW = {"inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]}}


@pytest.fixture
def project(tmp_path: Path, empty_state: Path) -> Project:
    project = make_project(tmp_path, empty_state)
    project.publish("double", affine_model(2.0))
    project.publish("triple", affine_model(3.0))
    return project


def build(
    project: Project, *, polled: bool = True, **pipelines: object
) -> tuple[AsgiApplication, Follower, dict[str, Pipeline]]:
    endpoints = [Endpoint(name, EndpointSettings(model=model), threads=1) for name, model in ENDPOINTS.items()]
    rules = {name: PipelineSettings.model_validate(one) for name, one in pipelines.items()}
    made = make_pipelines(rules, endpoints, crew=endpoints[0].crew)
    follower = Follower(
        endpoints, lambda: Registry.open(project.settings.registry), poll_interval_s=0.05, pipelines=made
    )
    if polled:
        follower.poll()
    app = AsgiApplication(Application(project.settings.serving, [*endpoints, *made], follower))
    return app, follower, {one.name: one for one in made}


def test_a_chain_and_a_mean_compute_what_their_parts_compute(project: Project) -> None:
    app, _, made = build(project, chain=CHAIN, mean=MEAN)
    chain = ask(app, "POST", "/predict/chain", ROW)
    assert chain.json["outputs"] == {"y": [[6.0, 12.0, 18.0, 24.0]], "total": [20.0]}
    assert ask(app, "POST", "/predict/mean", ROW).json["outputs"] == {"y": [[2.5, 5.0, 7.5, 10.0]]}
    assert (chain.headers["noa-model"], chain.headers["noa-version"]) == ("chain", "1")
    assert chain.headers["noa-steps"] == "double/1, triple/1"
    assert chain.headers["noa-digest"] != ask(app, "POST", "/predict/mean", ROW).headers["noa-digest"]
    chain_now = made["chain"].current
    assert chain_now is not None
    assert chain_now.batching.refusal is None
    assert chain_now.runs_inline(1)


def test_the_protocol_knows_it_as_an_ensemble(project: Project) -> None:
    app, _, _ = build(project, chain=CHAIN)
    metadata = ask(app, "GET", "/v2/models/chain").json
    assert (metadata["platform"], metadata["versions"]) == ("ensemble", ["1"])
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [one["name"] for one in metadata["outputs"]] == ["y", "total"]  # type: ignore[attr-defined]
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 0, 0, 0, 1]}
    answer = ask(app, "POST", "/v2/models/chain/versions/1/infer", {"inputs": [tensor], "outputs": [{"name": "y"}]})
    assert answer.json["outputs"][0]["data"] == [6, 12, 18, 24, 0, 0, 0, 6]  # type: ignore[index]
    assert ask(app, "GET", "/v2/models/chain/ready").status == 200
    statistics = ask(app, "GET", "/v2/models/chain/stats").json["model_stats"][0]  # type: ignore[index]
    assert statistics["inference_stats"]["success"]["count"] == 1
    page = ask(app, "GET", "/metrics").body.decode()
    assert total(page, "noa_stage_seconds_count", endpoint="chain", stage="run") == 1
    assert "/predict/chain" in ask(app, "GET", "/openapi.json").json["paths"]  # type: ignore[operator]


def test_both_ways_in_batch_and_give_each_item_its_own_answer(project: Project) -> None:
    app, _, made = build(project, chain=CHAIN)
    bodies = [json.dumps({"inputs": {"x": [[float(row), 0.0, 0.0, 0.0]]}}).encode() for row in range(8)]

    async def pipelined() -> bytes:
        protocol, pipe = open_pipe(app)
        head = "POST /predict/chain HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
        protocol.data_received(b"".join(head.format(len(body)).encode() + body for body in bodies))
        for _ in range(3):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return pipe.written

    now = made["chain"].current
    assert now is not None
    runs = now.statistics.run.count
    written = asyncio.run(pipelined())
    assert now.statistics.run.count < runs + 8
    for row in range(8):
        assert f'"y":[[{6.0 * row},0.0,0.0,0.0]]'.encode() in written


def test_a_swap_of_a_part_swaps_the_pipeline_and_no_request_mixes_moments(project: Project) -> None:
    app, follower, made = build(project, chain=CHAIN)
    first = ask(app, "POST", "/predict/chain", ROW)
    before = made["chain"].current
    project.publish("double", affine_model(10.0))
    follower.poll()
    second = ask(app, "POST", "/predict/chain", ROW)
    assert second.json["outputs"] == {"y": [[30.0, 60.0, 90.0, 120.0]], "total": [100.0]}
    assert second.headers["noa-steps"] == "double/2, triple/1"
    assert first.headers["noa-digest"] != second.headers["noa-digest"]
    assert made["chain"].swaps == 1
    assert before is not None
    assert before.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[6.0] * 4]  # who began with it ends with it
    project.promote("double", 1)
    follower.poll()
    assert ask(app, "POST", "/predict/chain", ROW).headers["noa-digest"] == first.headers["noa-digest"]


def test_parts_that_do_not_fit_any_more_are_refused_and_the_old_ones_go_on(project: Project) -> None:
    app, follower, made = build(project, chain=CHAIN)
    project.publish("triple", affine_model(3.0, features=5))
    follower.poll()
    answer = ask(app, "POST", "/predict/chain", ROW)
    assert (answer.status, answer.headers["noa-steps"]) == (200, "double/1, triple/1")
    row = ask(app, "GET", "/status").json["endpoints"]["chain"]  # type: ignore[index]
    assert "step `two`, input `x` does not fit" in row["refused"]["reason"]
    assert (made["chain"].refusals, made["chain"].is_ready) == (1, True)
    follower.poll()
    assert made["chain"].refusals == 1  # not tried at every look
    project.promote("triple", 1)
    follower.poll()
    assert made["chain"].failure is None


def test_it_is_ready_when_its_parts_are(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state)
    project.publish("double", affine_model(2.0))
    app, follower, made = build(project, chain=CHAIN)
    assert ask(app, "GET", "/v2/health/ready").status == 503
    answer = ask(app, "POST", "/predict/chain", ROW)
    assert answer.status == 503
    assert "its endpoint `triple` is not ready" in answer.error
    assert ask(app, "POST", "/predict/double", ROW).status == 200
    project.publish("triple", affine_model(3.0))
    follower.poll()
    assert made["chain"].is_ready
    assert ask(app, "POST", "/predict/chain", ROW).status == 200


def test_bad_input_is_refused_by_name(project: Project) -> None:
    app, _, _ = build(project, chain=CHAIN)
    answer = ask(app, "POST", "/predict/chain", {"inputs": {"x": [[1.0, 2.0]]}})
    assert answer.status == 400
    assert "`x`" in answer.error
    assert ask(app, "POST", "/v2/models/chain/versions/2/infer", {"inputs": []}).status == 404


# --- the graph -----------------------------------------------------------------------------------------------------


def graph_of(project: Project, table: object) -> Graph:
    settings = PipelineSettings.model_validate(table)
    found = {}
    with project.registry() as registry:
        for step in settings.steps:
            one = Endpoint(step.endpoint, EndpointSettings(model=f"{step.endpoint}@champion"), threads=1)
            one.follow(registry)
            assert one.current is not None, one.failure
            found[step.name] = one.current
    return Graph(settings, found)


def any_rows(folder: Path) -> dict[str, np.ndarray]:
    """`a` (n, m) and `b` (n, k): outputs `joined` (n, j), `rows` (r,)."""
    signature = Signature(
        inputs=(
            TensorSpec(name="a", dtype="float32", shape=("n", "m")),
            TensorSpec(name="b", dtype="float32", shape=("n", "k")),
        ),
        outputs=(TensorSpec(name="joined", dtype="float32", shape=("n", "j")),),
    )
    save_onnx(folder, signature, [helper.make_node("Concat", ["a", "b"], ["joined"], axis=1)], {})
    return {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 2), np.float32)}


def test_free_axes_are_one_where_they_are_one(project: Project) -> None:
    project.publish("join", any_rows)
    steps = [
        {"name": "one", "endpoint": "join"},
        {"name": "two", "endpoint": "join", "inputs": {"a": "one.joined", "b": "c"}},
    ]
    graph = graph_of(project, {"steps": steps, "outputs": {"all": "two.joined"}})
    assert [spec.describe() for spec in graph.signature.inputs] == [
        "float32(batch, m)",
        "float32(batch, k)",
        "float32(batch, two.k)",
    ]
    rows = {name: np.full((2, size), size, np.float32) for name, size in (("a", 1), ("b", 2), ("c", 3))}
    assert graph.signature.validate(rows) == 2
    assert graph.run(rows)["all"].tolist() == [[1, 2, 2, 3, 3, 3]] * 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({"x": "one.nothing"}, {"y": "two.y"}, "there is no tensor `one.nothing`"),
        ({"x": "one.total"}, {"y": "two.y"}, "step `two`, input `x` does not fit"),
        ({"z": "one.y"}, {"y": "two.y"}, "has no input `z`"),
        ({"x": "one.y"}, {"y": "two.nothing"}, "there is no tensor `two.nothing`"),
        ({"x": "one.y"}, {"y": "mean(one.y, two.total)"}, "a mean needs floating-point tensors of one shape"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    project: Project, inputs: dict[str, str], outputs: dict[str, str], said: str
) -> None:
    steps = [{"name": "one", "endpoint": "double"}, {"name": "two", "endpoint": "triple", "inputs": inputs}]
    with pytest.raises(SignatureError) as caught:
        graph_of(project, {"steps": steps, "outputs": outputs})
    assert said in str(caught.value)


def test_whole_numbers_have_no_mean(project: Project) -> None:
    project.publish("mixed", mixed_model)
    steps = [{"name": "one", "endpoint": "mixed"}, {"name": "two", "endpoint": "mixed"}]
    with pytest.raises(SignatureError, match="a mean needs floating-point"):
        graph_of(project, {"steps": steps, "outputs": {"flag": "mean(one.not_flag, two.not_flag)"}})
    graph = graph_of(project, {"steps": steps, "outputs": {"half": "mean(one.half, two.half)"}})
    taken = {"pixels": np.full((1, 2, 2), 255, np.uint8), "index": np.array([1]), "flag": np.array([True])}
    half = graph.run(taken)["half"]
    assert (half.dtype, half.tolist()) == (np.float16, [[[255.0, 255.0], [255.0, 255.0]]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": {}}, "at least 1 item"),
        ({"steps": []}, "at least 1 item"),
        ({"outputs": {"y": "y"}}, "write `step.output`"),
        ({"outputs": {"y": "mean(one.y, three.y)"}}, "write `step.output`"),
        ({"steps": [{"name": "one", "endpoint": "double", "inputs": {"x": "one.y"}}]}, "not computed before it"),
        ({"steps": [{"name": "one", "endpoint": "double"}, {"name": "one", "endpoint": "triple"}]}, "two steps"),
        (
            {"steps": [{"name": "one", "endpoint": "quadruple"}], "outputs": {"y": "one.y"}},
            "`quadruple`",
        ),
    ],
)
def test_settings_that_are_no_graph_are_refused(change: dict[str, object], said: str) -> None:
    endpoints = {name: {"model": model} for name, model in ENDPOINTS.items()}
    Settings.model_validate({"endpoints": endpoints, "pipelines": {"chain": CHAIN}})
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"endpoints": endpoints, "pipelines": {"chain": {**CHAIN, **change}}})
    with pytest.raises(ValidationError, match="name of an endpoint"):
        Settings.model_validate({"endpoints": endpoints, "pipelines": {"double": CHAIN}})


def test_a_mean_is_read() -> None:
    assert mean_of("a.y") == ["a.y"]
    assert mean_of("mean(a.y , b.y)") == ["a.y", "b.y"]


# --- a real server -------------------------------------------------------------------------------------------------


@pytest.mark.bentoml
def test_a_pipeline_is_served_over_all_protocols_and_swapped_under_load(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state, workers=2, grpc_port=0)
    project.publish("double", affine_model(2.0))
    project.publish("triple", affine_model(3.0))
    endpoints = {name: EndpointSettings(model=model) for name, model in ENDPOINTS.items()}
    chain = PipelineSettings.model_validate(CHAIN)
    settings = project.settings.model_copy(update={"endpoints": endpoints, "pipelines": {"chain": chain}})
    expected = {"double/1, triple/1": 6.0, "double/2, triple/1": 30.0}
    x = np.ones((1, 4), np.float32)
    with start_server(settings) as process:
        ready = process.wait_ready()
        stop, wrong, seen = threading.Event(), list[object](), set[float]()

        def load() -> None:
            with Client(ready.url) as client:
                while not stop.is_set():
                    value = float(client.predict("chain", {"x": x}).outputs["y"][0, 0])
                    seen.add(value)
                    if value not in expected.values():
                        wrong.append(value)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for one in threads:
            one.start()
        project.publish("double", affine_model(10.0))
        wait_until(lambda: 30.0 in seen, what="an answer of the new version")
        stop.set()
        for one in threads:
            one.join(20)
        assert not wrong
        assert seen == {6.0, 30.0}
        import tritonclient.grpc as triton

        stub = triton.InferenceServerClient(f"127.0.0.1:{ready.grpc_port}")
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(x)
        assert stub.infer("chain", [tensor]).as_numpy("y").tolist() == [[30.0] * 4]  # type: ignore[union-attr]
        stub.close()
