"""Primitives that accumulate along an axis: sums by CumSum, the others by doubling, or by Scan along a free axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32", "uint32": "int32"}
_DOUBLED_SIZE = 1 << 16


def _sum(call: Call) -> list[Operand]:
    (value,) = call.inputs
    wide = _NARROW.get(value.dtype.name)
    operand: Operand = value if wide is None else call.cast(value, wide)
    axis = call.graph.constant(np.int64(call.params["axis"]))
    result = call.node("CumSum", operand, axis, reverse=int(bool(call.params["reverse"])))
    return [result if wide is None else call.cast(result, value.dtype)]


def _accumulate(call: Call, name: str) -> list[Operand]:
    from jax import lax
    from jax import numpy as jnp

    (value,) = call.inputs
    combine: Callable[[Any, Any], Any] = {
        "cumprod": jnp.multiply,
        "cummax": jnp.maximum,
        "cummin": jnp.minimum,
        "cumlogsumexp": jnp.logaddexp,
    }[name]
    axis, is_reversed = int(call.params["axis"]), bool(call.params["reverse"])
    size = value.shape[axis]

    def doubled(x: Any) -> Any:
        """Combine each element with the one 1, 2, 4, ... places before it."""
        step = 1
        while step < size:
            ends = (-step, step) if is_reversed else (step, -step)
            pads = [(*ends, 0) if index == axis else (0, 0, 0) for index in range(x.ndim)]
            x = combine(x, lax.pad(x, _neutral(name, x.dtype), pads))
            step *= 2
        return x

    def scanned(x: Any) -> Any:
        lines = jnp.moveaxis(x, axis, 0)
        first = jnp.full(lines.shape[1:], _neutral(name, x.dtype))

        def step(total: Any, line: Any) -> tuple[Any, Any]:
            total = combine(total, line)
            return total, total

        return jnp.moveaxis(lax.scan(step, first, lines, reverse=is_reversed)[1], 0, axis)

    is_doubled = is_number(size) and size <= _DOUBLED_SIZE
    return list(call.trace(doubled if is_doubled else scanned, value))


def _neutral(name: str, dtype: Any) -> Any:
    """Return what combines with any number to that number."""
    if name == "cumprod":
        return np.ones((), dtype)
    if is_float(np.dtype(dtype)):
        return np.asarray(np.inf if name == "cummin" else -np.inf, dtype)
    if np.dtype(dtype) == np.bool_:
        return np.asarray(name == "cummin", dtype)
    bounds = np.iinfo(dtype)
    return np.asarray(bounds.max if name == "cummin" else bounds.min, dtype)


HANDLERS: dict[str, Handler] = {
    "cumsum": _sum,
    **{name: partial(_accumulate, name=name) for name in ("cumprod", "cummax", "cummin", "cumlogsumexp")},
}
