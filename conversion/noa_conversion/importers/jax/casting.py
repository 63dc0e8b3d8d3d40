"""Between element types: `Cast`, `CastLike`, `BitCast`, with ONNX's rules for 8 bits and less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import FLOAT8, element_type, held_as, is_float
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_E8M0_LARGEST = 0xFE
_NAN_EXPONENT = 0xFF
_NO_INFINITY = ("float8_e4m3fnuz", "float8_e5m2fnuz")
_WIDE = ("int64", "uint64", "float64")


@register("Cast", tensors=True)
def cast(op: Op, x: Tensor) -> Tensor:
    """Convert the elements to the type `to`."""
    return convert(op, x, element_type(op, op.attribute("to")))


@register("CastLike", tensors=True)
def cast_like(op: Op, x: Tensor, like: Tensor) -> Tensor:
    """Convert the elements to the type of another tensor."""
    return convert(op, x, np.dtype(like.dtype))


@register("BitCast", tensors=True)
def bit_cast(op: Op, x: Tensor) -> Tensor:
    """Read the bits as another type of the same width."""
    meant = element_type(op, op.attribute("to"))
    dtype = held_as(meant)
    if meant != dtype:
        op.refuse(f"the bits of a {meant} need 64 bits", remedy='Import with precision="64"')
    if dtype == np.bool_ or x.dtype == np.bool_:
        integer = x.astype(jnp.uint8) if x.dtype == np.bool_ else lax.bitcast_convert_type(x, jnp.uint8)
        return integer != 0 if dtype == np.bool_ else lax.bitcast_convert_type(integer, dtype)
    if jnp.iinfo(x.dtype).bits != jnp.iinfo(dtype).bits if not (is_float(x) or is_float(dtype)) else False:
        op.refuse(f"the bits of {x.dtype} are not as many as those of {dtype}")
    return lax.bitcast_convert_type(x, dtype)


def convert(op: Op, x: Tensor, meant: Any) -> Tensor:
    """Convert by the rules of `Cast`: saturating for 8-bit floats unless the attribute says no."""
    dtype = held_as(meant)
    if dtype == x.dtype:
        return x
    if dtype == np.bool_:
        return x != jnp.zeros((), x.dtype)
    if dtype.name in FLOAT8:
        return to_float8(x, dtype, saturate=bool(op.attribute("saturate", 1)))
    if dtype.name == "float8_e8m0fnu":
        return _to_e8m0(op, x)
    if is_float(x) and is_float(dtype) and min(x.dtype.itemsize, dtype.itemsize) == 1:
        return x.astype(jnp.float32).astype(dtype)
    if _bits(dtype) < 8 or _bits(x.dtype) < 8:
        return _through_wide(x, dtype)
    return x.astype(dtype)


def cut_to_whole(x: Tensor, dtype: Any) -> Tensor:
    """Cut floats to whole numbers that wrap around the type, as in onnxruntime; JAX would saturate them."""
    if np.dtype(dtype) == np.uint64:
        is_large = x >= 2.0**63
        whole = jnp.where(is_large, x - 2.0**63, x).astype(jnp.int64).astype(dtype)
        return jnp.where(is_large, whole | np.uint64(1 << 63), whole)
    return x.astype(jnp.int64).astype(dtype)


def to_float8(x: Tensor, dtype: np.dtype, *, saturate: bool) -> Tensor:
    """Convert to an 8-bit float; out of range gives the largest value, or infinity or NaN without `saturate`."""
    wide = x.astype(jnp.float32)
    if not saturate:
        return wide.astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(wide, -largest, largest).astype(dtype)


def _bits(dtype: Any) -> int:
    if dtype == np.bool_:
        return 8
    return jnp.finfo(dtype).bits if is_float(dtype) else jnp.iinfo(dtype).bits


def _through_wide(x: Tensor, dtype: np.dtype) -> Tensor:
    """Convert from or to 4 and 2 bits in two steps, which every backend knows."""
    if is_float(dtype):
        if x.dtype != np.bool_ and not is_float(x):
            x = x.astype(jnp.int32)
        return x.astype(jnp.float32).astype(dtype)
    if is_float(x):
        x = x.astype(jnp.float32)
    return x.astype(jnp.int32).astype(dtype)


def _to_e8m0(op: Op, x: Tensor) -> Tensor:
    """Round to a power of two, by its bits. As onnx.numpy_helper.to_float8e8m0 of onnx 1.23 does it."""
    mode = op.attribute("round_mode", "up")
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    exponent = ((bits >> 23) & 0xFF).astype(jnp.int32)
    normal = exponent != _NAN_EXPONENT
    if mode == "up":
        upwards = (bits & 0x7FFFFF) > 0
    elif mode == "nearest":
        half, rest = (bits & 0x400000) > 0, (bits & 0x3FFFFF) > 0
        upwards = half & (rest | (exponent > 0))
    elif mode == "down":
        upwards = jnp.zeros(bits.shape, bool)
    else:
        op.refuse(f"`round_mode` is {mode!r}", remedy="Use up, down or nearest")
    upwards = upwards & normal
    if op.attribute("saturate", 1):
        upwards = upwards & (exponent < _E8M0_LARGEST)
    return lax.bitcast_convert_type((exponent + upwards).astype(jnp.uint8), jnp.float8_e8m0fnu)
