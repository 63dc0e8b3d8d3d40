"""Element types of ONNX in PyTorch.

PyTorch has no arithmetic for types of 4 and 2 bits, so their values are held in wider ones: integers in `int8` or
`uint8`, floats of 4 bits in `float32`. Such a tensor carries its ONNX type in an attribute, which `dtype_of` reads.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

_NATIVE: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "float8_e8m0fnu": torch.float8_e8m0fnu,
}
_HELD: dict[str, torch.dtype] = {
    "int4": torch.int8,
    "int2": torch.int8,
    "uint4": torch.uint8,
    "uint2": torch.uint8,
    "float4_e2m1fn": torch.float32,
}
_NUMPY: dict[torch.dtype, np.dtype] = {}
for _name, _dtype in _NATIVE.items():
    _NUMPY[_dtype] = np.dtype(getattr(ml_dtypes, _name) if hasattr(ml_dtypes, _name) else _name)
_TAG = "_onnx_dtype"


def is_held(dtype: np.dtype) -> bool:
    """Tell whether PyTorch holds the type in a wider one."""
    return dtype.name in _HELD


def torch_dtype_of(dtype: np.dtype) -> torch.dtype | None:
    """Return the type in which PyTorch holds a numpy type, or None for texts and objects."""
    return _HELD.get(dtype.name) or _NATIVE.get(dtype.name)


def dtype_of(tensor: torch.Tensor) -> np.dtype:
    """Return the ONNX type of a tensor as numpy's."""
    tag = getattr(tensor, _TAG, None)
    return tag if tag is not None else _NUMPY[tensor.dtype]


def tagged(tensor: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
    """Return the tensor, marked with its ONNX type if PyTorch holds it in a wider one."""
    if is_held(dtype):
        setattr(tensor, _TAG, dtype)
    return tensor


def to_torch(array: np.ndarray, *, copy: bool = False) -> torch.Tensor:
    """Return an array as a tensor. Memory is shared where it can be; a read-only array is copied.

    Raises:
        TypeError: the array holds texts or objects.
    """
    target = torch_dtype_of(array.dtype)
    if target is None:
        raise TypeError(f"PyTorch has no tensors of {array.dtype}")
    name = array.dtype.name
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    if name in _HELD:
        plain = array.astype(np.float32 if target is torch.float32 else np.int32)
        return tagged(torch.from_numpy(plain).to(target), array.dtype)
    shape = array.shape
    if not array.flags.writeable or copy or not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    if name != "bfloat16" and not name.startswith("float8"):
        return torch.from_numpy(array).reshape(shape)
    bits = np.int16 if name == "bfloat16" else np.uint8
    return torch.from_numpy(array.reshape(-1).view(bits)).view(target).reshape(shape)


def to_numpy(tensor: torch.Tensor, dtype: np.dtype | None = None) -> np.ndarray:
    """Return a tensor as an array, of `dtype` if given: how a type that is held in a wider one gets its name back."""
    tensor = tensor.detach().cpu()
    own = dtype_of(tensor)
    if tensor.dtype in (torch.bfloat16, *_FLOAT8):
        bits = torch.int16 if tensor.dtype is torch.bfloat16 else torch.uint8
        flat = tensor.contiguous().reshape(-1).view(bits).numpy()
        array: np.ndarray = flat.view(_NUMPY[tensor.dtype]).reshape(tuple(tensor.shape))
    else:
        array = tensor.resolve_conj().resolve_neg().numpy()
    wanted = dtype if dtype is not None and is_held(dtype) else own
    return array.astype(wanted) if is_held(wanted) else array


_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
_WIDER: dict[torch.dtype, torch.dtype] = {
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def is_float8(dtype: torch.dtype) -> bool:
    """Tell whether a type is one of the 8-bit floats, which have no arithmetic."""
    return dtype in _FLOAT8


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return unsigned integers of 16 to 64 bits in a signed type that PyTorch computes with; others as they are.

    64-bit values keep their bits: sums and products wrap alike, while order and division need the unsigned forms of
    `unsigned.py`.
    """
    wider = _WIDER.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor (and no array, list or None)."""
    return isinstance(value, torch.Tensor)
