"""Quantised operators: to and from integers by scale and zero point, integer products and convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.casting import to_float8
from noa_conversion.importers.jax.convolution import convolve
from noa_conversion.importers.jax.dtypes import FLOAT8, INTEGER_RANGES, element_type, held_as, is_float
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.windows import by_channel

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("QuantizeLinear", tensors=True)
def quantize_linear(op: Op, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Divide by the scale, round halves to even, shift, and hold in the range of the target type.

    What is infinite or too large becomes the nearest end of the range; not a number becomes the lowest, as onnxruntime
    has it (ONNX does not say).
    """
    target = np.dtype(np.uint8) if zero is None else np.dtype(zero.dtype)
    if op.attribute("output_dtype", 0):
        target = element_type(op, op.attribute("output_dtype"))
    divisor = _spread(op, scale, x)
    if op.attribute("precision", 0):
        wide = held_as(element_type(op, op.attribute("precision")))
    else:
        wide = jnp.promote_types(x.dtype, divisor.dtype) if is_float(x) else divisor.dtype
    scaled = x.astype(wide) / divisor.astype(wide)
    if target.name in FLOAT8:
        return to_float8(scaled, target, saturate=bool(op.attribute("saturate", 1)))
    if is_float(target):
        shifted = scaled if zero is None else scaled + _spread(op, zero, x).astype(wide)
        return shifted.astype(jnp.float32).astype(target)
    if target.name not in INTEGER_RANGES:
        op.refuse(f"the target type {target}")
    low, high = INTEGER_RANGES[target.name]
    shifted = jnp.round(scaled.astype(jnp.float32))  # whole numbers up to 16 bits, and their sums, are exact
    shifted = shifted if zero is None else shifted + _spread(op, _as_float(zero), x)
    return jnp.where(jnp.isnan(shifted), low, jnp.clip(shifted, low, high)).astype(jnp.int32).astype(target)


@register("DequantizeLinear", tensors=True)
def dequantize_linear(op: Op, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Subtract the zero point and multiply by the scale."""
    target = scale.dtype
    if op.attribute("output_dtype", 0):
        target = held_as(element_type(op, op.attribute("output_dtype")))
    wide = _as_float(x)
    if zero is not None and not is_float(x):
        wide = wide - _spread(op, _as_float(zero), x)
    return (wide * _spread(op, scale.astype(jnp.float32), x)).astype(target)


def _as_float(x: Tensor) -> Tensor:
    return x.astype(jnp.float32) if is_float(x) else x.astype(jnp.int32).astype(jnp.float32)


def _spread(op: Op, value: Tensor, x: Tensor) -> Tensor:
    """Make a scale or zero point broadcast to x: one for all, one per slice of an axis, or one per block of it."""
    if value.ndim == 0 or value.size == 1:
        return value.reshape(())
    axis = op.axis(op.attribute("axis", 1), x.ndim)
    block = op.attribute("block_size", 0)
    if value.ndim == 1 and not (block and x.ndim == 1):
        return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    if not block:
        op.refuse(f"a scale of shape {tuple(value.shape)} without `block_size`")
    repeated = jnp.repeat(value, block, axis=axis)
    return lax.slice_in_dim(repeated, 0, x.shape[axis], axis=axis)


@register("DynamicQuantizeLinear", tensors=True)
def dynamic_quantize_linear(op: Op, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to uint8 by the range of the data, zero included.

    A datum that is no number makes the scale none, as in ONNX's reference; with onnxruntime the scale depends on where
    it stands. Infinite data make the scale infinite, in all three.
    """
    high, low = jnp.maximum(x.max(), 0), jnp.minimum(x.min(), 0)
    scale = jnp.where(high == low, 1, high - low) / 255
    zero = -low / scale
    zero = jnp.where(jnp.isnan(zero), 255, jnp.round(jnp.clip(zero, 0, 255)))
    y = jnp.round(x / scale) + zero
    y = jnp.where(jnp.isnan(y), 0, jnp.clip(y, 0, 255))
    return y.astype(jnp.uint8), scale.astype(x.dtype), zero.astype(jnp.uint8)


def _centred(x: Tensor, zero: Tensor | None, *, along: str = "last") -> Tensor:
    """Subtract a zero point in 32 bits: one for all, or one per row, column or output channel."""
    wide = x.astype(jnp.int32)
    return wide if zero is None else wide - _along(zero.astype(jnp.int32), x.ndim, along)


def _along(value: Tensor, rank: int, along: str) -> Tensor:
    if value.size == 1:
        return value.reshape(())
    if value.ndim != 1 or along == "last":
        return value
    return value.reshape(-1, 1) if along == "rows" else value.reshape((-1,) + (1,) * (rank - 1))


@register("MatMulInteger", tensors=True)
def matmul_integer(op: Op, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """Multiply integer matrices into 32 bits."""
    return jnp.matmul(_centred(a, a_zero, along="rows"), _centred(b, b_zero))


@register("QLinearMatMul", tensors=True)
def qlinear_matmul(
    op: Op,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """Multiply quantised matrices into a quantised one."""
    product = jnp.matmul(_centred(a, a_zero, along="rows"), _centred(b, b_zero))
    factor = _along(a_scale, 2, "rows") * b_scale / y_scale
    return _requantised(op, product, factor, y_zero)


def _requantised(op: Op, total: Tensor, factor: Tensor, zero: Tensor) -> Tensor:
    target = np.dtype(zero.dtype)
    if is_float(target):
        op.refuse(f"the quantised type {target}")
    wide = jnp.promote_types(jnp.float32, factor.dtype)
    low, high = INTEGER_RANGES[target.name]
    shifted = jnp.round(total.astype(wide) * factor.astype(wide)) + zero.astype(wide)
    return jnp.clip(shifted, low, high).astype(target)


@register("ConvInteger", tensors=True)
def conv_integer(op: Op, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
    """Convolve integers into 32 bits."""
    return convolve(op, _centred(x, x_zero), _centred(w, w_zero, along="channels"))


@register("QLinearConv", tensors=True)
def qlinear_conv(
    op: Op,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    """Convolve quantised tensors into a quantised one."""
    total = convolve(op, _centred(x, x_zero), _centred(w, w_zero, along="channels"))
    total = total if b is None else total + by_channel(b, total.ndim)
    factor: Any = x_scale * w_scale / y_scale
    factor = factor.reshape(()) if factor.size == 1 else by_channel(factor.reshape(-1), total.ndim)
    return _requantised(op, total, factor, y_zero)
