"""Primitives that slide a window: convolution, also transposed, in any layout, and pooling over one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler
from noa_conversion.exporters.jax_to_onnx.shaping import reshape_to, slice_axes

_UNROLLED_WINDOW = 512


def _convolution(call: Call) -> list[Operand]:
    value, kernel = call.inputs
    params = call.params
    result_type = np.dtype(call.outputs[0].dtype)
    if not is_float(result_type):
        raise call.refuse("it is not computed in floating point", received=result_type.name)
    if result_type != value.dtype or result_type != kernel.dtype:
        return _in_result_type(call)
    numbers = params["dimension_numbers"]
    moved = _moved(call, value, numbers.lhs_spec)
    weights = _moved(call, kernel, numbers.rhs_spec)
    pads = _static_pairs(call, params["padding"])
    group, batch_group = int(params["feature_group_count"]), int(params["batch_group_count"])
    if batch_group != 1:
        moved, group = _batch_as_features(call, moved, batch_group), batch_group
    if any(step != 1 for step in params["lhs_dilation"]):
        result = _transposed(call, moved, weights, pads, group)
    else:
        result = _plain(call, moved, weights, pads, group)
    return [call.permuted(result, [int(axis) for axis in np.argsort(numbers.out_spec)])]


def _in_result_type(call: Call) -> list[Operand]:
    from jax import lax

    dtype = call.outputs[0].dtype
    function = lambda *operands: call.bind(  # noqa: E731  # one expression
        *(lax.convert_element_type(operand, dtype) for operand in operands), **call.params
    )
    return list(call.trace(function, *call.inputs))


def _plain(call: Call, value: Value, kernel: Value, pads: list[tuple[int, int]], group: int) -> str:
    if any(amount < 0 for pair in pads for amount in pair):
        # Cut by Slice: onnxruntime 1.32 merges a Pad into Conv, also where it cuts.
        to_end = np.iinfo(np.int64).max
        cuts = {axis: (max(-low, 0), min(high, 0) or to_end, 1) for axis, (low, high) in enumerate(pads, 2)}
        value = _named(value, call.graph.name_of(slice_axes(call.graph, value, cuts)))
        pads = [(max(low, 0), max(high, 0)) for low, high in pads]
    return call.node(
        "Conv",
        value,
        kernel,
        strides=[int(step) for step in call.params["window_strides"]],
        dilations=[int(step) for step in call.params["rhs_dilation"]],
        pads=[low for low, _ in pads] + [high for _, high in pads],
        group=group,
        kernel_shape=[int(size) for size in kernel.shape[2:]],
    )


def _transposed(call: Call, value: Value, kernel: Value, pads: list[tuple[int, int]], group: int) -> str:
    """Write a convolution of a spread input as ConvTranspose where its padding allows, else spread the input."""
    graph, params = call.graph, call.params
    dilations = [int(step) for step in params["rhs_dilation"]]
    reach = [step * (int(size) - 1) for step, size in zip(dilations, kernel.shape[2:], strict=True)]
    cut = [(far - low, far - high) for far, (low, high) in zip(reach, pads, strict=True)]
    is_unit = all(step == 1 for step in params["window_strides"])
    if not is_unit or any(amount < 0 for pair in cut for amount in pair):
        return _plain(call, _spread(call, value), kernel, pads, group)
    outputs, inputs, *window = (int(size) for size in kernel.shape)
    axes = list(range(2, kernel.rank))
    flipped = graph.node(
        "Slice",
        kernel,
        graph.integers([-1] * len(axes)),
        graph.integers([-np.iinfo(np.int64).max] * len(axes)),
        graph.integers(axes),
        graph.integers([-1] * len(axes)),
    )
    grouped = reshape_to(graph, flipped, (group, outputs // group, inputs, *window))
    swapped = graph.node("Transpose", grouped, perm=[0, 2, 1, *range(3, kernel.rank + 1)])
    weights = reshape_to(graph, swapped, (group * inputs, outputs // group, *window))
    return call.node(
        "ConvTranspose",
        value,
        weights,
        strides=[int(step) for step in params["lhs_dilation"]],
        dilations=dilations,
        pads=[low for low, _ in cut] + [high for _, high in cut],
        group=group,
        kernel_shape=window,
    )


def _spread(call: Call, value: Value) -> Value:
    from jax import lax

    inner = [0, 0, *(int(step) - 1 for step in call.params["lhs_dilation"])]
    config = [(0, 0, amount) for amount in inner]
    return call.trace(lambda x: lax.pad(x, x.dtype.type(0), config), value)[0]


def _batch_as_features(call: Call, value: Value, count: int) -> Value:
    """Groups of the batch are groups of features of a smaller batch."""
    batch, features, *sizes = value.shape

    def moved(x: Any) -> Any:
        grouped = x.reshape(count, batch // count, features, *sizes).swapaxes(0, 1)
        return grouped.reshape(batch // count, count * features, *sizes)

    return call.trace(moved, value)[0]


def _pool(call: Call, kind: str) -> list[Operand]:
    (value,) = call.inputs
    params = call.params
    window = [int(size) for size in params["window_dimensions"]]
    strides = [int(step) for step in params["window_strides"]]
    dilations = [int(step) for step in params["window_dilation"]]
    pads = _static_pairs(call, params["padding"])
    slid = [axis for axis in range(value.rank) if window[axis] != 1 or strides[axis] != 1 or any(pads[axis])]
    is_spread = any(step != 1 for step in params["base_dilation"])
    if not slid and not is_spread:
        return [value]
    is_pooled = len(slid) <= 3 and value.dtype.name in ("float32", "float64", "float16", "bfloat16") and not is_spread
    for axis in slid:
        reach = (window[axis] - 1) * dilations[axis] + 1
        is_pooled = is_pooled and all(0 <= amount < reach for amount in pads[axis])
    is_dilated = any(dilations[axis] != 1 for axis in slid)
    if not is_pooled or (kind == "sum" and is_dilated and call.graph.opset < 19):
        return _shifted(call, kind, pads)
    attributes = {
        "kernel_shape": [window[axis] for axis in slid],
        "strides": [strides[axis] for axis in slid],
        "pads": [pads[axis][0] for axis in slid] + [pads[axis][1] for axis in slid],
    }
    if is_dilated:
        attributes["dilations"] = [dilations[axis] for axis in slid]
    return [_pool_last_axes(call, value, kind, slid, attributes)]


def _shifted(call: Call, kind: str, pads: list[tuple[int, int]]) -> list[Operand]:
    """Combine one strided slice per place in the window, of the padded input: any dtype, padding and dilation."""
    from jax import lax
    from jax import numpy as jnp

    params = call.params
    window = [int(size) for size in params["window_dimensions"]]
    if prod(window) > _UNROLLED_WINDOW:
        raise call.refuse(
            f"its window of more than {_UNROLLED_WINDOW} places is none that runtimes pool", received=window
        )
    combine = {"max": lax.max, "min": lax.min, "sum": lax.add}[kind]
    shape, strides, dilations = call.outputs[0].shape, params["window_strides"], params["window_dilation"]

    def function(x: Any) -> Any:
        config = [(low, high, int(base) - 1) for (low, high), base in zip(pads, params["base_dilation"], strict=True)]
        padded = lax.pad(x, jnp.asarray(_neutral(kind, x.dtype)), config)
        result = None
        for place in np.ndindex(*window):
            start = [index * int(step) for index, step in zip(place, dilations, strict=True)]
            end = [s + (size - 1) * int(step) + 1 for s, size, step in zip(start, shape, strides, strict=True)]
            part = lax.slice(padded, start, end, [int(step) for step in strides])
            result = part if result is None else combine(result, part)
        return result

    return list(call.trace(function, *call.inputs))


def _neutral(kind: str, dtype: Any) -> Any:
    if kind == "sum":
        return np.zeros((), dtype)
    if is_float(np.dtype(dtype)):
        return np.asarray(-np.inf if kind == "max" else np.inf, dtype)
    if np.dtype(dtype) == np.bool_:
        return np.asarray(kind == "min", dtype)
    return np.asarray(np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max, dtype)


def _pool_last_axes(call: Call, value: Value, kind: str, slid: list[int], attributes: dict[str, Any]) -> Operand:
    """Bring the axes into the order (one, another, windowed ...), which is what ONNX pools, and back."""
    rest = [axis for axis in range(value.rank) if axis not in slid]
    order = [*rest, *slid]
    moved = call.permuted(value, order)
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
    return call.permuted(pooled, [int(axis) for axis in np.argsort(order)])


def _pooled(call: Call, moved: Operand, kind: str, dtype: np.dtype[Any], attributes: dict[str, Any]) -> str:
    if kind == "max":
        return call.node("MaxPool", moved, **attributes)
    if kind == "min":
        return call.node("Neg", call.node("MaxPool", call.node("Neg", moved), **attributes))
    mean = call.node("AveragePool", moved, count_include_pad=1, **attributes)
    return call.node("Mul", mean, call.scalar(_product(attributes["kernel_shape"]), dtype))


def _moved(call: Call, value: Value, order: Sequence[int]) -> Value:
    shape = tuple(value.shape[axis] for axis in order)
    moved = call.permuted(value, order)
    if isinstance(moved, Value):
        return moved
    return Value(shape=shape, dtype=value.dtype, name=moved)


def _named(value: Value, name: str) -> Value:
    return Value(shape=value.shape, dtype=value.dtype, name=name)


def _static_pairs(call: Call, padding: Any) -> list[tuple[int, int]]:
    pairs = list(padding)
    if not all(is_number(amount) for pair in pairs for amount in pair):
        raise call.refuse("its padding depends on a free size", received=pairs)
    return [(int(low), int(high)) for low, high in pairs]


def _product(sizes: Sequence[Any]) -> Any:
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
