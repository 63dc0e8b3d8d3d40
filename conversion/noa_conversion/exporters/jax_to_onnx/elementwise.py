"""Primitives that work element by element.

onnxruntime computes arithmetic in 32 and 64 bits only; narrower integers are computed in 32 bits and cast back, which
gives the same bits, since the low bits of sums, differences and products do not depend on the high ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_TO_NEAREST_EVEN = 1
_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32", "uint32": "int64"}


def _unary(call: Call, op: str) -> list[Operand]:
    return [_in_supported(call, op, list(call.inputs))]


def _binary(call: Call, op: str, **attributes: Any) -> list[Operand]:
    return [_in_supported(call, op, list(call.inputs), **attributes)]


def _in_supported(call: Call, op: str, inputs: list[Value], **attributes: Any) -> str:
    dtype = inputs[0].dtype
    wide = _NARROW.get(dtype.name)
    if wide is None:
        return call.node(op, *inputs, **attributes)
    return call.cast(call.node(op, *(call.cast(value, wide) for value in inputs), **attributes), dtype)


def _compare(call: Call, op: str, *, negate: bool = False) -> list[Operand]:
    operands: list[Operand] = list(call.inputs)
    name = call.inputs[0].dtype.name
    if name in _NARROW or (name == "bool" and op != "Equal"):
        operands = [call.cast(operand, _NARROW.get(name, "int32")) for operand in operands]
    result = call.node(op, *operands)
    return [call.node("Not", result) if negate else result]


def _logical(call: Call, logical: str, bitwise: str) -> list[Operand]:
    return [call.node(logical if call.inputs[0].dtype == np.bool_ else bitwise, *call.inputs)]


def _extreme(call: Call, op: str) -> list[Operand]:
    if call.inputs[0].dtype == np.bool_:
        return [call.node("Or" if op == "Max" else "And", *call.inputs)]
    return [_in_supported(call, op, list(call.inputs))]


def _divide(call: Call) -> list[Operand]:
    return [_in_supported(call, "Div", list(call.inputs))]  # integers: towards zero, in both


def _power(call: Call) -> list[Operand]:
    base, exponent = call.inputs
    if base.dtype.kind != "f":
        raise call.refuse("integer powers with a computed exponent overflow differently", received=base.dtype.name)
    return [call.node("Pow", base, exponent)]


def _integer_power(call: Call) -> list[Operand]:
    (value,) = call.inputs
    power = int(call.params["y"])
    if power == 2:
        return [_in_supported(call, "Mul", [value, value])]
    if power == -1 and value.dtype.kind == "f":
        return [call.node("Reciprocal", value)]
    if value.dtype.kind != "f":
        result: Operand = value
        if power < 1:
            raise call.refuse("an integer power below 1 of integers", received=power)
        for _ in range(power - 1):
            result = call.node("Mul", result, value)
        return [result]
    return [call.node("Pow", value, call.scalar(power, value.dtype))]


def _square(call: Call) -> list[Operand]:
    (value,) = call.inputs
    return [_in_supported(call, "Mul", [value, value])]


def _rsqrt(call: Call) -> list[Operand]:
    return [call.node("Reciprocal", call.node("Sqrt", *call.inputs))]


def _cbrt(call: Call) -> list[Operand]:
    (value,) = call.inputs
    root = call.node("Pow", call.node("Abs", value), call.scalar(1 / 3, value.dtype))
    return [call.node("Mul", call.node("Sign", value), root)]


def _exp2(call: Call) -> list[Operand]:
    (value,) = call.inputs
    return [call.node("Pow", call.scalar(2, value.dtype), value)]


def _log1p(call: Call) -> list[Operand]:
    """Source: Kahan's correction, `log(u) * (x / (u - 1))` with `u = 1 + x`; exact where `u` rounds to 1."""
    (value,) = call.inputs
    one = call.scalar(1, value.dtype)
    shifted = call.node("Add", value, one)
    is_tiny = call.node("Equal", shifted, one)
    rest = call.node("Where", is_tiny, one, call.node("Sub", shifted, one))
    corrected = call.node("Mul", call.node("Log", shifted), call.node("Div", value, rest))
    is_infinite = call.node("IsInf", shifted)
    return [call.node("Where", is_tiny, value, call.node("Where", is_infinite, shifted, corrected))]


def _expm1(call: Call) -> list[Operand]:
    """Source: Kahan's correction, `(u - 1) * x / log(u)` with `u = exp(x)`; used near 0 only, where `u - 1` cancels."""
    (value,) = call.inputs
    one = call.scalar(1, value.dtype)
    power = call.node("Exp", value)
    plain = call.node("Sub", power, one)
    is_near = call.node("Less", call.node("Abs", value), call.scalar(0.5, value.dtype))
    is_one = call.node("Equal", power, one)
    logarithm = call.node("Where", call.node("And", is_near, call.node("Not", is_one)), call.node("Log", power), one)
    corrected = call.node("Where", is_one, value, call.node("Div", call.node("Mul", plain, value), logarithm))
    return [call.node("Where", is_near, corrected, plain)]


def _erfc(call: Call) -> list[Operand]:
    (value,) = call.inputs
    return [call.node("Sub", call.scalar(1, value.dtype), call.node("Erf", value))]


def _is_finite(call: Call) -> list[Operand]:
    (value,) = call.inputs
    return [call.node("Not", call.node("Or", call.node("IsNaN", value), call.node("IsInf", value)))]


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


def _not(call: Call) -> list[Operand]:
    return _logical(call, "Not", "BitwiseNot")


def _clamp(call: Call) -> list[Operand]:
    low, value, high = call.inputs
    wide = _NARROW.get(value.dtype.name)
    operands: list[Operand] = [low, value, high]
    if wide is not None:
        operands = [call.cast(operand, wide) for operand in operands]
    result = call.node("Min", call.node("Max", operands[1], operands[0]), operands[2])
    return [result if wide is None else call.cast(result, value.dtype)]


def _select(call: Call) -> list[Operand]:
    which, *cases = call.inputs
    if which.dtype == np.bool_:
        return [call.node("Where", which, cases[1], cases[0])]
    result: Operand = cases[-1]
    for index in range(len(cases) - 2, -1, -1):
        is_this = call.node("LessOrEqual", call.cast(which, "int32"), call.scalar(index, "int32"))
        result = call.node("Where", is_this, cases[index], result)
    return [result]


def _convert(call: Call) -> list[Operand]:
    (value,) = call.inputs
    target = np.dtype(call.params["new_dtype"])
    if value.dtype.kind == "f" and target.kind in "iu":
        return [_saturated(call, value, target)]
    return [call.cast(value, target)]


def _saturated(call: Call, value: Value, target: np.dtype[Any]) -> str:
    """Out of range and NaN are undefined in ONNX; XLA takes the nearest integer there is, and 0 for NaN."""
    limits = np.iinfo(target)
    # The largest float that is still in range: 2**31 - 1 itself is none in 24 bits.
    top = value.dtype.type(min(limits.max, np.finfo(value.dtype).max))
    if float(top) > limits.max:
        top = np.nextafter(top, value.dtype.type(0))
    low = max(limits.min, np.finfo(value.dtype).min)
    number = call.node("Where", call.node("IsNaN", value), call.scalar(0, value.dtype), value)
    inside = call.node("Clip", number, call.scalar(low, value.dtype), call.scalar(float(top), value.dtype))
    above = call.node("Greater", number, call.scalar(float(top), value.dtype))
    highest = call.graph.constant(np.asarray(limits.max, target))
    return call.node("Where", above, highest, call.cast(inside, target))


def _identity(call: Call) -> list[Operand]:
    return list(call.inputs)


def _reduce_precision(call: Call) -> list[Operand]:
    bits = (call.params["exponent_bits"], call.params["mantissa_bits"])
    if bits != {"float32": (8, 23), "float64": (11, 52), "float16": (5, 10)}.get(call.inputs[0].dtype.name):
        raise call.refuse("it rounds to another format", received=bits)
    return list(call.inputs)


_UNARY = {
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
}
_IDENTITIES = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "sharding_constraint", "pvary")

HANDLERS: dict[str, Handler] = {
    **{primitive: partial(_unary, op=op) for primitive, op in _UNARY.items()},
    **dict.fromkeys(_IDENTITIES, _identity),
    "add": partial(_binary, op="Add"),
    "add_any": partial(_binary, op="Add"),
    "sub": partial(_binary, op="Sub"),
    "mul": partial(_binary, op="Mul"),
    "div": _divide,
    "rem": partial(_binary, op="Mod", fmod=1),
    "pow": _power,
    "integer_pow": _integer_power,
    "square": _square,
    "max": partial(_extreme, op="Max"),
    "min": partial(_extreme, op="Min"),
    "eq": partial(_compare, op="Equal"),
    "ne": partial(_compare, op="Equal", negate=True),
    "lt": partial(_compare, op="Less"),
    "le": partial(_compare, op="LessOrEqual"),
    "gt": partial(_compare, op="Greater"),
    "ge": partial(_compare, op="GreaterOrEqual"),
    "and": partial(_logical, logical="And", bitwise="BitwiseAnd"),
    "or": partial(_logical, logical="Or", bitwise="BitwiseOr"),
    "xor": partial(_logical, logical="Xor", bitwise="BitwiseXor"),
    "not": _not,
    "rsqrt": _rsqrt,
    "cbrt": _cbrt,
    "exp2": _exp2,
    "log1p": _log1p,
    "expm1": _expm1,
    "erfc": _erfc,
    "is_finite": _is_finite,
    "round": _round,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
}
