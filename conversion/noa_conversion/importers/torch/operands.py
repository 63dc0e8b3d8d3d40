"""Operands of two-sided operators: Python scalars where a number is known, wider integers where PyTorch needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.dtypes import widened

_SCALAR_KINDS = {"float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8"}


def scalar_of(value: Value) -> int | float | None:
    """Return a known number that fills an array of one element, or None."""
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.name not in _SCALAR_KINDS:
        return None
    return value.reshape(()).item() if value.dtype.name != "bfloat16" else float(value.reshape(()))


def second_operand(op: Op, first: torch.Tensor, second: Value) -> Any:
    """Return the second operand as a Python scalar if it is a known one that changes no shape, else as a tensor."""
    scalar = scalar_of(second)
    return scalar if scalar is not None and second.ndim <= first.ndim else op.tensor(second)


def placed(op: Op, first: Value, second: Value) -> Value:
    """Return the second operand shaped as opsets before 7 say it: `axis` is where its axes begin in the first's."""
    if op.version >= 7 or not op.attribute("broadcast", 0) or second is None:
        return second
    rank, own = op.rank(first), op.rank(second)
    axis = op.axis(op.attribute("axis", rank - own), rank) if op.has("axis") else rank - own
    shape = [*op.shape(second), *[1] * (rank - axis - own)]
    return second.reshape(shape)


def in_wider(compute: Callable[..., torch.Tensor], *tensors: Any) -> torch.Tensor:
    """Compute with 16- to 64-bit unsigned integers in a signed type, and give the result the first operand's type."""
    dtype = next(tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor))
    wide = [widened(tensor) if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors]
    result = compute(*wide)
    return result if result.dtype == dtype else result.to(dtype)


def is_integer(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds whole numbers (truth values not counted)."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def is_static(size: object) -> bool:
    """Tell whether a size is a plain number: PyTorch's types say that all are, and free axes have symbols."""
    return isinstance(size, int)
