"""Primitives that work element by element.

Runtimes compute arithmetic in 32 and 64 bits only; narrower integers are computed in 32 bits and cast back, which gives
the same bits, since the low bits of sums, differences and products do not depend on the high ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.comparisons import is_negative
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32"}


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


def _extreme(call: Call, op: str) -> list[Operand]:
    if call.inputs[0].dtype == np.bool_:
        return [call.node("Or" if op == "Max" else "And", *call.inputs)]
    return [_in_supported(call, op, list(call.inputs))]


def _negate(call: Call) -> list[Operand]:
    (value,) = call.inputs
    if value.dtype.kind == "u":
        return [_in_supported(call, "Sub", [_zero(value.dtype), value])]
    return [_in_supported(call, "Neg", [value])]


def _divide(call: Call) -> list[Operand]:
    value, divisor = call.inputs
    if is_float(value.dtype):
        return [call.node("Div", value, divisor)]
    dtype = value.dtype
    by_zero = call.scalar(-1 if dtype.kind == "i" else np.iinfo(dtype).max, dtype)
    return [_without_trap(call, lambda top, bottom: call.node("Div", top, bottom), by_zero)]  # both: towards zero


def _remainder(call: Call) -> list[Operand]:
    value, _ = call.inputs
    if is_float(value.dtype):
        return [call.node("Mod", *call.inputs, fmod=1)]
    return [_without_trap(call, lambda top, bottom: call.node("Mod", top, bottom, fmod=1), value)]


def _without_trap(call: Call, divide: Callable[[Operand, Operand], str], by_zero: Operand) -> str:
    """Divide integers as XLA does, which gives a value where a processor traps: by zero, and the smallest by -1."""
    value, divisor = call.inputs
    dtype = value.dtype
    if divisor.constant is not None and not np.isin(divisor.constant, (0, -1)).any():
        return _in_wider(call, divide, value, divisor, _NARROW.get(dtype.name))
    is_zero = call.node("Equal", divisor, call.scalar(0, dtype))
    safe = call.node("Where", is_zero, call.scalar(1, dtype), divisor)
    wide = {**_NARROW, "int32": "int64"}.get(dtype.name)
    return call.node("Where", is_zero, by_zero, _in_wider(call, divide, value, safe, wide))


def _in_wider(
    call: Call, divide: Callable[[Operand, Operand], str], value: Operand, divisor: Operand, wide: str | None
) -> str:
    if wide is None:
        return divide(value, divisor)
    return call.cast(divide(call.cast(value, wide), call.cast(divisor, wide)), call.inputs[0].dtype)


def _zero(dtype: Any) -> Value:
    return Value(shape=(), dtype=dtype, constant=np.zeros((), dtype))


def _power(call: Call) -> list[Operand]:
    base, exponent = call.inputs
    return [call.node("Pow", base, call.cast_to(exponent, base.dtype))]


def _integer_power(call: Call) -> list[Operand]:
    (value,) = call.inputs
    power = int(call.params["y"])
    if power == 2:
        return [_in_supported(call, "Mul", [value, value])]
    if power == -1 and is_float(value.dtype):
        return [call.node("Reciprocal", value)]
    if not is_float(value.dtype):
        if power < 1:
            raise call.refuse("an integer power below 1 of integers", received=power)
        wide = _NARROW.get(value.dtype.name)
        factor: Operand = value if wide is None else call.cast(value, wide)
        result = factor
        for _ in range(power - 1):
            result = call.node("Mul", result, factor)
        return [result if wide is None else call.cast(result, value.dtype)]
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
    is_infinite = call.node("IsInf", shifted, detect_negative=0)  # at minus infinity it is no number, as `Log` says
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


def identity(call: Call) -> list[Operand]:
    """Give the inputs."""
    return list(call.inputs)


def _atan2(call: Call) -> list[Operand]:
    """Source: C99 F.9.1.4; the quadrant follows from the signs, and the sign of a zero is that of its reciprocal."""
    y, x = call.inputs
    dtype = x.dtype
    zero, pi = call.scalar(0, dtype), call.scalar(np.pi, dtype)
    negative_x, negative_y = (is_negative(call, value) for value in (x, y))
    size_x, size_y = (call.node("Abs", value) for value in (x, y))
    both_infinite = call.node("And", call.node("IsInf", x), call.node("IsInf", y))
    both_zero = call.node("And", call.node("Equal", x, zero), call.node("Equal", y, zero))
    ratio = call.node("Where", both_infinite, call.scalar(1, dtype), call.node("Div", size_y, size_x))
    angle = call.node("Atan", call.node("Where", both_zero, zero, ratio))
    angle = call.node("Where", negative_x, call.node("Sub", pi, angle), angle)
    return [call.node("Where", negative_y, call.node("Neg", angle), angle)]


_UNARY = {
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
IDENTITIES = (
    "copy",
    "copy_p",
    "stop_gradient",
    "optimization_barrier",
    "name",
    "sharding_constraint",
    "pvary",
    "device_put",
)
"""Primitives that give what they take, and the layout of devices aside mean nothing."""

HANDLERS: dict[str, Handler] = {
    **{primitive: partial(_unary, op=op) for primitive, op in _UNARY.items()},
    **dict.fromkeys(IDENTITIES, identity),
    "add": partial(_binary, op="Add"),
    "add_any": partial(_binary, op="Add"),
    "sub": partial(_binary, op="Sub"),
    "mul": partial(_binary, op="Mul"),
    "neg": _negate,
    "div": _divide,
    "rem": _remainder,
    "atan2": _atan2,
    "pow": _power,
    "integer_pow": _integer_power,
    "square": _square,
    "max": partial(_extreme, op="Max"),
    "min": partial(_extreme, op="Min"),
    "rsqrt": _rsqrt,
    "cbrt": _cbrt,
    "exp2": _exp2,
    "log1p": _log1p,
    "expm1": _expm1,
    "erfc": _erfc,
    "is_finite": _is_finite,
    "clamp": _clamp,
    "select_n": _select,
}
