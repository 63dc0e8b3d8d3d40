"""Primitives of bits and truth: logic, and shifts of integers."""

from __future__ import annotations

from functools import partial

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler


def _logical(call: Call, logical: str, bitwise: str) -> list[Operand]:
    return [call.node(logical if call.inputs[0].dtype == np.bool_ else bitwise, *call.inputs)]


def _not(call: Call) -> list[Operand]:
    return _logical(call, "Not", "BitwiseNot")


def _shift(call: Call, direction: str) -> list[Operand]:
    """Shift as unsigned integers of 32 bits, which runtimes have; by as much as the width or more gives 0."""
    value, amount = call.inputs
    bits = value.dtype.itemsize * 8
    if bits == 64:
        raise call.refuse("it shifts integers of 64 bits", received=value.dtype.name)
    own = np.dtype(f"uint{bits}")
    operand = call.cast(call.cast_to(value, own), "uint32") if bits < 32 else call.cast_to(value, own)
    steps = call.cast(call.cast_to(amount, own), "uint32") if bits < 32 else call.cast_to(amount, own)
    highest = call.scalar(bits - 1, "uint32")
    is_known = amount.constant is not None and ((amount.constant >= 0) & (amount.constant < bits)).all()
    if is_known:
        return [call.cast_from(call.node("BitShift", operand, steps, direction=direction), "uint32", value.dtype)]
    is_far = call.node("Greater", steps, highest)
    shifted = call.node("BitShift", operand, call.node("Min", steps, highest), direction=direction)
    kept = call.node("Where", is_far, call.scalar(0, "uint32"), shifted)
    return [call.cast_from(kept, "uint32", value.dtype)]


def _shift_arithmetic(call: Call) -> list[Operand]:
    """A negative number is shifted as its complement: `~(~x >> n)`; an unsigned one counts as signed."""
    value, amount = call.inputs
    if value.dtype.itemsize == 8:
        raise call.refuse("it shifts integers of 64 bits", received=value.dtype.name)
    bits = value.dtype.itemsize * 8
    signed = call.cast_to(value, f"int{bits}")
    wide = signed if bits == 32 else call.cast(signed, "int32")
    is_negative = call.node("Less", wide, call.scalar(0, "int32"))
    magnitude = call.cast(call.node("Where", is_negative, call.node("BitwiseNot", wide), wide), "uint32")
    steps = call.cast(call.cast_to(amount, f"uint{bits}"), "uint32")
    shifted = call.node(
        "BitShift", magnitude, call.node("Min", steps, call.scalar(bits - 1, "uint32")), direction="RIGHT"
    )
    back = call.cast(shifted, "int32")
    return [call.cast_from(call.node("Where", is_negative, call.node("BitwiseNot", back), back), "int32", value.dtype)]


HANDLERS: dict[str, Handler] = {
    "and": partial(_logical, logical="And", bitwise="BitwiseAnd"),
    "or": partial(_logical, logical="Or", bitwise="BitwiseOr"),
    "xor": partial(_logical, logical="Xor", bitwise="BitwiseXor"),
    "not": _not,
    "shift_left": partial(_shift, direction="LEFT"),
    "shift_right_logical": partial(_shift, direction="RIGHT"),
    "shift_right_arithmetic": _shift_arithmetic,
}
