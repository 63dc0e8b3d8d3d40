"""The interpreter: what is known is computed here, the rest by handlers or expansions; all else is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx_reference_kit import ReferenceTarget, Tensor, compute, only, without

from noa.errors import ConversionError
from noa_conversion.importers.interpreter import run_graph
from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handlers
from noa_conversion.onnx_graph.model import OnnxModel
from noa_conversion.onnx_graph.reading import read_model

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def model_of(body: str, *, inputs: str = "float[2, 3] x", weights: str = "", opset: int = 21) -> OnnxModel:
    header = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1, "strange": 4]>'
    held = f"<{weights}>" if weights else ""
    made: onnx.ModelProto = parser.parse_model(f"{header} g ({inputs}) => (float[N] y) {held} {{ {body} }}")
    return read_model(made.SerializeToString())


def test_shape_arithmetic_needs_no_handler() -> None:
    model = model_of(
        "s = Shape (x) k = Constant <value_ints = [-1]> () c = Concat <axis = 0> (k) p = ReduceProd <keepdims = 0> (s) "
        "u = Unsqueeze (p, z) y = Reshape (x, u)",
        weights="int64[1] z = {0}",
    )
    assert compute(model, {"x": X}, handlers=only("Reshape"))[0].shape == (6,)


def test_a_choice_that_is_decided_takes_one_branch_only() -> None:
    model = model_of(
        "n = Size (x) f = Greater (n, five) y = If (f) <then_branch = a () => (float[2, 3] p) { p = Relu (x) }, "
        "else_branch = b () => (float[2, 3] q) { q = Celu (x) } >",
        weights="int64 five = {5}",
    )
    np.testing.assert_array_equal(compute(model, {"x": X}, handlers=only("Relu"))[0], np.maximum(X, 0))


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = Softplus (x)", 21),
        ("y = Clip (x, low)", 21),
        ("y = Gelu (x)", 21),
        ('y = Gelu <approximate = "tanh"> (x)', 21),
        ("y = LayerNormalization (x, scale)", 21),
        ("y = LogSoftmax (x)", 13),
        ("y = HardSwish (x)", 14),
        ("y = ReduceSumSquare <keepdims = 0> (x, axes)", 18),
        ("y = Elu <alpha = 0.5> (x)", 21),
        ("y = MeanVarianceNormalization <axes = [0]> (x)", 13),
        ("y = GreaterOrEqual (x, low)", 16),
    ],
)
def test_an_operator_without_handler_is_expanded_through_its_schema(body: str, opset: int) -> None:
    weights = "float low = {-0.5}, float[3] scale = {1, 2, 3}, int64[1] axes = {1}"
    model = model_of(body, weights=weights, opset=opset)
    kind = model.graph.nodes[0].kind
    expected = compute(model, {"x": X})[0]
    received = compute(model, {"x": X}, handlers=without(kind))[0]
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
    assert received.dtype == expected.dtype


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ("y = Unheard (x)", {"op": "Unheard", "domain": "", "opset": 21}),
        ("y = strange.Wish (x)", {"op": "Wish", "domain": "strange", "opset": 4}),
        ("y = com.microsoft.Sampling (x)", {"op": "Sampling", "domain": "com.microsoft", "opset": 1}),
    ],
)
def test_an_unknown_operator_is_refused_by_name(body: str, facts: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="no handler") as caught:
        compute(model_of(body), {"x": X})
    assert facts.items() <= caught.value.facts.items()
    assert f"opset {facts['opset']}" in str(caught.value) and caught.value.facts["node"]


def test_a_runtime_value_where_numbers_are_needed_names_the_input_to_bind() -> None:
    handlers = Handlers("test")

    @handlers.register("Reshape")
    def reshape(op: Op, data: Any, shape: Any) -> Any:
        return Tensor(op.tensor(data).array.reshape(op.integers(shape, "shape")))

    model = model_of("y = Reshape (x, s)", inputs="float[2, 3] x, int64[1] s")
    feed = {"x": X, "s": np.asarray([6])}
    with pytest.raises(ConversionError, match=r'bind=.*"s"'):
        compute(model, feed, handlers=handlers)
    assert compute(model, feed, bind=["s"], handlers=handlers)[0].shape == (6,)


def test_what_a_handler_raises_is_a_refusal_that_names_the_node() -> None:
    handlers = Handlers("test")

    @handlers.register("Relu", tensors=True)
    def relu(op: Op, x: Any) -> Any:
        raise RuntimeError("shapes do not fit\nand a long story")

    with pytest.raises(ConversionError, match="shapes do not fit") as caught:
        compute(model_of("y = Relu (x)"), {"x": X}, handlers=handlers)
    assert isinstance(caught.value.__cause__, RuntimeError) and "long story" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Add (x)", "at least 2 inputs and gets 1"),
        ("y = Add (x, x, x)", "at most 2 inputs and gets 3"),
        ("y, z = Add (x, x)", "2 outputs are asked for and 1 are computed"),
    ],
)
def test_a_wrong_number_of_inputs_or_outputs_is_refused(body: str, reason: str) -> None:
    handlers = Handlers("test")

    @handlers.register("Add", tensors=True)
    def add(op: Op, a: Any, b: Any) -> Any:
        return a

    with pytest.raises(ConversionError, match=reason):
        compute(model_of(body), {"x": X}, handlers=handlers)


def test_weights_take_the_place_of_initialisers_in_all_graphs() -> None:
    model = model_of(
        "h = Mul (x, w) y = If (f) <then_branch = a () => (float[2, 3] p) { p = Add (h, w) }, "
        "else_branch = b () => (float[2, 3] q) <float[1] v = {9}> { q = Add (h, v) } >",
        inputs="float[2, 3] x, bool f",
        weights="float[1] w = {2}",
    )
    weights = {"w": Tensor(np.asarray([5], np.float32)), "v": Tensor(np.asarray([7], np.float32))}
    for flag, expected in ((True, X * 5 + 5), (False, X * 5 + 7)):
        inputs = [Tensor(X), Tensor(np.asarray(flag))]
        result = run_graph(model.graph, ReferenceTarget(), inputs, weights=weights)[0]
        np.testing.assert_array_equal(result.array, expected)


def test_a_watcher_sees_every_node_of_the_file_with_its_results() -> None:
    model = model_of("a = Relu (x) b = Gelu (a) y = Neg (b)")
    seen: list[tuple[str, int]] = []
    run_graph(
        model.graph,
        ReferenceTarget(without("Gelu")),
        [Tensor(X)],
        watch=lambda node, results: seen.append((node.kind, len(results))),
    )
    assert seen == [("Relu", 1), ("Gelu", 1), ("Neg", 1)]


def test_sequences_and_optionals_are_python_values() -> None:
    model = model_of(
        "s = SequenceConstruct (x, x) t = SequenceInsert (s, z) n = SequenceLength (t) e = SequenceErase (t, k) "
        "o = Optional (e) h = OptionalHasElement (o) g = OptionalGetElement (o) c = ConcatFromSequence <axis = 0> (g) "
        "p = SplitToSequence <axis = 1, keepdims = 0> (c) y = SequenceAt (p, m)",
        inputs="float[2, 3] x, float[1, 3] z",
        weights="int64 k = {0}, int64 m = {-1}",
    )
    z = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(compute(model, {"x": X, "z": z})[0], np.concatenate([X, z])[:, 2])


def test_a_position_outside_a_sequence_is_refused() -> None:
    model = model_of("s = SequenceConstruct (x, x) y = SequenceAt (s, k)", weights="int64 k = {2}")
    with pytest.raises(ConversionError, match="position 2 is outside"):
        compute(model, {"x": X})


def test_a_table_takes_an_operator_once() -> None:
    handlers = Handlers("test")
    handlers.register("Relu", "Relu6")(lambda op, x: x)
    assert handlers.kinds() == [("", "Relu"), ("", "Relu6")]
    with pytest.raises(ValueError, match="handler for test already"):
        handlers.register("Relu")(lambda op, x: x)
