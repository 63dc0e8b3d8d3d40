"""Primitives that compare, also in the total order in which -0 comes before 0 and NaN after all numbers."""

from __future__ import annotations

from functools import partial

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32"}


def _compare(call: Call, op: str, *, negate: bool = False) -> list[Operand]:
    operands: list[Operand] = list(call.inputs)
    name = call.inputs[0].dtype.name
    if (name in _NARROW and op != "Equal") or (name == "bool" and op != "Equal"):
        operands = [call.cast(operand, _NARROW.get(name, "int32")) for operand in operands]
    result = call.node(op, *operands)
    return [call.node("Not", result) if negate else result]


def _total_order(call: Call, *, or_equal: bool) -> list[Operand]:
    """Compare in the order in which -0 comes before 0, and NaN after all numbers."""
    first, second = reversed(call.inputs) if or_equal else call.inputs
    if not is_float(first.dtype):
        return _compare(call, "LessOrEqual" if or_equal else "Less")
    only_second = call.node("And", call.node("Not", call.node("IsNaN", first)), call.node("IsNaN", second))
    signs = call.node("And", is_negative(call, first), call.node("Not", is_negative(call, second)))
    zeros = call.node("And", call.node("Equal", first, second), signs)
    is_less = call.node("Or", call.node("Less", first, second), call.node("Or", only_second, zeros))
    return [call.node("Not", is_less) if or_equal else is_less]


def _total_equality(call: Call) -> list[Operand]:
    """Tell whether two values are the same one: NaN is, -0 and 0 are not."""
    first, second = call.inputs
    same = call.node("Equal", first, second)
    if not is_float(first.dtype):
        return [same]
    signs = call.node("Xor", is_negative(call, first), is_negative(call, second))
    both_nan = call.node("And", call.node("IsNaN", first), call.node("IsNaN", second))
    return [call.node("Or", both_nan, call.node("And", same, call.node("Not", signs)))]


def is_negative(call: Call, value: Value) -> str:
    """Tell the sign bit of a number, of zero too."""
    zero = call.scalar(0, value.dtype)
    is_below = call.node("Less", value, zero)
    is_minus_zero = call.node(
        "And", call.node("Equal", value, zero), call.node("Less", call.node("Reciprocal", value), zero)
    )
    return call.node("Or", is_below, is_minus_zero)


HANDLERS: dict[str, Handler] = {
    "eq": partial(_compare, op="Equal"),
    "ne": partial(_compare, op="Equal", negate=True),
    "lt": partial(_compare, op="Less"),
    "le": partial(_compare, op="LessOrEqual"),
    "gt": partial(_compare, op="Greater"),
    "ge": partial(_compare, op="GreaterOrEqual"),
    "lt_to": partial(_total_order, or_equal=False),
    "le_to": partial(_total_order, or_equal=True),
    "eq_to": _total_equality,
}
