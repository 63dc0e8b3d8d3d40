"""Graphs that ask for endless work: what compares or imports them ends with an error that names the setting."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, value
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError
from noa_conversion import compare_models, import_onnx_to_torch, open_model
from noa_conversion.onnx_runs import run_session
from noa_conversion.work_limits import work_limit

ENDLESS = 2**62


def endless_loop(*, gathers: bool, declared: bool = True) -> onnx.ModelProto:
    """Carry a value round and round as long as a sum is below one, which it always is."""
    outputs = [value("goes_on", TensorProto.BOOL, []), value("next", FLOAT, ["n", 4])]
    nodes = [
        helper.make_node("Mul", ["v", "zero"], ["next"]),
        helper.make_node("ReduceSum", ["next"], ["sum"], keepdims=0),
        helper.make_node("Less", ["sum", "one"], ["goes_on"]),
    ]
    if gathers:
        nodes.append(helper.make_node("Identity", ["next"], ["slice"]))
        outputs.append(value("slice", FLOAT, ["n", 4]))
    inputs = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", FLOAT, ["n", 4])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    results = [value("y", FLOAT, ["n", 4])] if declared else [onnx.ValueInfoProto(name="y")]
    results += [value("z", FLOAT, ["rounds", "n", 4])] if gathers else []
    numbers = [("most", np.asarray(ENDLESS)), ("zero", np.float32(0)), ("one", np.float32(1))]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["most", "", "x"], [r.name for r in results], body=body, name="endless")],
        "test",
        [value("x", FLOAT, ["n", 4])],
        results,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def compare_with_itself(path: Path, settings: Any) -> None:
    with open_model(path) as model:
        compare_models(model, model, settings=settings)


def test_a_loop_without_end_ends_with_the_time_of_the_comparison(tmp_path: Path, zoo: Any) -> None:
    onnx.save(endless_loop(gathers=False), tmp_path / "model.onnx")
    settings = zoo.settings.model_copy(update={"max_work_s": 1.0})
    begin = time.monotonic()
    with pytest.raises(ConversionError, match=r"not done in 1 seconds .*`conversion\.max_work_s`"):
        compare_with_itself(tmp_path / "model.onnx", settings)
    assert time.monotonic() - begin < 60
    assert not [thread for thread in threading.enumerate() if thread.name == "noa-work-limit"]


def test_a_loop_that_gathers_without_end_ends_with_its_memory(tmp_path: Path, zoo: Any) -> None:
    onnx.save(endless_loop(gathers=True), tmp_path / "model.onnx")
    settings = zoo.settings.model_copy(update={"max_work_s": 120.0, "max_work_bytes": 64 << 20})
    with pytest.raises(ConversionError, match=r"more memory than it may: 64 MiB .*`conversion\.max_work_bytes`"):
        compare_with_itself(tmp_path / "model.onnx", settings)


def test_a_loop_whose_output_is_not_declared_is_not_run_without_end(tmp_path: Path) -> None:
    proto = endless_loop(gathers=True, declared=False)
    del proto.graph.output[1:]
    for node in proto.graph.node:
        node.output[1] = "unused"
    onnx.save(proto, tmp_path / "model.onnx")
    with (
        work_limit(1.0),
        pytest.raises(ConversionError, match="not done in 1 seconds"),
        open_model(tmp_path / "model.onnx"),
    ):
        pass


def test_an_import_ends_with_its_time() -> None:
    nodes = [helper.make_node("Relu", [f"x{i}"], [f"x{i + 1}"], name=f"step{i}") for i in range(3)]
    graph = helper.make_graph(nodes, "test", [value("x0", FLOAT, [2])], [value("x3", FLOAT, [2])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with work_limit(1e-6), pytest.raises(ConversionError, match=r"not done in .*`Relu` `step0`"):
        import_onnx_to_torch(proto.SerializeToString())


def test_the_sooner_end_holds_within_another_limit() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "test", [value("x", FLOAT, [2])], [value("y", FLOAT, [2])]
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    with work_limit(1e-6), work_limit(60.0), pytest.raises(ConversionError, match="not done in 1e-06 seconds"):
        import_onnx_to_torch(data)


def test_outside_of_a_limit_nothing_watches_a_run() -> None:
    class Session:
        def run(self, *arguments: Any) -> list[int]:
            return [len(arguments), threading.active_count()]

    before = threading.active_count()
    assert run_session(Session(), ["y"], {}, where="here") == [2, before]  # pyright: ignore[reportArgumentType]  # a stand-in
    with work_limit():
        assert run_session(Session(), ["y"], {}, where="here") == [3, before + 1]  # pyright: ignore[reportArgumentType]  # a stand-in
