"""Division with rounding, and what is left of it, for PyTorch's exporter.

Its own rule divides integers in 32-bit floats and rounds, which is wrong beyond 2**24. ONNX's `Div` of integers rounds
towards zero, as `rounding_mode="trunc"` asks; for `floor` one is taken off where signs differ.

Of floats it takes the floor of the quotient, which is one too many where that was rounded up (`1 / 0.1`), and not what
PyTorch gives for infinities: there `floor` and `remainder` come from `fmod`, as in Python. So they do here.
"""

from __future__ import annotations

from typing import Any, cast

_BOOL, _FLOAT, _INT32, _INT64, _FLOAT16, _BFLOAT16 = 9, 1, 6, 7, 10, 16
_WITH_KERNELS = (_INT32, _INT64)
_HALVES = (_FLOAT16, _BFLOAT16)  # PyTorch computes these in 32 bits and rounds the result


def translations() -> dict[Any, Any]:
    """Return the operators and what writes them, for `torch.onnx.export`."""
    import torch

    aten = torch.ops.aten
    return {
        aten.div.Tensor_mode: _divide,
        aten.div.Scalar_mode: _divide,
        aten.floor_divide.default: _floor_divide,
        aten.floor_divide.Scalar: _floor_divide,
        aten.remainder.Tensor: _remainder,
        aten.remainder.Scalar: _remainder,
        aten.remainder.Scalar_Tensor: _remainder,
    }


def _floor_divide(x: Any, other: Any) -> Any:
    return _divide(x, other, rounding_mode="floor")


def _divide(x: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """Divide and round. Both have one type: the exporter casts what PyTorch promotes."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core

    op, library = cast("Any", opset18), cast("Any", core)
    typed = _typed(x, other)
    if not typed.dtype.is_integer():
        if rounding_mode == "floor":
            return _of_floats(op, x, other, _floor)
        return library.aten_div_mode(_of_type(op, x, typed), _of_type(op, other, typed), rounding_mode)
    if rounding_mode is None:
        return op.Div(op.Cast(_tensor(op, x), to=_FLOAT), op.Cast(_tensor(op, other), to=_FLOAT))
    kind = int(typed.dtype)
    wide = kind if kind in _WITH_KERNELS else _INT64  # runtimes divide these; every narrower type fits
    left, right = op.Cast(_tensor(op, x), to=wide), op.Cast(_tensor(op, other), to=wide)
    quotient = op.Div(left, right)
    if rounding_mode == "floor":
        rest = op.Sub(left, op.Mul(quotient, right))
        zero = op.Cast(op.Constant(value_int=0), to=wide)
        is_above = op.And(op.Cast(rest, to=_BOOL), op.Xor(op.Less(rest, zero), op.Less(right, zero)))
        quotient = op.Sub(quotient, op.Cast(is_above, to=wide))
    return op.Cast(quotient, to=kind)


def _remainder(x: Any, other: Any) -> Any:
    """Return what is left with the divisor's sign."""
    from onnxscript import opset18

    op = cast("Any", opset18)
    typed = _typed(x, other)
    if typed.dtype.is_integer():
        return op.Mod(_of_type(op, x, typed), _of_type(op, other, typed))
    return _of_floats(op, x, other, _rest)


def _of_floats(op: Any, x: Any, y: Any, compute: Any) -> Any:
    kind = int(_typed(x, y).dtype)
    if kind not in _HALVES:
        left, right = (_of_kind(op, value, kind) for value in (x, y))
        return compute(op, left, right, kind)
    left, right = (
        op.Cast(_of_kind(op, value, _FLOAT), to=_FLOAT) for value in (x, y)
    )  # a number is not rounded before
    return op.Cast(compute(op, left, right, _FLOAT), to=kind)


def _floor(op: Any, x: Any, y: Any, kind: int) -> Any:
    """As PyTorch's `div_floor_floating`."""
    zero, half, one = (_number(op, value, kind) for value in (0.0, 0.5, 1.0))
    rest = op.Mod(x, y, fmod=1)
    plain = op.Div(x, y)
    quotient = op.Div(op.Sub(x, rest), y)
    quotient = op.Where(_is_across(op, rest, y, zero), op.Sub(quotient, one), quotient)
    whole = op.Floor(quotient)
    whole = op.Where(op.Greater(op.Sub(quotient, whole), half), op.Add(whole, one), whole)
    whole = op.Where(op.Equal(quotient, zero), op.Mul(plain, zero), whole)  # a zero with its sign
    return op.Where(op.Equal(y, zero), plain, whole)


def _rest(op: Any, x: Any, y: Any, kind: int) -> Any:
    zero = _number(op, 0.0, kind)
    rest = op.Mod(x, y, fmod=1)
    return op.Where(_is_across(op, rest, y, zero), op.Add(rest, y), rest)


def _is_across(op: Any, rest: Any, y: Any, zero: Any) -> Any:
    """Tell where what is left has another sign than the divisor."""
    return op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))


def _typed(x: Any, other: Any) -> Any:
    return other if isinstance(x, int | float) else x


def _of_type(op: Any, value: Any, typed: Any) -> Any:
    return _of_kind(op, value, int(typed.dtype))


def _of_kind(op: Any, value: Any, kind: int) -> Any:
    """Return a number of Python as a constant of a type, and anything else as it is."""
    return _number(op, value, kind) if isinstance(value, int | float) else value


def _number(op: Any, value: float, kind: int) -> Any:
    import onnx_ir as ir

    return op.Constant(value=ir.tensor(value, dtype=ir.DataType(kind)))


def _tensor(op: Any, value: Any) -> Any:
    return op.Constant(value_int=value) if isinstance(value, int) else value
