"""Quantised operators of `com.microsoft` through their bodies, compared with onnxruntime's own kernels.

Quantised results may differ by one step where a value lies between two: onnxruntime computes some in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_reference_kit import check_against_onnxruntime, compute, one_node_model

from noa.errors import ConversionError
from noa_conversion.onnx_graph.reading import read_model

SCALE, OTHER_SCALE, OUT_SCALE = (np.asarray(value, np.float32) for value in (0.02, 0.03, 0.05))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def whole(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed + sum(shape)).integers(limits.min, limits.max + 1, shape, dtype)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw int8 of 7 bits: beyond that onnxruntime's own products saturate on processors without VNNI."""
    return np.random.default_rng(seed + sum(shape)).integers(-64, 64, shape, np.int8)


def zero(value: int, dtype: Any) -> np.ndarray:
    return np.asarray(value, dtype)


def quantised(dtype: Any, *shape: int, seed: int = 0) -> list[np.ndarray | None]:
    point = 100 if dtype == np.uint8 else 5
    return [whole(*shape, dtype=dtype, seed=seed), SCALE, zero(point, dtype)]


ONE_INPUT: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "QLinearSigmoid": ((3, 4), {}),
    "QLinearLeakyRelu": ((3, 4), {"alpha": 0.2}),
    "QLinearGlobalAveragePool": ((2, 3, 4, 4), {}),
    "QLinearAveragePool": ((2, 3, 4, 4), {"kernel_shape": [2, 2], "strides": [1, 2]}),
    "QLinearSoftmax": ((2, 3, 4), {"axis": -1, "opset": 13}),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", ONE_INPUT)
def test_a_quantised_operator_of_one_input(kind: str, dtype: Any) -> None:
    shape, attributes = ONE_INPUT[kind]
    scale = np.asarray(1 / 256, np.float32) if kind in ("QLinearSigmoid", "QLinearSoftmax") else OUT_SCALE
    point = zero(0 if dtype == np.uint8 else -128, dtype)
    check_against_onnxruntime(kind, [*quantised(dtype, *shape), scale, point], attributes, atol=1)


@pytest.mark.parametrize("kind", ["QLinearGlobalAveragePool", "QLinearAveragePool"])
def test_a_quantised_pool_with_channels_last(kind: str) -> None:
    attributes: dict[str, Any] = {"channels_last": 1}
    if kind == "QLinearAveragePool":
        attributes["kernel_shape"] = [2, 2]
    inputs = [*quantised(np.uint8, 2, 4, 4, 3), OUT_SCALE, zero(3, np.uint8)]
    check_against_onnxruntime(kind, inputs, attributes, atol=1)


def test_a_quantised_mean_of_padding_beyond_the_edge_is_refused() -> None:
    """onnxruntime's kernel divides windows that hang over the edge by another number than its `AveragePool` does."""
    inputs = [*quantised(np.uint8, 1, 3, 6, 5), OUT_SCALE, zero(3, np.uint8)]
    attributes = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2], "ceil_mode": 1}
    check_against_onnxruntime("QLinearAveragePool", inputs, attributes, atol=1)
    attributes["count_include_pad"] = 1
    model = one_node_model("QLinearAveragePool", inputs, attributes, 1, "com.microsoft")
    with pytest.raises(ConversionError, match="`QLinearAveragePool` cannot be imported: with `ceil_mode`"):
        compute(read_model(model.SerializeToString()), {f"x{index}": array for index, array in enumerate(inputs)})


def test_quantised_softmax_before_opset_13_flattens() -> None:
    inputs = [*quantised(np.uint8, 2, 3, 4), np.asarray(1 / 256, np.float32), zero(0, np.uint8)]
    check_against_onnxruntime("QLinearSoftmax", inputs, {"axis": 1, "opset": 11}, atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 4), (4,)])
def test_quantised_arithmetic_broadcasts(kind: str, dtype: Any, shape: tuple[int, ...]) -> None:
    other = [whole(*shape, dtype=dtype, seed=3), OTHER_SCALE, zero(7, dtype)]
    check_against_onnxruntime(kind, [*quantised(dtype, 2, 3, 4), *other, OUT_SCALE, zero(10, dtype)], atol=1)


def test_quantised_concatenation() -> None:
    parts = [*quantised(np.uint8, 2, 3), whole(2, 2), OTHER_SCALE, zero(9, np.uint8)]
    check_against_onnxruntime("QLinearConcat", [OUT_SCALE, zero(4, np.uint8), *parts], {"axis": 1}, atol=1)


def test_quantised_choice() -> None:
    condition = np.asarray([[True, False, True]])
    inputs = [condition, *quantised(np.uint8, 2, 3), whole(2, 1, seed=4), OTHER_SCALE, zero(9, np.uint8)]
    check_against_onnxruntime("QLinearWhere", [*inputs, OUT_SCALE, zero(4, np.uint8)], atol=1)


@pytest.mark.parametrize("is_last", [True, False])
def test_quantised_convolution(is_last: bool) -> None:
    x = whole(1, 5, 5, 2) if is_last else whole(1, 2, 5, 5)
    weights = [whole(3, 2, 3, 3, dtype=np.uint8), OTHER_SCALE, zero(120, np.uint8)]
    inputs = [x, SCALE, zero(100, np.uint8), *weights, OUT_SCALE, zero(50, np.uint8), whole(3, dtype=np.int32) // 10**6]
    check_against_onnxruntime("QLinearConv", inputs, {"channels_last": int(is_last)}, atol=1)


@pytest.mark.parametrize("is_float", [True, False])
@pytest.mark.parametrize("per_column", [True, False])
def test_quantised_matrix_product_with_bias(is_float: bool, per_column: bool) -> None:
    scale = np.linspace(0.01, 0.05, 5, dtype=np.float32) if per_column else OTHER_SCALE
    point = np.zeros(5, np.int8) if per_column else zero(3, np.int8)
    inputs = [*quantised(np.uint8, 3, 4), weights(4, 5), scale, point, np.arange(5, dtype=np.int32) * 100]
    tail = [] if is_float else [OUT_SCALE, zero(128, np.uint8)]
    check_against_onnxruntime("QGemm", [*inputs, *tail], {"alpha": 0.5}, atol=1e-4 if is_float else 1)


def test_quantised_matrix_product_of_transposed_matrices() -> None:
    inputs = [*quantised(np.uint8, 4, 3), weights(5, 4), OTHER_SCALE, zero(3, np.int8), None]
    check_against_onnxruntime("QGemm", [*inputs, OUT_SCALE, zero(128, np.uint8)], {"transA": 1, "transB": 1}, atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("has_bias", [True, False])
def test_dynamically_quantised_matrix_product(dtype: Any, has_bias: bool) -> None:
    bias = draw(5) if has_bias else None
    scale, point = np.asarray([0.02], np.float32), np.asarray([3], dtype)
    drawn = weights(4, 5) if dtype == np.int8 else whole(4, 5)
    inputs = [draw(2, 3, 4), drawn, scale, point, bias]
    check_against_onnxruntime("DynamicQuantizeMatMul", inputs, atol=1e-4)


@pytest.mark.parametrize("per_column", [True, False])
def test_integer_matrix_product_as_floats(per_column: bool) -> None:
    scale = np.linspace(0.01, 0.05, 5, dtype=np.float32) if per_column else OTHER_SCALE
    point = np.arange(5, dtype=np.int8) if per_column else zero(3, np.int8)
    inputs = [whole(2, 3, 4), weights(4, 5), SCALE, scale, zero(9, np.uint8), point, draw(5)]
    check_against_onnxruntime("MatMulIntegerToFloat", inputs, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "zeros"),
    [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed"), (2, "none"), (2, "packed")],
)
@pytest.mark.parametrize("columns", [32, 40])
def test_weights_of_few_bits(bits: int, zeros: str, columns: int) -> None:
    rows, block = 6, 16
    blocks = -(-columns // block)
    weights = whole(rows, blocks, block * bits // 8)
    scales = np.abs(draw(rows, blocks)) / 10
    points = None
    if zeros == "packed":
        points = whole(rows, -(-blocks * bits // 8))
    elif zeros == "float":
        points = np.abs(draw(rows, blocks, seed=9)) * 3
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    check_against_onnxruntime("MatMulNBits", [draw(2, 3, columns), weights, scales, points], attributes, atol=1e-3)
    bias = draw(rows)
    inputs = [draw(2, 3, columns), weights, scales, points, None, bias]
    check_against_onnxruntime("MatMulNBits", inputs, attributes, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantising_and_back_in_the_contrib_domain(dtype: Any) -> None:
    x = draw(2, 3, 4)
    check_against_onnxruntime("QuantizeLinear", [x, SCALE, zero(5, dtype)], atol=1)
    check_against_onnxruntime("DequantizeLinear", [whole(2, 3, dtype=dtype), SCALE, zero(5, dtype)])
    scales, points = np.asarray([0.1, 0.2, 0.3], np.float32), np.asarray([1, 2, 3], dtype)
    check_against_onnxruntime("QuantizeLinear", [x, scales, points], {"axis": 1}, atol=1)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("has_start", [True, False])
def test_dynamically_quantised_lstm(direction: str, per_column: bool, has_start: bool) -> None:
    hidden, size, batch, steps = 4, 3, 2, 5
    count = 2 if direction == "bidirectional" else 1
    kernel, recurrence = (weights(count, n, 4 * hidden, seed=n) for n in (size, hidden))
    shape = (count, 4 * hidden) if per_column else (count,)
    scale, point = np.abs(draw(*shape)) / 100, np.zeros(shape, np.int8)
    start = [draw(count, batch, hidden, seed=seed) for seed in (1, 2)] if has_start else [None, None]
    bias = draw(count, 8 * hidden)
    inputs = [draw(steps, batch, size), kernel, recurrence, bias, None, *start, None, scale, point, scale, point]
    attributes = {"hidden_size": hidden, "direction": direction}
    check_against_onnxruntime("DynamicQuantizeLSTM", inputs, attributes, outputs=3, atol=1e-5)


@pytest.mark.parametrize("zeros", ["none", "float"])
@pytest.mark.parametrize("columns", [32, 40])
def test_columns_that_name_their_block(zeros: str, columns: int) -> None:
    rows, block = 6, 16
    blocks = -(-columns // block)
    points = np.abs(draw(rows, blocks, seed=9)) * 3 if zeros == "float" else None
    groups = np.random.default_rng(3).permutation(np.arange(columns) // block).astype(np.int32)
    scales = np.abs(draw(rows, blocks)) / 10
    inputs = [draw(2, 3, columns), whole(rows, blocks, block // 2), scales, points, groups, draw(rows)]
    attributes = {"K": columns, "N": rows, "bits": 4, "block_size": block}
    check_against_onnxruntime("MatMulNBits", inputs, attributes, atol=1e-3)


def test_columns_that_name_a_packed_zero_point_are_refused() -> None:
    """onnxruntime computes with the middle of the range in its place, so no answer is the right one."""
    inputs = [draw(2, 32), whole(6, 2, 8), np.abs(draw(6, 2)), whole(6, 1), np.zeros(32, np.int32)]
    model = one_node_model("MatMulNBits", inputs, {"K": 32, "N": 6, "bits": 4, "block_size": 16}, 1, "com.microsoft")
    with pytest.raises(ConversionError, match="g_idx"):
        compute(read_model(model.SerializeToString()), {f"x{index}": array for index, array in enumerate(inputs)})
