"""Protobuf messages of ONNX as the values of `model.py`: tensors, types and texts. `building.py` makes the graphs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from noa.errors import InvalidInputError
from noa_conversion.formats.onnx_check import EMBEDDED, packed_bits
from noa_conversion.onnx_graph.dtypes import TEXT, dtype_of
from noa_conversion.onnx_graph.model import OnnxValue, ValueKind

_MAX_DENSE_BYTES = 1 << 28
_MAX_RANK = 64
_NAMING = re.compile(r"\w")


class TensorReader:
    """Reads tensors as arrays: views of the file's bytes, or of the files beside it, where there is no need to copy."""

    __slots__ = ("_data", "_path")

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """Return a checked tensor as an array, read-only.

        Raises:
            InvalidInputError: its type or its texts cannot be read.
        """
        dtype = dtype_of(tensor.data_type)
        if dtype is None or len(tensor.dims) > _MAX_RANK:
            raise self._refuse(tensor.name, "has a type or a rank that no tensor has")
        shape = tuple(tensor.dims)
        if dtype == TEXT:
            return _read_texts(tensor, self._path)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = self._stored(tensor, dtype, shape)
        elif tensor.HasField("raw_data") and packed_bits(tensor.data_type) == 8:
            array = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype)
            array = array.reshape(shape)
        else:
            try:
                array = np.asarray(numpy_helper.to_array(tensor)).astype(dtype, copy=False).reshape(shape)
            except (ValueError, TypeError, KeyError, OverflowError) as exc:
                raise self._refuse(tensor.name, f"cannot be read: {exc}") from exc
        array.flags.writeable = False
        return array

    def read_sparse(self, sparse: onnx.SparseTensorProto) -> np.ndarray:
        """Return a sparse tensor as a dense array.

        Raises:
            InvalidInputError: it is too large to be made dense, or an index lies outside.
        """
        name, dims = sparse.values.name, tuple(sparse.dims)
        values, indices = self.read(sparse.values), self.read(sparse.indices)
        total = math.prod(dims)
        if (
            min(dims, default=0) < 0
            or total * max(values.dtype.itemsize, 1) > _MAX_DENSE_BYTES
            or len(dims) > _MAX_RANK
        ):
            raise self._refuse(name, f"claims the dense shape {dims}, more than {_MAX_DENSE_BYTES} bytes")
        if (
            indices.dtype != np.int64
            or values.ndim != 1
            or indices.shape not in ((values.size,), (values.size, len(dims)))
        ):
            raise self._refuse(name, "has indices that do not fit its values")
        if indices.ndim == 2:
            if indices.size and not ((indices >= 0).all() and (indices < np.asarray(dims)).all()):
                raise self._refuse(name, "has an index outside its shape")
            indices = np.ravel_multi_index(tuple(indices.T), dims) if indices.size else np.zeros(0, np.int64)
        elif indices.size and not (indices.min() >= 0 and indices.max() < total):
            raise self._refuse(name, "has an index outside its shape")
        dense = np.zeros(total, values.dtype)
        dense[indices] = values
        dense.flags.writeable = False
        return dense.reshape(dims)

    def _stored(self, tensor: onnx.TensorProto, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location, offset = entries["location"], int(entries.get("offset", "0") or 0)
        bits = packed_bits(tensor.data_type)
        elements = math.prod(shape)
        count = (elements * bits + 7) // 8 if bits < 8 else elements * dtype.itemsize
        if count == 0:
            return np.zeros(shape, dtype)
        if location == EMBEDDED:
            held: np.ndarray = np.frombuffer(self._data, np.uint8, count, offset)
        else:
            held = np.memmap(self._path.parent / location, np.uint8, "r", offset, (count,)).view(np.ndarray)
        if bits == 8:
            return held.view(dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype).reshape(shape)
        return _unpacked(held, bits, elements).view(np.int8).astype(dtype).reshape(shape)

    def _refuse(self, name: str, claim: str) -> InvalidInputError:
        return InvalidInputError(f"tensor `{name}` {claim}", where=str(self._path))


def read_type(value: onnx.ValueInfoProto) -> OnnxValue:
    """Return what a file declares about a value; what it does not say or says in an unknown way is None."""
    return typed_value(value.name, value.type)


def typed_value(name: str, declared: onnx.TypeProto) -> OnnxValue:
    """Return a type under a name."""
    kinds: Mapping[str, ValueKind] = {
        "tensor_type": "tensor",
        "sparse_tensor_type": "tensor",
        "sequence_type": "sequence",
        "optional_type": "optional",
        "map_type": "map",
    }
    which = declared.WhichOneof("value") or ""
    kind: ValueKind = kinds.get(which, "unknown")
    inner: Any = declared
    while inner.WhichOneof("value") in ("sequence_type", "optional_type"):
        inner = getattr(inner, inner.WhichOneof("value")).elem_type
    tensor = getattr(inner, inner.WhichOneof("value") or "", None)
    if kind in ("unknown", "map") or tensor is None or not hasattr(tensor, "shape"):
        return OnnxValue(name=name, kind=kind)
    shape = tuple(_axis(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return OnnxValue(name=name, kind=kind, dtype=dtype_of(tensor.elem_type), shape=shape)


def _axis(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    name = str(dim.dim_param)
    return name if _NAMING.search(name) else None  # `?` on two axes does not say that they are equal


def read_text(data: bytes, what: str, path: Path) -> str:
    """Return text of a file.

    Raises:
        InvalidInputError: it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{what} holds bytes that are no text", where=str(path)) from exc


def _read_texts(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    texts = [read_text(entry, f"tensor `{tensor.name}`", path) for entry in tensor.string_data]
    return np.asarray(texts, TEXT).reshape(tuple(tensor.dims))


def _unpacked(held: np.ndarray, bits: int, elements: int) -> np.ndarray:
    """Return elements of 2 or 4 bits, the lowest first in each byte, one per byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((held[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:elements]
