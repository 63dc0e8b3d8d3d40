"""Numbers as small integers with a scale and a zero point, and layers on them."""

from __future__ import annotations

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.casting import cast_tensor
from noa_conversion.importers.torch.convolution import convolve_integers
from noa_conversion.importers.torch.dtypes import is_float8, tagged, torch_dtype_of
from noa_conversion.importers.torch.linear_algebra import integer_matmul
from noa_conversion.importers.torch.table import register
from noa_conversion.onnx_graph.dtypes import dtype_of as onnx_dtype
from noa_conversion.onnx_graph.symbols import number_of

_RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1),
}  # fmt: skip


def _type_of(op: Op, value: Value) -> np.dtype:
    return number_of(value) if isinstance(value, np.ndarray) else op.dtype(value)


def _spread(op: Op, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Shape a scale or zero point to go with `x`: one for all, one per slice of an axis, or one per block."""
    if value.ndim == 0 or (value.ndim == 1 and value.shape[0] == 1):
        return value.reshape(())
    axis = op.axis(op.attribute("axis", 1), x.ndim)
    block = op.attribute("block_size", 0)
    if value.ndim == 1 and not block:
        return value.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    if not block:
        op.refuse(f"its scale has {value.ndim} axes and no `block_size`")
    return torch.narrow(torch.repeat_interleave(value, block, axis), axis, 0, x.shape[axis])


@register("QuantizeLinear")
def quantize_linear(op: Op, x: Value, scale: Value, zero: Value = None) -> torch.Tensor:
    """`round(x / scale) + zero`, kept in the range of the type."""
    tensor, factor = op.tensor(x), op.tensor(scale)
    dtype = onnx_dtype(op.attribute("output_dtype", 0)) or np.dtype(np.uint8)
    if zero is not None:
        dtype = _type_of(op, zero)
    precision = onnx_dtype(op.attribute("precision", 0))
    if precision is not None:
        tensor, factor = cast_tensor(op, tensor, precision), cast_tensor(op, factor, precision)
    if is_float8(factor.dtype):
        factor = factor.to(torch.float32)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    wide = torch.promote_types(tensor.dtype, factor.dtype)
    shares = tensor.to(wide) / _spread(op, factor.to(wide), tensor)
    if dtype.name not in _RANGES:
        if zero is not None and dtype.name == "float4_e2m1fn":
            shares = shares + _spread(op, op.tensor(zero).to(shares.dtype), tensor)
        return cast_tensor(op, shares, dtype, saturate=bool(op.attribute("saturate", 1)))
    low, high = _RANGES[dtype.name]
    # As in the file's own order: round first, then add the zero point, as whole numbers.
    whole = torch.round(shares.to(torch.float32) if shares.element_size() < 4 else shares)
    if zero is not None:
        whole = whole + _spread(op, op.tensor(zero).to(whole.dtype), tensor)
    target = torch_dtype_of(dtype)
    assert target is not None
    held = torch.nan_to_num(torch.clamp(whole, low, high), nan=low)  # NaN becomes the lowest, as in onnxruntime
    return tagged(held.to(torch.int32).to(target), dtype)


@register("DequantizeLinear")
def dequantize_linear(op: Op, x: Value, scale: Value, zero: Value = None) -> torch.Tensor:
    """`(x - zero) * scale`."""
    tensor, factor = op.tensor(x), op.tensor(scale)
    wide = tensor.to(torch.float32)
    if tensor.dtype == torch.int32:
        wide = tensor
    if zero is not None and not is_float8(tensor.dtype):
        wide = wide - _spread(op, op.tensor(zero).to(wide.dtype), tensor)
    dtype = onnx_dtype(op.attribute("output_dtype", 0)) or _type_of(op, scale)
    factor = factor.to(torch.float32) if factor.element_size() < 4 else factor
    return cast_tensor(op, wide.to(factor.dtype) * _spread(op, factor, tensor), dtype)


@register("DynamicQuantizeLinear", tensors=True)
def dynamic_quantize_linear(op: Op, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose scale and zero point by the values, so that zero is exact."""
    highest = torch.clamp(torch.amax(x), min=0.0)
    lowest = torch.clamp(torch.amin(x), max=0.0)
    span = highest - lowest
    scale = torch.where(span == 0, torch.ones_like(span), span) / 255.0
    # As onnx.reference does it: a range without end, or with NaN in it, has its zero point at the upper end.
    zero = torch.round(torch.clamp(torch.nan_to_num(-lowest / scale, nan=255.0), 0.0, 255.0))
    y = torch.nan_to_num(torch.clamp(torch.round(x / scale) + zero, 0.0, 255.0), nan=0.0)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)


def _requantised(op: Op, total: torch.Tensor, factor: torch.Tensor, zero: Value, dtype: np.dtype) -> torch.Tensor:
    low, high = _RANGES[dtype.name]
    scaled = torch.round(total.to(factor.dtype) * factor)
    if zero is not None:
        scaled = scaled + op.tensor(zero).to(scaled.dtype)
    return torch.clamp(scaled, low, high).to(torch.int32).to(torch_dtype_of(dtype))


@register("QLinearMatMul")
def qlinear_matmul(
    op: Op,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> torch.Tensor:
    """Product of quantised matrices, quantised again."""
    left = op.tensor(a).to(torch.int32) - _per_row(op.tensor(a_zero), is_left=True)
    right = op.tensor(b).to(torch.int32) - _per_row(op.tensor(b_zero), is_left=False)
    scales = [op.tensor(scale) for scale in (a_scale, b_scale, y_scale)]
    left_scale = scales[0].unsqueeze(-1) if scales[0].ndim == 1 and scales[0].shape[0] != 1 else scales[0]
    factor = left_scale.to(torch.float32) * scales[1].to(torch.float32) / scales[2].to(torch.float32)
    return _requantised(op, integer_matmul(left, right), factor, y_zero, _type_of(op, y_zero))


def _per_row(zero: torch.Tensor, *, is_left: bool) -> torch.Tensor:
    zero = zero.to(torch.int32)
    return zero.unsqueeze(-1) if is_left and zero.ndim == 1 and zero.shape[0] != 1 else zero


@register("QLinearConv")
def qlinear_conv(
    op: Op,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    w: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    b: Value = None,
) -> torch.Tensor:
    """Convolution of quantised images, quantised again; the bias counts in steps of `x_scale * w_scale`."""
    image, kernel = op.tensor(x), op.tensor(w)
    total = convolve_integers(op, image, op.tensor(x_zero), kernel, op.tensor(w_zero))
    per_channel = [1, -1] + [1] * (image.ndim - 2)
    if b is not None:
        total = total + op.tensor(b).to(total.dtype).reshape(per_channel)
    channels = op.tensor(w_scale)
    channels = channels.reshape(per_channel) if channels.ndim == 1 and channels.shape[0] != 1 else channels.reshape(())
    factor = op.tensor(x_scale).reshape(()) * channels / op.tensor(y_scale).reshape(())
    return _requantised(op, total, factor, y_zero, _type_of(op, y_zero))
