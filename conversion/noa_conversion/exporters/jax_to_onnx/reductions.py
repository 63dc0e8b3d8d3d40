"""Primitives that reduce, accumulate or order along axes."""

from __future__ import annotations

from functools import partial

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32", "uint32": "int64"}


def _reduce(call: Call, op: str) -> list[Operand]:
    (value,) = call.inputs
    axes = [int(axis) for axis in call.params["axes"]]
    if not axes:
        return [value]
    wide = _NARROW.get(value.dtype.name)
    operand: Operand = value if wide is None else call.cast(value, wide)
    result = call.node(op, operand, call.graph.integers(axes), keepdims=0)
    if op in ("ReduceMax", "ReduceMin") and value.dtype.kind == "f":
        result = _keep_nan(call, value, axes, result)
    return [result if wide is None else call.cast(result, value.dtype)]


def _keep_nan(call: Call, value: Value, axes: list[int], result: str) -> str:
    """Write NaN where any element is one: onnxruntime's extremes may skip it, JAX's never do."""
    is_nan = call.cast(call.node("IsNaN", value), "int32")
    has_nan = call.cast(call.node("ReduceMax", is_nan, call.graph.integers(axes), keepdims=0), "bool")
    return call.node("Where", has_nan, call.scalar(np.nan, value.dtype), result)


def _reduce_bool(call: Call, op: str) -> list[Operand]:
    (value,) = call.inputs
    axes = [int(axis) for axis in call.params["axes"]]
    if value.dtype != np.bool_:
        raise call.refuse("it combines bits of integers", received=value.dtype.name)
    counted = call.node(op, call.cast(value, "int32"), call.graph.integers(axes), keepdims=0)
    return [call.cast(counted, "bool") if axes else value]


def _arg(call: Call, op: str) -> list[Operand]:
    (value,) = call.inputs
    (axis,) = call.params["axes"]
    wide = {**_NARROW, "bool": "int32", "int64": "int64"}.get(value.dtype.name)
    operand: Operand = value if wide is None else call.cast(value, wide)
    if value.dtype.kind == "f":  # JAX counts a NaN as the extreme
        limit = np.inf if op == "ArgMax" else -np.inf
        is_nan = call.node("IsNaN", value)
        shown = call.node("ReduceMax", call.cast(is_nan, "int32"), call.graph.integers([int(axis)]), keepdims=1)
        marked = call.node("Where", is_nan, call.scalar(limit, value.dtype), call.scalar(0, value.dtype))
        operand = call.node("Where", call.cast(shown, "bool"), marked, value)
    found = call.node(op, operand, axis=int(axis), keepdims=0, select_last_index=0)
    return [call.cast(found, call.params["index_dtype"])]


def _cumulative_sum(call: Call) -> list[Operand]:
    (value,) = call.inputs
    wide = _NARROW.get(value.dtype.name)
    operand: Operand = value if wide is None else call.cast(value, wide)
    axis = call.graph.constant(np.int64(call.params["axis"]))
    result = call.node("CumSum", operand, axis, reverse=int(bool(call.params["reverse"])))
    return [result if wide is None else call.cast(result, value.dtype)]


def _sort(call: Call) -> list[Operand]:
    """Sort by the first operand: TopK of all elements, smallest first; of equal ones the first stays first."""
    axis = int(call.params["dimension"])
    first = call.inputs[0]
    size = first.shape[axis]
    if int(call.params["num_keys"]) != 1 or not is_number(size):
        raise call.refuse("it sorts by several keys or along a free axis")
    if first.dtype.name not in ("float32", "float64", "int32", "int64"):
        raise call.refuse("its keys have a dtype that onnxruntime does not sort", received=first.dtype.name)
    attributes = {"axis": axis, "largest": 0, "sorted": 1}
    values, order = call.graph.node_outputs("TopK", first, call.graph.integers([size]), outputs=2, **attributes)
    rest = [call.node("GatherElements", value, order, axis=axis) for value in call.inputs[1:]]
    return [values, *rest]


def _top_k(call: Call) -> list[Operand]:
    (value,) = call.inputs
    axis = int(call.params.get("axis", value.rank - 1))
    count = call.graph.integers([int(call.params["k"])])
    values, order = call.graph.node_outputs("TopK", value, count, outputs=2, axis=axis, largest=1, sorted=1)
    return [values, call.cast(order, call.outputs[1].dtype)]


HANDLERS: dict[str, Handler] = {
    "reduce_sum": partial(_reduce, op="ReduceSum"),
    "reduce_max": partial(_reduce, op="ReduceMax"),
    "reduce_min": partial(_reduce, op="ReduceMin"),
    "reduce_prod": partial(_reduce, op="ReduceProd"),
    "reduce_and": partial(_reduce_bool, op="ReduceMin"),
    "reduce_or": partial(_reduce_bool, op="ReduceMax"),
    "argmax": partial(_arg, op="ArgMax"),
    "argmin": partial(_arg, op="ArgMin"),
    "cumsum": _cumulative_sum,
    "sort": _sort,
    "top_k": _top_k,
}
