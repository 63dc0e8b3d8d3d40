"""Operators in PyTorch that ONNX's own suite covers thinly: options, odd types and rare combinations.

The suite itself (`make conformance`) is the main test of operators.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_kit import FLOAT, INT64, value
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from noa.errors import ConversionError
from noa_conversion import import_onnx_to_jax, import_onnx_to_torch


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def one_node(
    kind: str,
    inputs: dict[str, np.ndarray],
    *,
    outputs: int = 1,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    result: int = FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    declared = [
        value(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in inputs.items()
    ]
    given = [helper.make_tensor_value_info(f"y{i}", result, None) for i in range(outputs)]
    node = helper.make_node(kind, [*inputs, *(weights or {})], [each.name for each in given], **attributes)
    initialisers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph([node], "test", declared, given, initialisers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def assert_same(proto: onnx.ModelProto, inputs: dict[str, np.ndarray], *, by_reference: bool = False) -> None:
    data = proto.SerializeToString()
    judge: Any = ReferenceEvaluator(proto) if by_reference else onnxruntime.InferenceSession(data)
    expected = judge.run(None, inputs)
    given = import_onnx_to_torch(data).run(inputs)
    for wish, gift in zip(expected, given.values(), strict=True):
        assert gift.dtype == wish.dtype
        np.testing.assert_allclose(gift.astype(np.float64), wish.astype(np.float64), rtol=1e-4, atol=1e-5)


SEQUENCE = {"x": draw(5, 2, 3)}


def cell_weights(gates: int, directions: int) -> dict[str, np.ndarray]:
    return {
        "w": draw(directions, gates * 4, 3),
        "r": draw(directions, gates * 4, 4) * 0.3,
        "b": draw(directions, 2 * gates * 4),
    }


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_run_in_all_directions(kind: str, gates: int, direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    outputs = 3 if kind == "LSTM" else 2
    weights = cell_weights(gates, directions)
    proto = one_node(kind, SEQUENCE, outputs=outputs, weights=weights, hidden_size=4, direction=direction, **options)
    assert_same(proto, SEQUENCE)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_have_lengths_bounds_and_activations_of_choice(kind: str) -> None:
    gates = 4 if kind == "LSTM" else 3
    names = ["HardSigmoid", "Softsign", "Tanh"] if kind == "LSTM" else ["HardSigmoid", "Softsign"]
    weights = {**cell_weights(gates, 2), "lengths": np.asarray([5, 3], np.int32)}
    proto = one_node(
        kind,
        SEQUENCE,
        outputs=2,
        weights=weights,
        hidden_size=4,
        direction="bidirectional",
        activations=names * 2,
        clip=1.5,
    )
    assert_same(proto, SEQUENCE)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_sequences_end_at_their_lengths_whatever_the_longest_is(kind: str, gates: int, direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    weights = cell_weights(gates, directions) | {"h": draw(directions, 3, 4)}
    weights |= {"c": draw(directions, 3, 4, seed=1)} if kind == "LSTM" else {}
    inputs = [value("x", FLOAT, ["time", 3, 3]), value("lengths", TensorProto.INT32, [3])]
    outputs = [helper.make_tensor_value_info(f"y{i}", FLOAT, None) for i in range(3 if kind == "LSTM" else 2)]
    names = ["x", "w", "r", "b", "lengths", *list(weights)[3:]]
    node = helper.make_node(kind, names, [each.name for each in outputs], hidden_size=4, direction=direction, **options)
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "test", inputs, outputs, initialisers)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(data)
    imported = import_onnx_to_torch(data)
    for time, lengths in ((4, [4, 2, 1]), (7, [3, 7, 5]), (1, [1, 1, 1]), (6, [0, 6, 0])):
        given = {"x": draw(time, 3, 3), "lengths": np.asarray(lengths, np.int32)}
        for wish, gift in zip(session.run(None, given), imported.run(given).values(), strict=True):
            np.testing.assert_allclose(gift, wish, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", [5, 2, 3, 1], r"`X` must have 3 axes and has the shape \(5, 2, 3, 1\)"),
        ("x", [5, 2, 7], r"`X` of shape \(5, 2, 7\) does not go with `W`"),
        ("h", [1, 1, 4], r"`X` of shape .* does not go with `initial_h` of shape \(1, 1, 4\)"),
        ("c", [1, 2, 5], r"`R` of shape .* does not go with `initial_c` of shape \(1, 2, 5\)"),
    ],
)
def test_a_layer_of_shapes_that_do_not_go_together_is_refused(name: str, shape: list[int], message: str) -> None:
    data = layer_with_states({"x": [5, 2, 3], "h": [1, 2, 4], "c": [1, 2, 4], name: shape})
    for import_model in (import_onnx_to_torch, import_onnx_to_jax):
        with pytest.raises(ConversionError, match=message):
            imported: Any = import_model(data)
            imported.run({wanted.name: np.zeros(wanted.shape, np.float32) for wanted in imported.inputs})


def test_states_of_another_batch_than_the_sequences_are_an_error_at_run_time() -> None:
    """PyTorch's own operator would read past the end of the states."""
    data = layer_with_states({"x": [5, "batch", 3], "h": [1, "others", 4], "c": [1, "others", 4]})
    session, module = onnxruntime.InferenceSession(data), import_onnx_to_torch(data).module

    def inputs(batch: int, others: int) -> dict[str, np.ndarray]:
        return {"x": draw(5, batch, 3), "h": draw(1, others, 4), "c": draw(1, others, 4, seed=1)}

    for run in (module, torch.compile(module, backend="aot_eager")):
        with torch.no_grad():
            given = run(*(torch.from_numpy(array) for array in inputs(2, 2).values()))
            expected: Any = session.run(None, inputs(2, 2))[0]
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
            with pytest.raises(RuntimeError, match="two batch sizes"):
                run(*(torch.from_numpy(array) for array in inputs(2, 1).values()))


def layer_with_states(shapes: dict[str, list[Any]]) -> bytes:
    """A `LSTM` of 3 numbers into 4 whose inputs have these shapes."""
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=4)
    inputs = [value(name, FLOAT, shape) for name, shape in shapes.items()]
    weights = [numpy_helper.from_array(draw(1, 16, size), name) for name, size in (("w", 3), ("r", 4))]
    outputs = [helper.make_tensor_value_info("y", FLOAT, None)]
    graph = helper.make_graph([node], "test", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_rounds_that_are_written_out_ask_for_their_axis_by_its_name() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["each"], ["made"])],
        "body",
        [value("each", FLOAT, [2, 3])],
        [value("made", FLOAT, [2, 3])],
    )
    node = helper.make_node("Scan", ["x"], ["y0"], body=body, num_scan_inputs=1)
    outputs = [helper.make_tensor_value_info("y0", FLOAT, None)]
    graph = helper.make_graph([node], "test", [value("x", FLOAT, ["time", 2, 3])], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ConversionError, match=r"number of rounds is a free axis: time.*sizes=\{'time': NUMBER\}"):
        import_onnx_to_torch(proto.SerializeToString())


@pytest.mark.parametrize("mode", ["wrap", "edge", "reflect"])
@pytest.mark.parametrize("pads", [(-1, 4), (3, -2), (-2, -1), (2, 3)])
def test_a_border_repeats_what_is_left_after_cutting(mode: str, pads: tuple[int, int]) -> None:
    inputs = {"x": draw(2, 6)}
    proto = one_node("Pad", inputs, weights={"pads": np.asarray([0, pads[0], 0, pads[1]])}, mode=mode)
    assert_same(proto, inputs)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_])
def test_the_extreme_of_nothing_is_the_worst_value(kind: str, dtype: Any, keepdims: int) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs, outputs = [value("x", code, [2, "n", 3])], [helper.make_tensor_value_info("y", code, None)]
    node = helper.make_node(kind, ["x", "axes"], ["y"], keepdims=keepdims)
    axes = [numpy_helper.from_array(np.asarray([1, 2], np.int64), "axes")]
    graph = helper.make_graph([node], "test", inputs, outputs, axes)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    judge, imported = ReferenceEvaluator(proto), import_onnx_to_torch(proto.SerializeToString())
    for count in (0, 1, 4):
        given = {"x": draw(2, count, 3).astype(dtype)}
        (wish,), gift = judge.run(None, given), imported.run(given)["y"]
        assert gift.dtype == wish.dtype
        np.testing.assert_array_equal(gift, wish)


def test_a_layer_that_pytorch_has_is_called_and_not_written_out() -> None:
    proto = one_node("LSTM", SEQUENCE, outputs=1, weights=cell_weights(4, 1), hidden_size=4)
    module = import_onnx_to_torch(proto.SerializeToString()).module
    assert "aten.lstm.input" in {str(node.target) for node in module.graph.nodes}


UNSIGNED = np.asarray([0, 1, 2**63, 2**64 - 1, 10, 7], np.uint64)
OTHERS = np.asarray([3, 2**63, 5, 2**63 + 1, 3, 2**64 - 1], np.uint64)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Less", "GreaterOrEqual"])
def test_unsigned_integers_of_64_bits_are_exact(kind: str) -> None:
    inputs = {"a": UNSIGNED, "b": OTHERS}
    result = TensorProto.BOOL if kind in ("Less", "GreaterOrEqual") else TensorProto.UINT64
    functions: dict[str, Any] = {
        "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.floor_divide, "Mod": np.mod,
        "Max": np.maximum, "Min": np.minimum, "Less": np.less, "GreaterOrEqual": np.greater_equal,
    }  # fmt: skip
    given = import_onnx_to_torch(one_node(kind, inputs, result=result).SerializeToString()).run(inputs)["y0"]
    np.testing.assert_array_equal(given, functions[kind](UNSIGNED, OTHERS))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_every_half_precision_number_is_cast_to_eight_bits_as_onnx_does(name: str, saturate: int) -> None:
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    target = np.dtype(getattr(ml_dtypes, name))
    code = helper.np_dtype_to_tensor_dtype(target)
    proto = one_node("Cast", {"x": numbers}, opset=23, result=code, to=code, saturate=saturate)
    given = import_onnx_to_torch(proto.SerializeToString()).run({"x": numbers})["y0"].astype(np.float32)
    with np.errstate(all="ignore"):
        wide = numbers.astype(np.float32)
        limit = float(ml_dtypes.finfo(target).max)
        expected = (np.clip(wide, -limit, limit) if saturate else wide).astype(target).astype(np.float32)
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(1, 2, 9, 4), (1, 2, 3, 11)])
def test_images_are_resized_as_the_reference_does(mode: str, coordinates: str, sizes: tuple[int, ...]) -> None:
    inputs = {"x": draw(1, 2, 5, 6)}
    nothing = np.zeros(0, np.float32)
    weights = {"roi": nothing, "scales": nothing, "sizes": np.asarray(sizes, np.int64)}
    proto = one_node(
        "Resize", inputs, weights=weights, mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor"
    )
    assert_same(proto, inputs, by_reference=True)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_pools_are_padded_unevenly_and_rounded_up(kind: str, pads: list[int], ceil_mode: int) -> None:
    inputs = {"x": draw(2, 3, 7, 8)}
    proto = one_node(kind, inputs, kernel_shape=[3, 2], strides=[2, 2], pads=pads, ceil_mode=ceil_mode)
    assert_same(proto, inputs)


def test_boxes_are_chosen_as_onnxruntime_does() -> None:
    rng = np.random.default_rng(0)
    corners = rng.random((2, 20, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.random((2, 20, 2)).astype(np.float32)], 2)
    inputs = {"boxes": boxes, "scores": rng.random((2, 3, 20)).astype(np.float32)}
    weights = {
        "most": np.asarray([4], np.int64),
        "overlap": np.asarray([0.3], np.float32),
        "lowest": np.asarray([0.4], np.float32),
    }
    proto = one_node("NonMaxSuppression", inputs, weights=weights, result=INT64)
    assert_same(proto, inputs)


def test_more_boxes_than_are_written_out_take_rounds_at_run_time() -> None:
    rng = np.random.default_rng(0)
    corners = rng.random((1, 80, 2)).astype(np.float32)
    inputs = {
        "boxes": np.concatenate([corners, corners + np.float32(0.2)], 2),
        "scores": rng.random((1, 2, 80)).astype(np.float32),
    }
    weights = {"most": np.asarray([50], np.int64), "overlap": np.asarray([0.2], np.float32)}
    assert_same(one_node("NonMaxSuppression", inputs, weights=weights, result=INT64), inputs)


def test_statistics_of_the_batch_need_an_opset_that_defines_them() -> None:
    inputs = {"x": draw(2, 3, 4)}
    weights = {name: np.ones(3, np.float32) for name in ("scale", "bias", "mean", "var")}
    proto = one_node("BatchNormalization", inputs, outputs=3, weights=weights, training_mode=1)
    module = import_onnx_to_torch(proto.SerializeToString()).module
    y, mean, _ = module(torch.from_numpy(inputs["x"]))
    np.testing.assert_allclose(y.detach().mean((0, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(mean.detach(), 0.9 + 0.1 * inputs["x"].mean((0, 2)), rtol=1e-5)


def test_random_dropout_is_refused() -> None:
    inputs = {"x": draw(2, 3)}
    weights = {"ratio": np.asarray(0.5, np.float32), "training": np.asarray(True)}
    proto = one_node("Dropout", inputs, weights=weights)
    with pytest.raises(ConversionError, match="at random"):
        import_onnx_to_torch(proto.SerializeToString())


def test_the_sign_of_no_number_is_no_number() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Sign", ["x"], ["y"])],
        "sign",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]).SerializeToString()
    given = import_onnx_to_torch(data).module(torch.tensor([float("nan"), -2.0, 0.0, 3.0]))
    np.testing.assert_array_equal(given.numpy(), [np.nan, -1.0, 0.0, 1.0])


@pytest.mark.parametrize("coordinates", ["align_corners", "half_pixel", "asymmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [0.6, 0.7, 1.7])
@pytest.mark.parametrize("target", ["torch", "jax"])
def test_scales_without_a_whole_size_resize_as_onnxruntime_does(
    target: str, scale: float, mode: str, coordinates: str
) -> None:
    inputs = {"x": draw(1, 2, 5, 10)}
    weights = {"roi": np.zeros(0, np.float32), "scales": np.asarray([1, 1, scale, scale], np.float32)}
    proto = one_node("Resize", inputs, weights=weights, mode=mode, coordinate_transformation_mode=coordinates)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)
    read = import_onnx_to_torch if target == "torch" else import_onnx_to_jax
    np.testing.assert_allclose(
        read(proto.SerializeToString()).run(inputs)["y0"], np.asarray(expected), rtol=1e-3, atol=1e-4
    )
