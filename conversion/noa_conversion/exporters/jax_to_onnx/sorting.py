"""Primitives that order: stable sorts by TopK of all elements, by several keys one after the other, least one first.

JAX puts NaN last when it sorts, and takes it for the largest when it looks for the largest ones; a runtime's TopK may
do anything with one. So NaN is written as the largest number, and which of those it was is a key of its own.

To a sort -0 and 0 are equal; where JAX looks for the largest ones (`top_k`), -0 is below 0, which
decides what is found after `jnp.round`. There every -0 is put behind the other numbers before the largest are looked
for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

# What runtimes sort is these, and every other real dtype fits into one of them.
_SORTED = {
    "float32": "float32",
    "float64": "float64",
    "float16": "float32",
    "bfloat16": "float32",
    "int64": "int64",
    "uint32": "int64",
}


def _sort(call: Call) -> list[Operand]:
    axis = int(call.params["dimension"])
    num_keys = int(call.params["num_keys"])
    values = list(call.inputs)
    size = call.graph.shape([values[0].shape[axis]])
    if len(values) == 1 and num_keys == 1:
        return [_sort_alone(call, values[0], size, axis)]
    order: str | None = None
    for value in reversed(values[:num_keys]):
        for key in _keys(call, value):
            placed = key if order is None else call.node("GatherElements", key, order, axis=axis)
            _, places = call.graph.node_outputs("TopK", placed, size, outputs=2, axis=axis, largest=0, sorted=1)
            order = places if order is None else call.node("GatherElements", order, places, axis=axis)
    return [call.node("GatherElements", value, str(order), axis=axis) for value in values]


def _sort_alone(call: Call, value: Value, size: str, axis: int) -> Operand:
    """Sort one array: the places of equal numbers do not matter, and as many NaN as there were are written last."""
    key = _number(call, value)
    ordered = call.graph.node_outputs("TopK", key, size, outputs=2, axis=axis, largest=0, sorted=1)[0]
    result = call.cast_from(ordered, _sorted_dtype(value.dtype), value.dtype)
    if not is_float(value.dtype):
        return result
    axes = call.graph.integers([axis])
    is_nan = call.node("IsNaN", value)
    numbers = call.node("ReduceSum", call.cast(call.node("Not", is_nan), "int64"), axes, keepdims=1)
    count = call.node("CumSum", call.node("Expand", call.graph.constant(np.ones(value.rank * (1,), np.int64)),
                                          call.node("Shape", value)),
                      call.graph.constant(np.int64(axis)))  # fmt: skip
    return call.node("Where", call.node("Greater", count, numbers), call.scalar(np.nan, value.dtype), result)


def _keys(call: Call, value: Value) -> list[Operand]:
    """Return what to sort by, the least important first."""
    if not is_float(value.dtype):
        return [_number(call, value)]
    return [call.cast(call.node("IsNaN", value), "int32"), _number(call, value)]


def _number(call: Call, value: Value) -> Operand:
    """Return the values in a dtype that is sorted, NaN as infinity."""
    number: Operand = call.cast_to(value, _sorted_dtype(value.dtype))
    if not is_float(value.dtype):
        return number
    return call.node("Where", call.node("IsNaN", value), call.scalar(np.inf, _sorted_dtype(value.dtype)), number)


def _sorted_dtype(dtype: Any) -> str:
    return _SORTED.get(np.dtype(dtype).name, "int32")


def _top_k(call: Call) -> list[Operand]:
    """Of equal numbers the first comes first, in both. NaN comes before infinity, among those that are found."""
    (value,) = call.inputs
    axis = int(call.params.get("axis", value.rank - 1))
    count = call.graph.shape([call.params["k"]])
    if not is_float(value.dtype):
        number = call.cast_to(value, _sorted_dtype(value.dtype))
        found, order = call.graph.node_outputs("TopK", number, count, outputs=2, axis=axis, largest=1, sorted=1)
        return [call.cast_from(found, _sorted_dtype(value.dtype), value.dtype), call.cast(order, call.outputs[1].dtype)]
    first = _zeros_before_minus_zeros(call, value, axis)
    number = call.node("GatherElements", _number(call, value), first, axis=axis)
    _, order = call.graph.node_outputs("TopK", number, count, outputs=2, axis=axis, largest=1, sorted=1)
    order = call.node("GatherElements", first, order, axis=axis)
    found = call.node("GatherElements", value, order, axis=axis)
    is_nan = call.cast(call.node("IsNaN", found), "int32")
    _, places = call.graph.node_outputs("TopK", is_nan, count, outputs=2, axis=axis, largest=1, sorted=1)
    order = call.node("GatherElements", order, places, axis=axis)
    return [call.node("GatherElements", found, places, axis=axis), call.cast(order, call.outputs[1].dtype)]


def _zeros_before_minus_zeros(call: Call, value: Value, axis: int) -> str:
    """Return an order that has every -0 last and else is the given one: of equal numbers the first is found."""
    dtype = _sorted_dtype(value.dtype)
    number, zero = call.cast_to(value, dtype), call.scalar(0, dtype)
    is_below = call.node("Less", call.node("Reciprocal", number), zero)
    is_minus_zero = call.cast(call.node("And", call.node("Equal", number, zero), is_below), "int32")
    size = call.graph.shape([value.shape[axis]])
    _, order = call.graph.node_outputs("TopK", is_minus_zero, size, outputs=2, axis=axis, largest=0, sorted=1)
    return order


def _approximate_top_k(call: Call) -> list[Operand]:
    """The exact ones satisfy any recall that was asked for; XLA orders equal ones by its own lights for one or all."""
    (value,) = call.inputs
    if not call.params["is_max_k"] or int(call.params["reduction_dimension"]) not in (-1, value.rank - 1):
        raise call.refuse("it looks for the smallest, or not along the last axis")
    return _top_k(call)


HANDLERS: dict[str, Handler] = {"sort": _sort, "top_k": _top_k, "approx_top_k": _approximate_top_k}
