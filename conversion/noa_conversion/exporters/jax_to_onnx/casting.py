"""Primitives that round: to whole numbers, to other dtypes, to formats of fewer bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float, limits
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_TO_NEAREST_EVEN = 1


def _round(call: Call) -> list[Operand]:
    (value,) = call.inputs
    if int(call.params["rounding_method"]) == _TO_NEAREST_EVEN:
        return [call.node("Round", value)]
    # Halves go away from zero. Adding 0.5 would round 0.49999997 up, so the fraction is compared instead.
    magnitude = call.node("Abs", value)
    floor = call.node("Floor", magnitude)
    is_up = call.node("GreaterOrEqual", call.node("Sub", magnitude, floor), call.scalar(0.5, value.dtype))
    rounded = call.node("Add", floor, call.cast(is_up, value.dtype))
    return [call.node("Mul", call.node("Sign", value), rounded)]


def _convert(call: Call) -> list[Operand]:
    (value,) = call.inputs
    target = np.dtype(call.params["new_dtype"])
    if is_float(value.dtype) and target.kind in "iu":
        return [_saturated(call, value, target)]
    return [call.cast(value, target)]


def _saturated(call: Call, value: Value, target: np.dtype[Any]) -> str:
    """Out of range and NaN are undefined in ONNX; XLA takes the nearest integer there is, and 0 for NaN."""
    source = np.dtype("float64" if value.dtype.name == "float64" else "float32")
    given = call.cast_to(value, source)
    bounds = np.iinfo(target)
    # The largest float that is still in range: 2**31 - 1 itself is none in 24 bits.
    top = source.type(bounds.max)
    if float(top) > bounds.max:
        top = np.nextafter(top, source.type(0))
    number = call.node("Where", call.node("IsNaN", given), call.scalar(0, source), given)
    inside = call.node("Clip", number, call.scalar(float(bounds.min), source), call.scalar(float(top), source))
    above = call.node("Greater", number, call.scalar(float(top), source))
    highest = call.graph.constant(np.asarray(bounds.max, target))
    return call.node("Where", above, highest, call.cast(inside, target))


def _reduce_precision(call: Call) -> list[Operand]:
    (value,) = call.inputs
    bits = (int(call.params["exponent_bits"]), int(call.params["mantissa_bits"]))
    own = limits(value.dtype)
    if bits == (own.nexp, own.nmant):
        return [value]
    if bits == (8, 7) and value.dtype == np.float32:
        return [call.cast(call.cast(value, "bfloat16"), value.dtype)]
    raise call.refuse("it rounds to another format", received=bits)


HANDLERS: dict[str, Handler] = {
    "round": _round,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
}
