"""Reading ONNX files into plain values: what the file stores, by unique names, in an order that can be walked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from onnx_reference_kit import compute

from noa_conversion.onnx_graph.dtypes import TEXT, code_of, dtype_of
from noa_conversion.onnx_graph.reading import read_model

HEADER = '<ir_version: 10, opset_import: ["": 21, "own": 1]>'
X = np.arange(4, dtype=np.float32).reshape(2, 2) - 1


def text(body: str, *functions: str, inputs: str = "float[2, 2] x", weights: str = "") -> onnx.ModelProto:
    held = f"<{weights}>" if weights else ""
    return parser.parse_model(f"{HEADER} g ({inputs}) => (float[2, 2] y) {held} {{ {body} }} {' '.join(functions)}")


def with_tensor(value: onnx.TensorProto) -> onnx.ModelProto:
    model = text("y = Relu (x)")
    model.graph.initializer.append(value)
    return model


def read_tensor(value: onnx.TensorProto) -> np.ndarray:
    return read_model(with_tensor(value).SerializeToString()).graph.initialisers[value.name]


TYPES = [(code, True) for code in range(1, 27) if code != 8]
TYPES += [(code, False) for code in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 21, 22)]


@pytest.mark.parametrize(("code", "raw"), TYPES)
def test_every_element_type_is_read(code: int, raw: bool) -> None:
    dtype = dtype_of(code)
    assert dtype is not None and code_of(dtype) == code
    numbers = np.asarray([1, 2, 1, 1, 0 if dtype.itemsize > 1 else 1], np.float64).astype(dtype)
    value = numpy_helper.from_array(numbers, "w")
    assert value.data_type == code
    if not raw:
        value = helper.make_tensor("w", code, [5], numbers)
    array = read_tensor(value)
    assert array.dtype == dtype and not array.flags.writeable
    np.testing.assert_array_equal(array, numbers)


def test_texts_are_read() -> None:
    array = read_tensor(helper.make_tensor("w", onnx.TensorProto.STRING, [2], ["grün", ""]))
    assert array.dtype == TEXT and list(array) == ["grün", ""]


def test_large_tensors_are_views_of_the_bytes() -> None:
    numbers = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)
    model = with_tensor(numpy_helper.from_array(numbers, "w"))
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(numbers + 1, "c"))
    model.graph.node.insert(0, constant)
    data = model.SerializeToString()
    read = read_model(data)
    held: Any = read.graph.nodes[0].attributes["value"]
    whole = np.frombuffer(data, np.uint8)
    for array, expected in ((read.graph.initialisers["w"], numbers), (held, numbers + 1)):
        np.testing.assert_array_equal(array, expected)
        assert np.shares_memory(array, whole)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4, np.int64])
def test_tensors_in_other_files_are_read(dtype: Any, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 5, (7, 33)).astype(dtype)
    value = numpy_helper.from_array(numbers, "w")
    data = value.raw_data
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\1" * 12 + data)
    value.ClearField("raw_data")
    value.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (("location", "sub/w.bin"), ("offset", "12"), ("length", str(len(data)))):
        value.external_data.add(key=key, value=entry)
    onnx.save(with_tensor(value), tmp_path / "model.onnx")
    np.testing.assert_array_equal(read_model(tmp_path / "model.onnx").graph.initialisers["w"], numbers)


def test_sparse_tensors_become_dense() -> None:
    model = text("y = Add (x, w)")
    values = numpy_helper.from_array(np.asarray([5, 7], np.float32), "w")
    for indices in ([[0, 1], [1, 0]], [1, 2]):
        del model.graph.sparse_initializer[:]
        stored = numpy_helper.from_array(np.asarray(indices, np.int64), "i")
        model.graph.sparse_initializer.add(values=values, indices=stored, dims=[2, 2])
        array = read_model(model.SerializeToString()).graph.initialisers["w"]
        np.testing.assert_array_equal(array, [[0, 5], [7, 0]])


def test_an_initialiser_that_is_also_an_input_is_an_initialiser() -> None:
    model = text("y = Add (x, w)", inputs="float[2, 2] x, float[2, 2] w", weights="float[2, 2] w = {1, 2, 3, 4}")
    graph = read_model(model.SerializeToString()).graph
    assert [value.name for value in graph.inputs] == ["x"] and list(graph.initialisers) == ["w"]


def test_nodes_come_in_an_order_that_can_be_walked() -> None:
    steps = [f"h{i} = Add (h{i - 1}, x)" for i in range(1, 40)]
    random.Random(0).shuffle(steps)
    model = read_model(text(f"{' '.join(steps)} h0 = Relu (x) y = Relu (h39)").SerializeToString())
    made = {"x"}
    for node in model.graph.nodes:
        assert made.issuperset(node.inputs)
        made.update(node.outputs)
    np.testing.assert_array_equal(compute(model, {"x": X})[0], np.maximum(np.maximum(X, 0) + 39 * X, 0))


def test_functions_are_inlined_with_their_attributes_defaults_and_optional_inputs() -> None:
    outer = (
        '<domain: "own", opset_import: ["": 21, "own": 1]> outer <alpha> (a, b) => (c, d) '
        "{ c = own.inner <k: float = @alpha> (a) d = own.inner (c) }"
    )
    inner = (
        '<domain: "own", opset_import: ["": 21]> inner <k: float = 3.0> (a) => (b) '
        "{ s = Constant <value_float: float = @k> () b = Mul (a, s) }"
    )
    model = read_model(text("p, y = own.outer <alpha = 2.0> (x)", outer, inner).SerializeToString())
    assert {node.domain for node in model.graph.nodes} == {""}
    assert len({node.name for node in model.graph.nodes}) == len(model.graph.nodes)
    np.testing.assert_array_equal(compute(model, {"x": X})[0], X * 6)


def test_a_function_may_return_its_input_and_clamp_a_missing_one() -> None:
    function = '<domain: "own", opset_import: ["": 21]> f (a, low) => (a, b) { b = Clip (a, low) }'
    model = read_model(text("p, q = own.f (x) y = Sub (p, q)", function).SerializeToString())
    np.testing.assert_array_equal(compute(model, {"x": X})[0], X - X)


def test_names_are_unique_over_graphs_within_graphs() -> None:
    body = (
        "h = Relu (x) y = If (flag) <"
        "then_branch = a () => (float[2, 2] r) <float[1] w = {2}> { h = Mul (x, w) r = Add (h, h) }, "
        "else_branch = b () => (float[2, 2] r) <float[1] w = {3}> { r = Mul (h, w) } >"
    )
    model = read_model(text(body, inputs="float[2, 2] x, bool flag").SerializeToString())
    names = [name for graph in model.graph.walk() for node in graph.nodes for name in node.outputs]
    assert len(set(names)) == len(names)
    weights = model.graph.all_initialisers()
    assert sorted(float(array[0]) for array in weights.values()) == [2, 3] and "w" in weights
    for flag in (True, False):
        for bind in ((), ("flag",)):
            result = compute(model, {"x": X, "flag": np.asarray(flag)}, bind=bind)[0]
            np.testing.assert_array_equal(result, X * 4 if flag else np.maximum(X, 0) * 3)


def test_what_a_file_declares_is_kept() -> None:
    model = parser.parse_model(
        f"{HEADER} g (float[N, ?, 3] x, seq(int64[2]) s, optional(float) o) => (float[N] y) "
        "{ h = Relu (x) y = ReduceSum <keepdims = 0> (h) }"
    )
    graph = read_model(model.SerializeToString()).graph
    x, sequence, optional = graph.inputs
    assert (x.kind, x.dtype, x.shape) == ("tensor", np.dtype(np.float32), ("N", None, 3))
    assert (sequence.kind, sequence.dtype) == ("sequence", np.dtype(np.int64))
    assert optional.kind == "optional"
    assert graph.outputs[0].shape == ("N",)


def test_the_standard_domain_has_one_name() -> None:
    model = text("y = Relu (x)")
    model.graph.node[0].domain = "ai.onnx"
    read = read_model(model.SerializeToString())
    assert read.graph.nodes[0].domain == "" and read.opset == 21 and read.graph.nodes[0].version == 21
