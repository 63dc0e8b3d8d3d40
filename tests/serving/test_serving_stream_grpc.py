"""Streams over gRPC: the public Triton client as it is, several streams on one call, and clients that go away."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_kit import serving_grpc
from observe_kit import total
from serving_kit import Project, affine_model, ask, endpoint, make_project, slow_model, wait_until
from stream_kit import (
    CHAIN,
    COUNTER,
    SLOW,
    WIDE,
    build_streams,
    chain_model,
    counter_model,
    run_chain,
    session_of,
    streaming,
    wide_model,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from noa_serving._asgi import AsgiApplication

FINAL = "triton_final_response"
PROMPT = np.array([[3, 1, 4]], dtype=np.int64)
Found = tuple[Any, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> AsgiApplication:
    project = make_project(tmp_path_factory.mktemp("grpc_streams"), empty_state)
    project.publish("chain", chain_model())
    project.publish("counter", counter_model())
    project.publish("wide", wide_model)
    project.publish("slow", lambda folder: slow_model(folder, steps=60))
    project.publish("plain", affine_model(2.0))
    found, _ = build_streams(
        project,
        chain=streaming("chain@champion", CHAIN),
        counter=streaming("counter@champion", COUNTER),
        wide=streaming("wide@champion", WIDE),
        slow=streaming("slow@champion", {**SLOW, "max_streams": 2}),
        plain=endpoint("plain@champion"),
    )
    return found


@pytest.fixture(scope="module")
def address(app: AsgiApplication) -> Iterator[str]:
    with serving_grpc(app) as one:
        yield one


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session_of(chain_model(), tmp_path_factory.mktemp("chain"))


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


class Streaming:
    """The public client with one call open, and what came."""

    def __init__(self, address: str, **more: Any) -> None:
        self.client = triton.InferenceServerClient(address)
        self.found: queue.Queue[Found] = queue.Queue()
        self.client.start_stream(lambda result, error: self.found.put((result, error)), **more)

    def ask(self, model: str, inputs: list[triton.InferInput], **more: Any) -> None:
        self.client.async_stream_infer(model, inputs, **more)

    def take(self) -> Found:
        return self.found.get(timeout=20)

    def until_final(self) -> list[Any]:
        """Return the answers to one request, its last one included."""
        results: list[Any] = []
        while not results or not results[-1].get_response().parameters[FINAL].bool_param:
            result, error = self.take()
            assert error is None, error
            results.append(result)
        return results

    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def until_idle(app: AsgiApplication, name: str) -> None:
    counts = app._application.streams.counts[name]
    wait_until(lambda: counts.active == 0 and app._application.admission.in_flight == 0)


def test_the_public_client_gets_an_answer_for_each_step(address: str, chain: onnxruntime.InferenceSession) -> None:
    wanted = run_chain(chain, PROMPT, CHAIN["max_steps"])
    with Streaming(address) as one:
        one.ask("chain", [tensor("tokens", PROMPT, "INT64")], request_id="7")
        results = one.until_final()
    assert len(results) == len(wanted) > 2
    for result, outputs in zip(results, wanted, strict=True):
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == ("7", "chain", "1")
        assert result.as_numpy("next").tobytes() == outputs["next"].tobytes()
        assert result.as_numpy("score").tobytes() == outputs["score"].tobytes()


def test_an_empty_final_answer_comes_where_it_is_asked_for(address: str) -> None:
    with Streaming(address) as one:
        inputs = [tensor("x", np.array([0.0], np.float32), "FP32")]
        one.ask("counter", inputs, enable_empty_final_response=True, parameters={"max_steps": 3}, request_id="a")
        *steps, last = one.until_final()
    assert [step.as_numpy("y").tolist() for step in steps] == [[1.0], [2.0], [3.0]]
    response = last.get_response()
    assert (len(response.outputs), response.id, response.model_name) == (0, "a", "counter")
    assert (response.parameters["steps"].int64_param, response.parameters["reason"].string_param) == (3, "max_steps")


def test_models_without_streams_answer_each_request_once_beside_streams(address: str) -> None:
    rows = np.array([[1, 2, 3, 4]], np.float32)
    with Streaming(address) as one:
        one.ask("slow", [tensor("x", np.ones((1, 384), np.float32), "FP32")], request_id="slow")
        for number in range(3):
            one.ask("plain", [tensor("x", rows * number, "FP32")], request_id=f"plain-{number}")
        found: list[Any] = []
        while len([one for one in found if one.get_response().id.startswith("plain")]) < 3:
            result, error = one.take()
            assert error is None
            found.append(result)
        plain = [result for result in found if result.get_response().id.startswith("plain")]
        assert [result.get_response().id for result in plain] == ["plain-0", "plain-1", "plain-2"]
        assert [result.as_numpy("y")[0, 0] for result in plain] == [0.0, 2.0, 4.0]
        assert all(result.get_response().parameters[FINAL].bool_param for result in plain)


def test_streams_of_one_call_run_beside_each_other(address: str, app: AsgiApplication) -> None:
    with Streaming(address) as one:
        for name in ("a", "b"):
            inputs = [tensor("x", np.ones((1, 384), np.float32), "FP32")]
            one.ask("slow", inputs, request_id=name, parameters={"max_steps": 4})
        ids = [one.take()[0].get_response().id for _ in range(8)]
    assert sorted(ids) == ["a"] * 4 + ["b"] * 4
    assert set(ids[:4]) == {"a", "b"}
    until_idle(app, "slow")


def test_what_is_refused_is_told_and_the_call_goes_on(address: str, app: AsgiApplication) -> None:
    x = tensor("x", np.array([0.0], np.float32), "FP32")
    good = tensor("tokens", PROMPT, "INT64")
    with Streaming(address) as one:
        asked = [
            ("chain", [x], {}, "input `x` is not known"),
            ("chain", [good], {"parameters": {"max_steps": 41}}, "a whole number from 1 to 40"),
            ("chain", [good], {"model_version": "9"}, "version `9`"),
            ("nobody", [x], {}, "no model `nobody`"),
            (
                "chain",
                [good],
                {"outputs": [triton.InferRequestedOutput("tokens")]},
                "is not one that this stream sends",
            ),
        ]
        for model, inputs, more, said in asked:
            one.ask(model, inputs, **more)
            result, error = one.take()
            assert result is None
            assert said in str(error), model
        one.ask("counter", [tensor("x", np.array([0.0, 98.0], np.float32), "FP32")])
        assert one.take()[0].as_numpy("y").tolist() == [1.0, 99.0]
        one.take()
        assert "cannot compute these values" in str(one.take()[1])
        one.ask("counter", [x])
        assert len(one.until_final()) == 5
    until_idle(app, "counter")


def test_typed_contents_are_answered_typed_and_errors_bear_the_id(address: str) -> None:
    def requests() -> Iterator[Any]:
        for value in (0.0, 500.0):
            message = service_pb2.ModelInferRequest(model_name="counter", id=str(value))
            message.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(value)
            message.parameters["max_steps"].int64_param = 2
            yield message
        message.id = "flag"
        message.parameters["triton_enable_empty_final_response"].int64_param = 1
        yield message

    with grpc.insecure_channel(address) as channel:
        found = list(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), timeout=20))
    answers = [one for one in found if not one.error_message]  # streams of one call run beside each other
    refused, odd = sorted((one for one in found if one.error_message), key=lambda one: one.infer_response.id)
    steps = [list(one.infer_response.outputs[0].contents.fp32_contents) for one in answers]
    assert steps == [[1.0], [2.0]]
    assert (refused.infer_response.id, refused.infer_response.parameters[FINAL].bool_param) == ("500.0", True)
    assert "cannot compute" in refused.error_message
    assert (odd.infer_response.id, "is no flag" in odd.error_message) == ("flag", True)


def test_the_public_async_client_streams(address: str, chain: onnxruntime.InferenceSession) -> None:
    wanted = [step["next"].item() for step in run_chain(chain, PROMPT, 6)]

    async def main() -> list[int]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "chain", "inputs": [tensor("tokens", PROMPT, "INT64")], "parameters": {"max_steps": 6}}

        async with triton_aio.InferenceServerClient(address) as client:
            found: list[int] = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append(result.as_numpy("next").item())
            return found

    assert asyncio.run(main()) == wanted


def test_a_deadline_ends_a_stream_with_an_error(address: str, app: AsgiApplication) -> None:
    with Streaming(address) as one:
        one.ask("slow", [tensor("x", np.ones((1, 384), np.float32), "FP32")], timeout=300_000)
        steps = 0
        while (found := one.take())[1] is None:
            steps += 1
        assert steps >= 1
        assert "took too long" in str(found[1])
    until_idle(app, "slow")
    assert app._application.streams.counts["slow"].ended["deadline"] >= 1


def test_a_client_that_goes_away_ends_its_streams(address: str, app: AsgiApplication) -> None:
    counts = app._application.streams.counts["slow"]
    with Streaming(address) as one:
        for _ in range(2):
            one.ask("slow", [tensor("x", np.ones((1, 384), np.float32), "FP32")])
        one.take()
        one.take()
        assert counts.active == 2
        one.ask("slow", [tensor("x", np.ones((1, 384), np.float32), "FP32")])
        while (found := one.take())[1] is None:
            pass
        assert "as many streams as it may" in str(found[1])
    until_idle(app, "slow")
    steps = counts.steps
    with Streaming(address) as two:
        two.ask("counter", [tensor("x", np.array([0.0], np.float32), "FP32")])
        two.until_final()
    assert counts.steps == steps


def test_nothing_is_computed_while_a_client_does_not_read(address: str, app: AsgiApplication) -> None:
    counts = app._application.streams.counts["wide"]
    message = service_pb2.ModelInferRequest(model_name="wide", raw_input_contents=[np.zeros(1, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.parameters["max_steps"].int64_param = 2000
    with grpc.insecure_channel(address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([message]))
        next(call)
        stands: list[int] = []

        def is_still() -> bool:
            stands.append(counts.steps)
            return len(stands) > 40 and stands[-1] == stands[-40]

        wait_until(is_still, what="the steps to end")
        assert counts.steps < 500
        call.cancel()
    until_idle(app, "wide")


def test_metrics_and_the_configuration_tell_of_streams(address: str, app: AsgiApplication) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.get_model_config("chain").config.model_transaction_policy.decoupled
        assert not client.get_model_config("plain").config.model_transaction_policy.decoupled
        # One answer can be had as well, as a step alone.
        one = client.infer("chain", [tensor("tokens", PROMPT, "INT64")])
        assert one.as_numpy("next").shape == (1, 1)
    with Streaming(address) as stream:
        stream.ask("chain", [tensor("tokens", PROMPT, "INT64")])
        stream.until_final()
    until_idle(app, "chain")
    page = ask(app, "GET", "/metrics").body.decode()
    assert total(page, "noa_requests_total", endpoint="chain", route="grpc_stream") > 0
    assert total(page, "noa_stream_steps_total", endpoint="chain") > 0


def test_keys_come_as_metadata(tmp_path: Path, empty_state: Path) -> None:
    key = "k" * 16
    project: Project = make_project(tmp_path, empty_state, api_keys=[key])
    project.publish("counter", counter_model())
    app, _ = build_streams(project, counter=streaming("counter@champion", COUNTER))
    x = tensor("x", np.array([0.0], np.float32), "FP32")
    with serving_grpc(app) as address:
        with Streaming(address) as one:
            one.ask("counter", [x])
            assert "asks for a key" in str(one.take()[1])
        with Streaming(address, headers={"authorization": f"Bearer {key}"}) as two:
            two.ask("counter", [x])
            assert len(two.until_final()) == 5
    app._application.close()
