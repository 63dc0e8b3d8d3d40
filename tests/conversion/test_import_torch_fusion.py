"""Layers that exporters take apart come back in one piece, and only where the numbers are the same."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, model, value
from onnx import NodeProto, helper

from noa_conversion import import_onnx_to_torch


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def number(given: float) -> np.ndarray:
    return np.asarray(given, np.float32)


def constant(name: str, given: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(given))


def calls_and_difference(
    nodes: list[NodeProto], weights: dict[str, np.ndarray], *inputs: np.ndarray
) -> tuple[list[str], float]:
    """Return the operators of the imported graph, and how far it is from onnxruntime."""
    declared = [value(f"x{i}", FLOAT, ["batch", *array.shape[1:]]) for i, array in enumerate(inputs)]
    data = model(nodes, declared, [value("y", FLOAT, ["batch", *[None] * (inputs[0].ndim - 1)])], weights)
    module = import_onnx_to_torch(data.SerializeToString()).module
    (expected,) = onnxruntime.InferenceSession(data.SerializeToString()).run(
        None, {f"x{i}": array for i, array in enumerate(inputs)}
    )
    with torch.no_grad():
        given = module(*(torch.from_numpy(array) for array in inputs)).numpy()
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return calls, float(np.max(np.abs(given - expected)))


def gelu(order: str) -> list[NodeProto]:
    constants = [
        constant("root", number(math.sqrt(2))), constant("one", number(1.0)), constant("half", number(0.5))
    ]  # fmt: skip
    inner = [
        helper.make_node("Div", ["x0", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["plus"]),
    ]
    ends = {
        "half last": [("x0", "plus", "product"), ("product", "half", "y")],
        "half first": [("x0", "half", "product"), ("product", "plus", "y")],
        "half inside": [("plus", "half", "product"), ("x0", "product", "y")],
    }
    return [*constants, *inner, *(helper.make_node("Mul", [a, b], [c]) for a, b, c in ends[order])]


@pytest.mark.parametrize("order", ["half last", "half first", "half inside"])
def test_gelu_is_one_operator(order: str) -> None:
    calls, difference = calls_and_difference(gelu(order), {}, draw(3, 8))
    assert calls == ["aten.gelu.default"]
    assert difference < 1e-6


def test_what_only_looks_like_gelu_stays_as_it_is() -> None:
    nodes = gelu("half last")
    nodes[2] = constant("half", number(0.25))
    calls, difference = calls_and_difference(nodes, {}, draw(3, 8))
    assert "aten.gelu.default" not in calls
    assert difference < 1e-6


def test_a_sigmoid_gate_on_itself_is_silu() -> None:
    nodes = [helper.make_node("Sigmoid", ["x0"], ["gate"]), helper.make_node("Mul", ["gate", "x0"], ["y"])]
    calls, difference = calls_and_difference(nodes, {}, draw(3, 8))
    assert calls == ["aten.silu.default"]
    assert difference < 1e-6


@pytest.mark.parametrize("is_turned", [False, True])
def test_a_product_and_a_bias_are_a_linear_layer(is_turned: bool) -> None:
    weight = draw(8, 5)
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x0", "turned" if is_turned else "weight"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["y"]),
    ]
    weights = {"weight": np.ascontiguousarray(weight.T) if is_turned else weight, "bias": draw(5)}
    calls, difference = calls_and_difference(nodes[0 if is_turned else 1 :], weights, draw(2, 3, 8))
    assert "aten.linear.default" in calls
    assert "aten.add.Tensor" not in calls
    assert difference < 1e-5


def test_a_sum_that_is_no_bias_is_added() -> None:
    nodes = [
        helper.make_node("MatMul", ["x0", "weight"], ["product"]),
        helper.make_node("Add", ["product", "places"], ["y"]),
    ]
    calls, difference = calls_and_difference(nodes, {"weight": draw(8, 5), "places": draw(3, 5)}, draw(2, 3, 8))
    assert calls.count("aten.add.Tensor") == 1
    assert difference < 1e-5


def norm(epsilon: float) -> list[NodeProto]:
    return [
        constant("epsilon", number(epsilon)),
        constant("two", number(2.0)),
        helper.make_node("ReduceMean", ["x0"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x0", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["root"]),
        helper.make_node("Div", ["centred", "root"], ["normal"]),
        helper.make_node("Mul", ["normal", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ]


def test_a_layer_normalisation_of_older_opsets_is_one_operator() -> None:
    weights = {"scale": draw(8), "bias": draw(9)[:8]}
    data = model(
        norm(1e-5), [value("x0", FLOAT, ["batch", 4, 8])], [value("y", FLOAT, ["batch", 4, 8])], weights, opset=13
    )
    module = import_onnx_to_torch(data.SerializeToString()).module
    assert [str(n.target) for n in module.graph.nodes if n.op == "call_function"] == ["aten.layer_norm.default"]
    x = draw(3, 4, 8)
    (expected,) = onnxruntime.InferenceSession(data.SerializeToString()).run(None, {"x0": x})
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-5, atol=1e-5)


def attention(scale: float, *, mask: bool) -> list[NodeProto]:
    scores = "masked" if mask else "scores"
    return [
        constant("scale", number(scale)),
        helper.make_node("Transpose", ["x1"], ["keys"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x0", "keys"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scores"]),
        *([helper.make_node("Add", ["scores", "x3"], ["masked"])] if mask else []),
        helper.make_node("Softmax", [scores], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x2"], ["y"]),
    ]


@pytest.mark.parametrize("has_mask", [False, True])
def test_attention_is_one_operator(has_mask: bool) -> None:
    inputs = [draw(2, 3, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 6)]
    mask = [np.where(draw(2, 1, 5, 7) > 1, -1e9, 0).astype(np.float32)] if has_mask else []
    calls, difference = calls_and_difference(attention(0.3, mask=has_mask), {}, *inputs, *mask)
    masked = ["aten.eq.Scalar", "aten.all.dim", "aten.masked_fill.Scalar"] if has_mask else []
    assert sorted(call for call in calls if not call.startswith("aten.sym_size")) == sorted(
        ["aten.scaled_dot_product_attention.default", *masked]
    )
    assert difference < 1e-5


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 1, 1, 7)])
def test_a_row_that_is_masked_as_a_whole_is_no_number_as_in_the_file(shape: tuple[int, ...]) -> None:
    inputs = [draw(2, 3, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 6)]
    mask = np.zeros(shape, np.float32)
    mask[0, 0, 0], mask[1, 0, 0, 2] = -np.inf, -np.inf
    declared = [value(f"x{i}", FLOAT, array.shape) for i, array in enumerate([*inputs, mask])]
    data = model(attention(0.3, mask=True), declared, [value("y", FLOAT, [2, 3, 5, 6])], {}).SerializeToString()
    (expected,) = onnxruntime.InferenceSession(data).run(
        None, {f"x{i}": array for i, array in enumerate([*inputs, mask])}
    )
    assert np.isnan(expected[0, :, 0]).all()
    given = import_onnx_to_torch(data).module(*(torch.from_numpy(array) for array in [*inputs, mask]))
    np.testing.assert_allclose(given.detach().numpy(), expected, atol=1e-5, equal_nan=True)


def test_attention_whose_probabilities_are_wanted_too_is_written_out() -> None:
    nodes = [*attention(0.3, mask=False)[:-1], helper.make_node("MatMul", ["shares", "x2"], ["out"])]
    nodes.append(helper.make_node("ReduceSum", ["shares"], ["total"], keepdims=1, noop_with_empty_axes=0))
    nodes.append(helper.make_node("Add", ["out", "total"], ["y"]))
    calls, difference = calls_and_difference(nodes, {}, draw(2, 3, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 6))
    assert "aten.softmax.int" in calls
    assert difference < 1e-4


def test_constants_are_computed_at_import() -> None:
    nodes = [
        constant("a", number(4.0)),
        helper.make_node("Sqrt", ["a"], ["root"]),
        helper.make_node("Div", ["x0", "root"], ["y"]),
    ]
    calls, difference = calls_and_difference(nodes, {}, draw(3, 8))
    assert calls == ["aten.div.Tensor"]
    assert difference < 1e-7


def test_a_product_of_constants_is_computed_at_run_time_where_it_is_much_work() -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((64, 70_000)).astype(np.float32) / 256
    nodes = [
        constant("a", left),
        constant("b", np.ascontiguousarray(left.T)),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["most"], keepdims=0),
        helper.make_node("Add", ["x0", "most"], ["y"]),
    ]
    calls, difference = calls_and_difference(nodes, {}, draw(3, 4))
    assert calls[-2:] == ["aten.amax.default", "aten.add.Tensor"]  # the product is before them
    assert difference < 1e-2


def test_what_is_folded_has_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [constant("c0", number(2.0))]
    nodes += [helper.make_node("Tanh", [f"c{i}"], [f"c{i + 1}"]) for i in range(6)]
    nodes.append(helper.make_node("Mul", ["x0", "c6"], ["y"]))
    assert calls_and_difference(nodes, {}, draw(3))[0] == ["aten.mul.Tensor"]
    monkeypatch.setattr("noa_conversion.importers.torch.fusion.constants._MAX_KEPT_BYTES", 8)
    calls, difference = calls_and_difference(nodes, {}, draw(3))
    assert calls == ["aten.tanh.default"] * 3 + ["aten.mul.Tensor"]
    assert difference < 1e-6
