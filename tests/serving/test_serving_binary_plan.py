"""Headers of raw tensors that come again: what is remembered gives the same answers and the same refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
from serving_kit import Answer, Project, affine_model, ask, build_app, mixed_model

from noa_serving._asgi import AsgiApplication
from noa_serving._binary_plan import MAX_PLANS
from noa_serving._generation import Generation

FOUR = np.array([[1, 2, 3, 4]], dtype=np.float32)


@pytest.fixture
def fresh(project: Project) -> AsgiApplication:
    project.publish("digits", affine_model(2.0))
    project.publish("mixed", mixed_model)
    return build_app(project.settings, digits="digits@champion", mixed="mixed@champion")


def generation(app: AsgiApplication, name: str = "digits") -> Generation:
    return app._application.endpoints[name].require()


def infer(app: AsgiApplication, array: np.ndarray, *, pad: int = 0, **table: object) -> Answer:
    tensor = {"name": "x", "shape": list(array.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [tensor], **table}).encode() + b" " * pad
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return ask(app, "POST", "/v2/models/digits/infer", head + array.tobytes(), headers)


def outputs(answer: Answer) -> Mapping[str, list[float]]:
    assert answer.status == 200, answer.body
    rows = answer.json["outputs"]
    assert isinstance(rows, list)
    return {row["name"]: row["data"] for row in rows}


def test_a_header_that_comes_again_is_read_with_the_bytes_of_now(fresh: AsgiApplication) -> None:
    for pad in range(5):  # the tensor begins at any place in a word
        for factor in (1, 3, 5):
            assert outputs(infer(fresh, FOUR * factor, pad=pad))["y"] == [2.0 * factor * n for n in (1, 2, 3, 4)]
    assert len(generation(fresh).binary_plans) == 5


def test_a_body_of_another_size_is_refused_as_if_nothing_were_known(fresh: AsgiApplication) -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answers = {
        size: [ask(fresh, "POST", "/v2/models/digits/infer", head + b"\0" * size, headers) for _ in range(2)]
        for size in (12, 16, 20)
    }
    refused = ask(fresh, "POST", "/v2/models/digits/infer", head + b"\0" * 12, headers)
    assert [one.status for pair in answers.values() for one in pair] == [400, 400, 200, 200, 400, 400]
    assert (refused.status, refused.body) == (400, answers[12][0].body)


def test_what_the_header_asks_for_is_kept_apart(fresh: AsgiApplication) -> None:
    for _ in range(2):
        assert set(outputs(infer(fresh, FOUR, outputs=[{"name": "y"}]))) == {"y"}
        assert set(outputs(infer(fresh, FOUR, outputs=[{"name": "total"}]))) == {"total"}
        assert infer(fresh, FOUR, parameters={"timeout": 60_000_000}).status == 200
        assert infer(fresh, FOUR, id="7").json["id"] == "7"
    assert len(generation(fresh).binary_plans) == 3


def test_few_and_small_headers_are_kept(fresh: AsgiApplication) -> None:
    for pad in range(MAX_PLANS + 3):
        infer(fresh, FOUR, pad=pad)
    assert len(generation(fresh).binary_plans) == 3
    infer(fresh, FOUR, pad=5000)
    assert len(generation(fresh).binary_plans) == 3


def test_values_that_must_be_looked_at_are_looked_at_each_time(fresh: AsgiApplication) -> None:
    shapes = {"pixels": ("UINT8", [1, 2, 2], 4), "index": ("INT64", [1], 8), "flag": ("BOOL", [1], 1)}
    rows = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, (datatype, shape, size) in shapes.items()
    ]
    head = json.dumps({"inputs": rows}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    statuses = [
        ask(fresh, "POST", "/v2/models/mixed/infer", head + b"\0" * 12 + flag, headers).status
        for flag in (b"\1", b"\2", b"\1", b"\2")
    ]
    assert statuses == [200, 400, 200, 400]
    assert generation(fresh, "mixed").binary_plans == {}
