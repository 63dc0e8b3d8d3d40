"""Casts between all element types, as ONNX rounds and saturates them."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.dtypes import dtype_of, is_float8, is_held, tagged, torch_dtype_of
from noa_conversion.importers.torch.table import register
from noa_conversion.onnx_graph.dtypes import dtype_of as onnx_dtype
from noa_conversion.onnx_graph.symbols import number_of

_SIGN = 2**63
_BITS = {"int4": (4, True), "uint4": (4, False), "int2": (2, True), "uint2": (2, False)}


def named_dtype(op: Op, code: int) -> np.dtype:
    """Return the numpy type of a `TensorProto.DataType`; one that PyTorch cannot hold is refused."""
    dtype = onnx_dtype(code)
    if dtype is None or torch_dtype_of(dtype) is None:
        op.refuse(f"PyTorch has no tensors of the element type {dtype if dtype is not None else code}")
    return dtype


@register("Cast")
def cast(op: Op, x: Value) -> torch.Tensor:
    """Convert to the type `to`."""
    dtype = named_dtype(op, op.attribute("to"))
    saturate = bool(op.attribute("saturate", 1))
    return cast_tensor(op, op.tensor(x), dtype, saturate=saturate, round_mode=op.attribute("round_mode", "up"))


@register("CastLike")
def cast_like(op: Op, x: Value, like: Value) -> torch.Tensor:
    """Convert to the type of another value."""
    dtype = number_of(like) if isinstance(like, np.ndarray) else op.dtype(like)
    saturate = bool(op.attribute("saturate", 1))
    return cast_tensor(op, op.tensor(x), dtype, saturate=saturate, round_mode=op.attribute("round_mode", "up"))


def cast_tensor(
    op: Op, x: torch.Tensor, dtype: np.dtype, *, saturate: bool = True, round_mode: str = "up"
) -> torch.Tensor:
    """Convert a tensor; `saturate` and `round_mode` matter to the small floats only."""
    target = torch_dtype_of(dtype)
    if target is None:
        op.refuse(f"PyTorch has no tensors of {dtype}")
    if dtype_of(x) == dtype and x.dtype == target:
        return x
    if is_float8(x.dtype):
        x = x.to(torch.float32)
    if dtype.name in _BITS:
        return tagged(_to_few_bits(x, *_BITS[dtype.name]).to(target), dtype)
    if is_held(dtype):
        return tagged(_to_float4(x), dtype)
    if dtype.name == "float8_e8m0fnu":
        return _to_float8_e8m0(op, x, saturate=saturate, round_mode=round_mode)
    if is_float8(target):
        return to_float8(x, dtype, saturate=saturate)
    if target in (torch.uint16, torch.uint32, torch.uint64) and x.is_floating_point():
        if target == torch.uint64 and torch.finfo(x.dtype).max > _SIGN:
            is_large = x >= _SIGN
            whole = torch.where(is_large, x - _SIGN, x).to(torch.int64)
            return torch.where(is_large, whole ^ -_SIGN, whole).to(target)
        return x.to(torch.int64).to(target)
    if x.dtype == target:  # a held type is left for the one that holds it: the tensor itself is marked with the former
        return x.clone()
    return x.to(target)


def to_float8(x: torch.Tensor, dtype: np.dtype, *, saturate: bool) -> torch.Tensor:
    """Round to an 8-bit float; without `saturate` what is out of range becomes infinite, or NaN where there is none."""
    target = torch_dtype_of(dtype)
    assert target is not None
    if not x.is_floating_point():
        x = x.to(torch.float32)
    highest = float(ml_dtypes.finfo(dtype).max)
    if saturate:
        return torch.clamp(x, -highest, highest).to(target)
    if dtype.name == "float8_e4m3fn":  # PyTorch saturates this type; half a step above its maximum, 464, is the edge
        x = torch.where(torch.abs(x) > 464.0, torch.full_like(x, math.nan), x)
    return x.to(target)


def _to_few_bits(x: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    whole = x.to(torch.int32)
    half = 2 ** (bits - 1)
    mask = 2**bits - 1
    return ((whole + half) & mask) - half if signed else whole & mask


def _to_float4(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to the even code; what is out of range becomes 6."""
    x = x.to(torch.float32)
    size = torch.abs(x)
    steps = ((size > 0.25, 0.5), (size >= 0.75, 0.5), (size > 1.25, 0.5), (size >= 1.75, 0.5))
    wide = ((size > 2.5, 1.0), (size >= 3.5, 1.0), (size > 5.0, 2.0))
    total = torch.zeros_like(size)
    for is_above, step in (*steps, *wide):
        total = total + is_above.to(torch.float32) * step
    return torch.copysign(total, x)


def _to_float8_e8m0(op: Op, x: torch.Tensor, *, saturate: bool, round_mode: str) -> torch.Tensor:
    """Keep the exponent only, as `onnx.numpy_helper.to_float8e8m0` rounds it."""
    bits = x.to(torch.float32).view(torch.int32)
    exponent = torch.bitwise_right_shift(bits, 23) & 0xFF
    is_special = exponent == 0xFF
    if round_mode == "nearest":
        guard, rest = (bits & 0x400000) != 0, (bits & 0x3FFFFF) != 0
        is_up = guard & (rest | (exponent > 0))
    elif round_mode == "up":
        is_up = (bits & 0x7FFFFF) != 0
    elif round_mode == "down":
        is_up = torch.zeros_like(is_special)
    else:
        op.refuse(f"the rounding `{round_mode}` is unknown")
    if saturate:
        is_up = is_up & (exponent != 0xFE)
    rounded = torch.where(is_special, exponent, exponent + is_up.to(torch.int32))
    return rounded.to(torch.uint8).view(torch.float8_e8m0fnu)


@register("BitCast", tensors=True)
def bit_cast(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Read the same bits as another type of the same width."""
    dtype = named_dtype(op, op.attribute("to"))
    target = torch_dtype_of(dtype)
    assert target is not None
    if is_held(dtype) or is_held(dtype_of(x)):
        op.refuse(f"PyTorch does not hold {dtype} or {dtype_of(x)} in their own bits")
    if target.itemsize != x.element_size():
        op.refuse(f"{dtype_of(x)} and {dtype} have different widths")
    return x.view(target)
