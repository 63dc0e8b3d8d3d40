"""Graphs that ask for endless work: what compares or imports them ends with an error that names the setting."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_kit import FLOAT, value
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import compare_models, import_onnx_to_torch, open_model
from noa_conversion.bisection.search import NamedValue, compare_inside
from noa_conversion.bounded_runs import bound_runs
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


class _SlowInside:
    """Two models' inner values, all equal: a search looks at each of them, a chunk after the other."""

    order = tuple(NamedValue(name=f"v{i}", node=f"n{i}", kind="Relu") for i in range(1000))

    def __init__(self) -> None:
        self.looks = 0

    def compute(self, inputs: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        del inputs
        self.looks += 1
        time.sleep(0.05)
        return {name: np.zeros(1, np.float32) for name in names}


def test_the_search_for_the_node_that_differs_ends_with_the_time_of_the_comparison() -> None:
    inside = _SlowInside()
    with work_limit(0.12), pytest.raises(ConversionError, match=r"not done in 0\.12 seconds.*first node that differs"):
        compare_inside(inside, inside, {}, settings=ConversionSettings(), how="")
    assert 0 < inside.looks <= 4  # two models a chunk; the chunk under way is finished


def test_outside_of_a_limit_nothing_watches_a_run() -> None:
    class Session:
        def run(self, *arguments: Any) -> list[int]:
            return [len(arguments), threading.active_count()]

    before = threading.active_count()
    assert run_session(Session(), ["y"], {}, where="here") == [2, before]  # pyright: ignore[reportArgumentType]  # a stand-in
    with work_limit():
        assert run_session(Session(), ["y"], {}, where="here") == [3, before + 1]  # pyright: ignore[reportArgumentType]  # a stand-in


class _Endless:
    """A run that comes back to Python now and then, as PyTorch's do between two operators."""

    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1,)),),
    )

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        del inputs
        while True:
            time.sleep(0.01)


def test_a_run_that_cannot_be_told_to_stop_is_not_waited_for() -> None:
    model = bound_runs(_Endless(), format="torch", where="`mine`")
    with work_limit(0.3), pytest.raises(ConversionError, match=r"not done in 0.3 seconds.*`mine`.*max_work_s"):
        model.run({})
    deadline = time.monotonic() + 20
    while any(thread.name == "noa-bounded-run" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "it ends before its next operator"
        time.sleep(0.05)


def test_what_a_bounded_run_raises_goes_through() -> None:
    class Failing(_Endless):
        def run(self, inputs: Any) -> dict[str, np.ndarray]:
            raise InvalidInputError("wrong")

    with work_limit(20), pytest.raises(InvalidInputError, match="wrong"):
        bound_runs(Failing(), format="jax", where="here").run({})


ENDLESS_IN_JAX = """
import sys
from pathlib import Path
from jax import lax
import jax.numpy as jnp
from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, compare_models, open_model, save_native

def endless(params, x):
    return lax.while_loop(lambda c: jnp.isfinite(c[0, 0]), lambda c: c * 0, x)

spec = dict(dtype="float32", shape=("n", 4))
signature = Signature(inputs=(TensorSpec(name="x", **spec),), outputs=(TensorSpec(name="y", **spec),))
folder = Path(sys.argv[1]) / "jax"
save_native(JaxModel(apply=endless, params={}, signature=signature), folder)
try:
    with open_model(folder) as model:
        compare_models(model, model, settings=ConversionSettings(max_work_s=2.0))
except ConversionError as error:
    print(error)
"""


@pytest.mark.jax
def test_a_loop_without_end_in_jax_ends_the_comparison_and_holds_up_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS_IN_JAX, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the model was not done in 2 seconds" in done.stdout
    assert "conversion.max_work_s" in done.stdout
