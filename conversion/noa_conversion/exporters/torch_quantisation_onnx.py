"""PyTorch's operators of quantised graphs (PT2E) as QuantizeLinear and DequantizeLinear.

PyTorch's exporter has no rule for them. ONNX divides by the scale where PyTorch multiplies by its inverse, so that a
value exactly between two steps may go to the other one.
"""

from __future__ import annotations

import sys
from typing import Any

from noa.errors import ConversionError

_BYTES = {"int8": (-128, 127), "uint8": (0, 255)}


def translations() -> dict[Any, Any]:
    """Return operators and what writes them, for `torch.onnx.export`; none if no quantiser is loaded."""
    import torch

    if not any(name.endswith("._decomposed") for name in sys.modules):
        return {}
    try:
        ops = torch.ops.quantized_decomposed
        return {
            ops.quantize_per_tensor.default: _quantise,
            ops.quantize_per_tensor.tensor: _quantise,
            ops.dequantize_per_tensor.default: _dequantise,
            ops.dequantize_per_tensor.tensor: _dequantise,
            ops.quantize_per_channel.default: _quantise_channels,
            ops.dequantize_per_channel.default: _dequantise_channels,
        }
    except AttributeError:  # another module of that name
        return {}


def _quantise(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any) -> Any:
    return _steps(x, _scale(scale), zero_point, (quant_min, quant_max), dtype)


def _quantise_channels(
    x: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: Any
) -> Any:
    return _steps(x, scales, zero_points, (quant_min, quant_max), dtype, axis=axis)


def _dequantise(
    x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any, out_dtype: Any = None
) -> Any:
    op = _op()
    _check_result(out_dtype)
    return op.DequantizeLinear(x, _scale(scale), _zero(zero_point, _kind(dtype)))


def _dequantise_channels(
    x: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: Any,
    out_dtype: Any = None,
) -> Any:
    op = _op()
    _check_result(out_dtype)
    zero = None if zero_points is None else _zero(zero_points, _kind(dtype))
    return op.DequantizeLinear(x, _single(scales), zero, axis=axis)


def _steps(x: Any, scale: Any, zero_point: Any, bounds: tuple[int, int], dtype: Any, **axis: int) -> Any:
    op = _op()
    kind = _kind(dtype)
    lowest, highest = _BYTES[kind]
    if bounds[0] < lowest or bounds[1] > highest:
        raise ConversionError(
            "a quantisation has no ONNX form", expected=f"within {_BYTES[kind]}", received=str(bounds)
        )
    steps = op.QuantizeLinear(x, _single(scale), _zero(zero_point, kind), **axis)
    if bounds == (lowest, highest):
        return steps
    low, high = (_zero(bound, kind) for bound in bounds)
    return op.Clip(steps, low, high)


def _scale(value: Any) -> Any:
    op = _op()
    return op.Constant(value_float=float(value)) if isinstance(value, int | float) else _single(value)


def _single(value: Any) -> Any:
    """PyTorch's quantisers keep scales in 64 bits."""
    op = _op()
    return op.Cast(value, to=1)


def _zero(value: Any, kind: str) -> Any:
    op = _op()
    given = op.Constant(value_int=int(value)) if isinstance(value, int) else value
    return op.Cast(given, to=_number(kind))


def _op() -> Any:
    """Return the operators, whose stubs ask for their own tensors."""
    from onnxscript import opset18

    return opset18


def _kind(dtype: Any) -> str:
    """Return the name of the steps' type: given as PyTorch's, or as ONNX's number where the exporter changed it."""
    name = {2: "uint8", 3: "int8"}.get(dtype) if isinstance(dtype, int) else str(dtype).removeprefix("torch.")
    if name not in _BYTES:
        raise ConversionError("a quantisation has no ONNX form", expected="int8 or uint8", received=str(dtype))
    return str(name)


def _number(kind: str) -> int:
    return {"uint8": 2, "int8": 3}[kind]


def _check_result(dtype: Any) -> None:
    if dtype is not None and str(dtype) not in ("torch.float32", "1", "FLOAT"):
        raise ConversionError("a dequantisation has no ONNX form", expected="float32", received=str(dtype))
