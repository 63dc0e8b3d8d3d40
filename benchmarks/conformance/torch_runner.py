"""The PyTorch side: import, run the `GraphModule` as it is, outputs as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from benchmarks.conformance.cases import Value
from noa_conversion.importers.torch.importer import import_onnx_to_torch
from noa_conversion.onnx_graph.model import OnnxValue

_SAME_BITS: dict[str, tuple[Any, torch.dtype]] = {
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, torch.float8_e4m3fnuz),
    "float8_e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "float8_e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, torch.float8_e5m2fnuz),
    "float8_e8m0fnu": (ml_dtypes.float8_e8m0fnu, torch.float8_e8m0fnu),
}
"""Types that numpy lacks, by name: that of ml_dtypes and that of torch, which agree bit by bit."""


_HELD_IN: dict[str, torch.dtype] = {
    "int4": torch.int8,
    "int2": torch.int8,
    "uint4": torch.uint8,
    "uint2": torch.uint8,
    "float4_e2m1fn": torch.float32,
}
"""Types that torch lacks, and the wider one in which their values travel."""


def run(
    model: bytes, bind: Mapping[str, np.ndarray], inputs: Sequence[Value], outputs: Sequence[OnnxValue]
) -> list[Value]:
    imported = import_onnx_to_torch(model, bind=bind)
    with torch.no_grad():
        results = imported.module(*(_to_torch(value) for value in inputs))
    listed = list(results) if isinstance(results, tuple) else [results]
    return [_to_numpy(value, declared.dtype) for value, declared in zip(listed, outputs, strict=True)]


def _to_torch(value: Value) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_to_torch(item) for item in value]
    if value.dtype.name in _SAME_BITS:
        bits = value.reshape(-1).view(np.int16 if value.dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.copy()).view(_SAME_BITS[value.dtype.name][1]).reshape(value.shape)
    if value.dtype.name in _HELD_IN:
        held = _HELD_IN[value.dtype.name]
        return torch.from_numpy(value.astype(np.float32 if held is torch.float32 else np.int32)).to(held)
    return torch.from_numpy(value.copy())


def _to_numpy(value: Any, declared: np.dtype | None) -> Value:
    if isinstance(value, (list, tuple)):
        return [_to_numpy(item, declared) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    for numpy_type, torch_type in _SAME_BITS.values():
        if value.dtype == torch_type:
            bits = torch.int16 if value.element_size() == 2 else torch.uint8
            return value.contiguous().reshape(-1).view(bits).numpy().view(numpy_type).reshape(tuple(value.shape))
    array = value.numpy()
    if declared is not None and _HELD_IN.get(declared.name) == value.dtype:
        narrow = array.astype(declared)
        if np.array_equal(narrow.astype(array.dtype), array):  # else it holds what the type cannot, and is not equal
            return narrow
    return array
