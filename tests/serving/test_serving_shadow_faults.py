"""Shadows that hang, and workers that are killed while one computes: real servers, whose clients notice nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from serving_kit import Project, affine_model, make_project, save_onnx, wait_until

from noa.settings import EndpointSettings
from noa.signatures import Signature, TensorSpec
from noa_serving import ServerProcess, start_server

pytestmark = pytest.mark.bentoml

LONG = 4e9  # turns of the loop: hours


def counting_model(folder: Path) -> Mapping[str, np.ndarray]:
    """As `affine_model(2.0)`, but for a loop of as many turns as the largest input says."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="total", dtype="float32", shape=("batch",)),
        ),
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["state"], ["next"]), helper.make_node("Identity", ["condition"], ["go_on"])],
        "turn",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "scale"], ["doubled"]),
        helper.make_node("Loop", ["turns", "", "doubled"], ["y"], body=body),
        helper.make_node("ReduceSum", ["y", "axes"], ["total"], keepdims=0),
    ]
    save_onnx(folder, signature, nodes, {"scale": np.array(2.0, np.float32), "axes": np.array([1], np.int64)})
    return {"x": np.ones((2, 4), np.float32)}


def _start(tmp_path: Path, empty_state: Path, **serving: object) -> tuple[Project, EndpointSettings]:
    project = make_project(tmp_path, empty_state, **serving)
    project.publish("digits", affine_model(2.0))
    project.publish("digits", counting_model, alias="candidate")
    arm = {"model": "digits@candidate", "mode": "shadow", "share": 1.0}
    return project, EndpointSettings.model_validate({"model": "digits@champion", "arms": {"candidate": arm}})


def _ask(url: str, value: float) -> float:
    """Return how long the right answer took, seconds."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    started = time.monotonic()
    body = json.dumps({"inputs": {"x": [[value, 0.0, 0.0, 0.0]]}})
    connection.request("POST", "/predict/digits", body, {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["outputs"]["total"] == [2 * value]
    return time.monotonic() - started


def _status(url: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", "/status")
        return json.loads(connection.getresponse().read())
    except OSError:  # the worker that was killed is not back yet
        return {}
    finally:
        connection.close()


def _shadow(url: str) -> dict[str, Any]:
    endpoints = _status(url).get("endpoints", {})
    return endpoints.get("digits", {}).get("shadows", {}).get("candidate", {"state": "unknown"})


def _wait_comparing(url: str) -> None:
    wait_until(lambda: _shadow(url)["state"] == "comparing", timeout_s=60, what="the shadow to be loaded")


def test_a_shadow_that_hangs_is_given_up_and_clients_and_the_end_notice_nothing(
    tmp_path: Path, empty_state: Path
) -> None:
    project, rule = _start(tmp_path, empty_state, timeout_s=3.0, threads=1)
    process: ServerProcess
    with start_server(project.settings, endpoints={"digits": rule}, log_file=tmp_path / "log") as process:
        url = process.wait_ready().url
        _wait_comparing(url)
        _ask(url, 1.0)
        _ask(url, LONG)
        times = [_ask(url, 1.0) for _ in range(20)]
        wait_until(lambda: _shadow(url)["state"] == "decided", timeout_s=60, what="the verdict")
        verdict = _shadow(url)["verdict"]
        assert verdict["decision"] == "roll back"
        assert verdict["reason"] == "it hung: it did not compute a request within 3 s"
        times += [_ask(url, 1.0) for _ in range(20)]
        assert sorted(times)[len(times) // 2] < 0.5
        assert process.stop() == 0


def test_workers_that_are_killed_while_a_shadow_computes_come_back_and_compute_it_no_more(
    tmp_path: Path, empty_state: Path
) -> None:
    project, rule = _start(tmp_path, empty_state, timeout_s=300.0, threads=1)
    with start_server(project.settings, endpoints={"digits": rule}, log_file=tmp_path / "log") as process:
        url = process.wait_ready().url
        mark = process.command.request.folder / "shadow-0.mark"
        for _ in range(2):
            _wait_comparing(url)
            pid = int(_status(url)["worker"])
            _ask(url, LONG)
            wait_until(lambda: mark.read_bytes()[:2] != b"\0\0", what="the shadow to compute")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: _status(url).get("worker", pid) != pid, timeout_s=60, what="a new worker")
        wait_until(lambda: _shadow(url)["state"] == "decided", timeout_s=60, what="the verdict")
        assert _shadow(url)["verdict"]["reason"] == "2 workers ended while it computed"
        _ask(url, LONG)
        time.sleep(0.3)
        assert mark.read_bytes()[:2] == b"\0\0"
