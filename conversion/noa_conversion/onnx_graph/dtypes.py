"""ONNX's element types as numpy's: one table, used by the reader, the number evaluator and the handlers of `Cast`."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

TEXT = np.dtypes.StringDType()
"""The element type of ONNX strings."""


@functools.cache
def _table() -> dict[int, np.dtype]:
    names = {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
        10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 14: np.complex64, 15: np.complex128,
        16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn, 18: ml_dtypes.float8_e4m3fnuz, 19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e5m2fnuz, 21: ml_dtypes.uint4, 22: ml_dtypes.int4, 23: ml_dtypes.float4_e2m1fn,
        24: ml_dtypes.float8_e8m0fnu, 25: ml_dtypes.uint2, 26: ml_dtypes.int2,
    }  # fmt: skip
    return {8: TEXT, **{code: np.dtype(kind) for code, kind in names.items()}}


def dtype_of(code: int) -> np.dtype | None:
    """Return the numpy type of a `TensorProto.DataType`, or None if it is none that holds values."""
    return _table().get(code)


def code_of(dtype: np.dtype) -> int:
    """Return the `TensorProto.DataType` of a numpy type.

    Raises:
        KeyError: ONNX has no such type.
    """
    if dtype.kind in "TU":
        return 8
    return {kind: code for code, kind in _table().items() if code != 8}[dtype]


def is_float(dtype: np.dtype) -> bool:
    """Tell whether a type is a floating one; ml_dtypes' own floats are of numpy's kind `V`."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)
