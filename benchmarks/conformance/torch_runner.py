"""The PyTorch side: import, run the `GraphModule` as it is, outputs as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from benchmarks.conformance.cases import Value
from noa_conversion import import_onnx_to_torch

_SAME_BITS: dict[str, tuple[Any, torch.dtype]] = {
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, torch.float8_e4m3fnuz),
    "float8_e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "float8_e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, torch.float8_e5m2fnuz),
    "float8_e8m0fnu": (ml_dtypes.float8_e8m0fnu, torch.float8_e8m0fnu),
}
"""Types that numpy lacks, by name: that of ml_dtypes and that of torch, which agree bit by bit."""


def run(model: bytes, bind: Mapping[str, np.ndarray], inputs: Sequence[Value]) -> list[Value]:
    imported = import_onnx_to_torch(model, bind=bind)
    with torch.no_grad():
        outputs = imported.module(*(_to_torch(value) for value in inputs))
    return [_to_numpy(value) for value in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _to_torch(value: Value) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_to_torch(item) for item in value]
    if value.dtype.name in _SAME_BITS:
        bits = value.view(np.int16 if value.dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.copy()).view(_SAME_BITS[value.dtype.name][1])
    if value.dtype.kind == "V":  # torch has no 4-bit tensors: one number per byte
        value = value.astype(np.int8 if value.dtype.name.startswith("int") else np.uint8)
    return torch.from_numpy(value.copy())


def _to_numpy(value: Any) -> Value:
    if isinstance(value, (list, tuple)):
        return [_to_numpy(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    for numpy_type, torch_type in _SAME_BITS.values():
        if value.dtype == torch_type:
            bits = torch.int16 if value.element_size() == 2 else torch.uint8
            return value.contiguous().view(bits).numpy().view(numpy_type)
    return value.numpy()
