"""Primitives that reduce axes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32", "uint32": "int64"}


def _reduce(call: Call, op: str) -> list[Operand]:
    (value,) = call.inputs
    axes = [int(axis) for axis in call.params["axes"]]
    if not axes:
        return [value]
    wide = _NARROW.get(value.dtype.name)
    if value.dtype.name in ("int32", "uint32") and op == "ReduceSum":
        wide = "int64"  # runtimes give the largest number where a sum overflows; XLA leaves the low bits
    if value.dtype.kind == "f" and value.dtype.itemsize == 2 and op in ("ReduceSum", "ReduceProd"):
        wide = "float32"  # as XLA does: one rounding at the end
    operand: Operand = value if wide is None else call.cast(value, wide)
    result = call.node(op, operand, call.graph.integers(axes), keepdims=0)
    if op in ("ReduceMax", "ReduceMin") and is_float(value.dtype):
        result = _keep_nan(call, value, axes, result)
    return [result if wide is None else call.cast(result, value.dtype)]


def _product(call: Call) -> list[Operand]:
    """Multiply integers in pairs: a runtime may go through floats, which lose the low bits that overflow leaves."""
    from jax import lax
    from jax import numpy as jnp

    (value,) = call.inputs
    if is_float(value.dtype):
        return _reduce(call, "ReduceProd")
    axes = [int(axis) for axis in call.params["axes"]]

    def function(x: Any) -> Any:
        lines = jnp.moveaxis(x, axes, range(len(axes)))
        lines = lines.reshape(-1, *lines.shape[len(axes) :])
        if not is_number(lines.shape[0]):
            return lax.scan(lambda total, line: (total * line, None), jnp.ones_like(lines[0]), lines)[0]
        while lines.shape[0] > 1:
            half = lines.shape[0] // 2
            rest = lines[2 * half :]
            lines = jnp.concatenate([lines[:half] * lines[half : 2 * half], rest])
        return lines[0] if lines.shape[0] else jnp.ones(lines.shape[1:], x.dtype)

    return list(call.trace(function, value)) if axes else [value]


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
    if is_float(value.dtype):  # JAX counts a NaN as the extreme
        limit = np.inf if op == "ArgMax" else -np.inf
        is_nan = call.node("IsNaN", value)
        shown = call.node("ReduceMax", call.cast(is_nan, "int32"), call.graph.integers([int(axis)]), keepdims=1)
        marked = call.node("Where", is_nan, call.scalar(limit, value.dtype), call.scalar(0, value.dtype))
        operand = call.node("Where", call.cast(shown, "bool"), marked, value)
    found = call.node(op, operand, axis=int(axis), keepdims=0, select_last_index=0)
    return [call.cast(found, call.params["index_dtype"])]


HANDLERS: dict[str, Handler] = {
    "reduce_sum": partial(_reduce, op="ReduceSum"),
    "reduce_max": partial(_reduce, op="ReduceMax"),
    "reduce_min": partial(_reduce, op="ReduceMin"),
    "reduce_prod": _product,
    "reduce_and": partial(_reduce_bool, op="ReduceMin"),
    "reduce_or": partial(_reduce_bool, op="ReduceMax"),
    "argmax": partial(_arg, op="ArgMax"),
    "argmin": partial(_arg, op="ArgMin"),
}
