"""Dtypes of JAX as tensors of ONNX: which are floats, which have a form, and what complex ones and keys become."""

from __future__ import annotations

from typing import Any

import numpy as np

from noa.errors import ConversionError

_KEY_WORDS = 2
"""A key of the generator `threefry2x32` is two words of 32 bits."""


def is_float(dtype: Any) -> bool:
    """Tell whether a dtype is a real floating-point one, bfloat16 included."""
    return isinstance(dtype, np.dtype) and (dtype.kind == "f" or dtype.name == "bfloat16")


def is_complex(dtype: Any) -> bool:
    """Tell whether a dtype is complex."""
    return isinstance(dtype, np.dtype) and dtype.kind == "c"


def is_key(dtype: Any) -> bool:
    """Tell whether a dtype is that of random keys."""
    return not isinstance(dtype, np.dtype)


def is_plain(dtype: Any) -> bool:
    """Tell whether a value of this dtype is one tensor of the same shape."""
    return not is_key(dtype) and not is_complex(dtype)


def limits(dtype: Any) -> Any:
    """Return the limits of a floating-point dtype, bfloat16 included."""
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def stored_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of the tensor that holds values of `dtype`.

    Raises:
        ConversionError: keys of a generator that is not `threefry2x32`.
    """
    if is_complex(dtype):
        return np.dtype("float32" if dtype == np.complex64 else "float64")
    if not is_key(dtype):
        return np.dtype(dtype)
    name = str(getattr(getattr(dtype, "_impl", None), "name", dtype))
    if name != "threefry2x32":
        raise ConversionError(
            f"random keys of the generator `{name}` have no ONNX form",
            where="JAX to ONNX",
            expected="threefry2x32, whose bits are integer arithmetic",
            received=name,
        )
    return np.dtype("uint32")


def stored_shape(shape: Any, dtype: Any) -> tuple[Any, ...]:
    """Return the shape of the tensor that holds values of `dtype`."""
    return tuple(shape) if is_plain(dtype) else (*shape, _KEY_WORDS)


def onnx_type(dtype: Any) -> int:
    """Return ONNX's number of a NumPy dtype.

    Raises:
        ConversionError: ONNX has no such type.
    """
    from onnx import helper

    try:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, ValueError, TypeError) as exc:
        raise ConversionError(f"the dtype {dtype} has no ONNX form", where="JAX to ONNX", received=str(dtype)) from exc
