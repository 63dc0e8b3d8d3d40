"""bfloat16 in and out of onnxruntime, whose Python knows no such arrays: their bits go in and come out.

session = BfloatSession(onnxruntime.InferenceSession(...))
session.run(["y"], {"x": np.zeros((1, 4), ml_dtypes.bfloat16)})
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noa.signatures import numpy_dtype

if TYPE_CHECKING:
    import onnxruntime

_BFLOAT16 = 16  # TensorProto.DataType


class BfloatSession:
    """A session that is called as onnxruntime's own is."""

    __slots__ = ("_dtype", "_session")

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._dtype = numpy_dtype("bfloat16")

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """Compute outputs. What onnxruntime raises goes through."""
        arrays = {name: np.asarray(array, order="C") for name, array in inputs.items()}  # alive while it runs
        given = {name: self._value(array) for name, array in arrays.items()}
        found: Any = self._session.run_with_ort_values(list(outputs), given, options)
        return [self._array(value) for value in found]

    def _value(self, array: np.ndarray) -> Any:
        from onnxruntime import OrtValue

        if array.dtype == self._dtype:
            return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
        return OrtValue.ortvalue_from_numpy(array)

    def _array(self, value: Any) -> np.ndarray:
        if value.data_type() != "tensor(bfloat16)":
            return value.numpy()
        shape = tuple(value.shape())
        if not math.prod(shape):
            return np.empty(shape, self._dtype)
        bits = ctypes.string_at(value.data_ptr(), math.prod(shape) * self._dtype.itemsize)
        return np.frombuffer(bits, self._dtype).reshape(shape).copy()
