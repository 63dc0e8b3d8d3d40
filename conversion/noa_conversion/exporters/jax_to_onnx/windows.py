"""Primitives that slide a window: convolution and pooling, in any layout, over one to three axes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler
from noa_conversion.exporters.jax_to_onnx.shaping import reshape_to


def _convolution(call: Call) -> list[Operand]:
    params = call.params
    if any(step != 1 for step in params["lhs_dilation"]):
        raise call.refuse("it is a transposed convolution (`lhs_dilation`)", received=params["lhs_dilation"])
    if params["batch_group_count"] != 1:
        raise call.refuse("it groups the batch", received=params["batch_group_count"])
    pads = [tuple(map(int, pair)) for pair in _static_pairs(call, params["padding"])]
    if any(amount < 0 for pair in pads for amount in pair):
        raise call.refuse("it pads by a negative amount", received=pads)
    value, kernel = call.inputs
    result_type = np.dtype(call.outputs[0].dtype)
    if result_type.name not in ("float16", "float32", "float64"):
        raise call.refuse("it is not computed in floating point", received=result_type.name)
    numbers = params["dimension_numbers"]
    result = call.node(
        "Conv",
        _permuted(call, _as(call, value, result_type), numbers.lhs_spec),
        _permuted(call, _as(call, kernel, result_type), numbers.rhs_spec),
        strides=[int(step) for step in params["window_strides"]],
        dilations=[int(step) for step in params["rhs_dilation"]],
        pads=[low for low, _ in pads] + [high for _, high in pads],
        group=int(params["feature_group_count"]),
        kernel_shape=[int(kernel.shape[axis]) for axis in numbers.rhs_spec[2:]],
    )
    return [_permuted(call, result, list(np.argsort(numbers.out_spec)))]


def _pool(call: Call, kind: str) -> list[Operand]:
    (value,) = call.inputs
    params = call.params
    if any(step != 1 for step in params["base_dilation"]):
        raise call.refuse("it spreads its input (`base_dilation`)", received=params["base_dilation"])
    window = [int(size) for size in params["window_dimensions"]]
    strides = [int(step) for step in params["window_strides"]]
    dilations = [int(step) for step in params["window_dilation"]]
    pads = [tuple(map(int, pair)) for pair in _static_pairs(call, params["padding"])]
    slid = [axis for axis in range(value.rank) if window[axis] != 1 or strides[axis] != 1 or any(pads[axis])]
    if not slid:
        return [value]
    if len(slid) > 3 or value.dtype.name not in ("float32", "float64"):
        raise call.refuse("onnxruntime pools up to three axes of floats", received=f"{value.dtype.name}, axes {slid}")
    for axis in slid:
        reach = (window[axis] - 1) * dilations[axis] + 1
        if not all(0 <= amount < reach for amount in pads[axis]):
            raise call.refuse("its padding is negative or as large as its window", received=pads[axis])
    attributes = {
        "kernel_shape": [window[axis] for axis in slid],
        "strides": [strides[axis] for axis in slid],
        "pads": [pads[axis][0] for axis in slid] + [pads[axis][1] for axis in slid],
    }
    if any(dilations[axis] != 1 for axis in slid):
        if kind == "sum" and call.graph.opset < 19:
            raise call.refuse("a dilated sum needs opset 19", received=call.graph.opset)
        attributes["dilations"] = [dilations[axis] for axis in slid]
    return [_pool_last_axes(call, value, kind, slid, attributes)]


def _pool_last_axes(call: Call, value: Value, kind: str, slid: list[int], attributes: dict[str, Any]) -> Operand:
    """Bring the axes into the order (one, another, windowed ...), which is what ONNX pools, and back."""
    rest = [axis for axis in range(value.rank) if axis not in slid]
    order = [*rest, *slid]
    moved = _permuted(call, value, order)
    output = tuple(call.outputs[0].shape)
    if len(rest) < 2:
        moved = call.node("Unsqueeze", moved, call.graph.integers(range(len(rest), 2)))
    elif len(rest) > 2:
        front = (value.shape[rest[0]], _product([value.shape[axis] for axis in rest[1:]]))
        moved = reshape_to(call.graph, moved, (*front, *(value.shape[axis] for axis in slid)))
    pooled = _pooled(call, moved, kind, value.dtype, attributes)
    if len(rest) < 2:
        pooled = call.node("Squeeze", pooled, call.graph.integers(range(len(rest), 2)))
    elif len(rest) > 2:
        pooled = reshape_to(call.graph, pooled, tuple(output[axis] for axis in order))
    return _permuted(call, pooled, [int(axis) for axis in np.argsort(order)])


def _pooled(call: Call, moved: Operand, kind: str, dtype: np.dtype[Any], attributes: dict[str, Any]) -> str:
    if kind == "max":
        return call.node("MaxPool", moved, **attributes)
    if kind == "min":
        return call.node("Neg", call.node("MaxPool", call.node("Neg", moved), **attributes))
    mean = call.node("AveragePool", moved, count_include_pad=1, **attributes)
    return call.node("Mul", mean, call.scalar(_product(attributes["kernel_shape"]), dtype))


def _static_pairs(call: Call, padding: Any) -> list[tuple[int, int]]:
    pairs = list(padding)
    if not all(is_number(amount) for pair in pairs for amount in pair):
        raise call.refuse("its padding depends on a free size", received=pairs)
    return pairs


def _permuted(call: Call, operand: Operand, order: Any) -> Operand:
    axes = [int(axis) for axis in order]
    return operand if axes == sorted(axes) else call.node("Transpose", operand, perm=axes)


def _as(call: Call, value: Value, dtype: np.dtype[Any]) -> Operand:
    return value if value.dtype == dtype else call.cast(value, dtype)


def _product(sizes: list[Any]) -> Any:
    result: Any = 1
    for size in sizes:
        result = result * size
    return result


HANDLERS: dict[str, Handler] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": partial(_pool, kind="max"),
    "reduce_window_min": partial(_pool, kind="min"),
    "reduce_window_sum": partial(_pool, kind="sum"),
}
