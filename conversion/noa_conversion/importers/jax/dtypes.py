"""Element types: ONNX's numbers, the numpy types that JAX computes in, and what 64 bits become.

JAX has 64-bit tensors only inside `jax.enable_x64`, where graphs are traced. Outside of it, where params are made and
functions are described, int64 is held as int32, uint64 as uint32 and float64 as float32; `held_as` says so for the
scope that is active. Constants that do not fit are refused by name, never wrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from noa_conversion.onnx_graph.dtypes import TEXT, dtype_of

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
INTEGER_RANGES = {
    name: (int(jnp.iinfo(name).min), int(jnp.iinfo(name).max))
    for name in ("uint2", "int2", "uint4", "int4", "uint8", "int8", "uint16", "int16", "uint32", "int32")
}


def held_as(dtype: Any) -> np.dtype:
    """Return the type that a tensor of `dtype` has in JAX here: itself, or its 32-bit sibling."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def element_type(op: Op, number: int) -> np.dtype:
    """Return the numpy type of an ONNX type number, as the file means it (64 bits stay 64); texts are refused."""
    dtype = dtype_of(int(number))
    if dtype is None or dtype == TEXT:
        op.refuse(f"JAX has no tensors of the element type {number}")
    return dtype


def is_float(value: Any) -> bool:
    """Tell whether a tensor, array or dtype holds floats, the narrow ones included."""
    return bool(jnp.issubdtype(getattr(value, "dtype", value), jnp.floating))


def is_unsigned(value: Any) -> bool:
    """Tell whether a tensor, array or dtype holds unsigned integers, the narrow ones included."""
    return bool(jnp.issubdtype(getattr(value, "dtype", value), jnp.unsignedinteger))


def lowest(dtype: Any) -> Any:
    """Return the smallest value of a type: minus infinity for floats."""
    if dtype == np.bool_:
        return np.False_
    return np.array(-np.inf, dtype) if is_float(dtype) else np.array(jnp.iinfo(dtype).min, dtype)


def highest(dtype: Any) -> Any:
    """Return the largest value of a type: infinity for floats."""
    if dtype == np.bool_:
        return np.True_
    return np.array(np.inf, dtype) if is_float(dtype) else np.array(jnp.iinfo(dtype).max, dtype)


def accumulator(dtype: Any) -> np.dtype:
    """Return the type to accumulate sums of `dtype` in: 32 bits for narrower floats."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if is_float(dtype) and dtype.itemsize < 4 else dtype
