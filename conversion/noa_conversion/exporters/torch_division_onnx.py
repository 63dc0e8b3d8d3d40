"""PyTorch's rounded division of whole numbers as ONNX's own.

PyTorch's exporter (torch 2.13, onnxscript 0.7) divides in 32-bit floats and rounds, which is wrong beyond 2**24. ONNX's
`Div` of integers rounds towards zero, as `rounding_mode="trunc"` asks; for `floor` one is taken off where signs differ.
"""

from __future__ import annotations

from typing import Any, cast

_BOOL, _FLOAT, _INT32, _INT64 = 9, 1, 6, 7
_WITH_KERNELS = (_INT32, _INT64)


def translations() -> dict[Any, Any]:
    """Return the operators and what writes them, for `torch.onnx.export`."""
    import torch

    div = torch.ops.aten.div
    return {div.Tensor_mode: _divide, div.Scalar_mode: _divide}


def _divide(x: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """Divide and round. Both have one type: the exporter casts what PyTorch promotes."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core

    op, library = cast("Any", opset18), cast("Any", core)
    if not x.dtype.is_integer():
        return library.aten_div_mode(x, other, rounding_mode)
    if rounding_mode is None:
        return op.Div(op.Cast(x, to=_FLOAT), op.Cast(_tensor(op, other), to=_FLOAT))
    kind = int(x.dtype)
    wide = kind if kind in _WITH_KERNELS else _INT64  # runtimes divide these; every narrower type fits
    left, right = op.Cast(x, to=wide), op.Cast(_tensor(op, other), to=wide)
    quotient = op.Div(left, right)
    if rounding_mode == "floor":
        rest = op.Sub(left, op.Mul(quotient, right))
        zero = op.Cast(op.Constant(value_int=0), to=wide)
        is_above = op.And(op.Cast(rest, to=_BOOL), op.Xor(op.Less(rest, zero), op.Less(right, zero)))
        quotient = op.Sub(quotient, op.Cast(is_above, to=wide))
    return op.Cast(quotient, to=kind)


def _tensor(op: Any, value: Any) -> Any:
    return op.Constant(value_int=value) if isinstance(value, int) else value
