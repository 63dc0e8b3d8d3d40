"""The table of PyTorch's handlers. Each module beside this one registers the operators of one topic into it.

PyTorch has unsigned integers of 16 to 64 bits as a place to keep numbers, and few operators for them; which one is
missing shows only when it runs. So the operators that compute with them, in a signed type, are listed here. Any other
refuses them when the file is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handler, Handlers

HANDLERS = Handlers("torch")
_F = TypeVar("_F", bound=Handler)
_UNSIGNED = {torch.uint16: "uint16", torch.uint32: "uint32", torch.uint64: "uint64"}
COMPUTES_UNSIGNED = frozenset({
    "Abs", "Add", "ArgMax", "ArgMin", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "Cast", "CastLike", "CenterCropPad", "Clip", "Col2Im", "Compress", "Concat", "ConstantOfShape", "CumProd",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Equal", "Erf", "Expand", "EyeLike", "Flatten",
    "Gather", "GatherElements", "GatherND", "Gemm", "Greater", "GreaterOrEqual", "Identity", "If", "Less",
    "LessOrEqual", "Loop", "MatMul", "Max", "Min", "Mod", "Mul", "NonZero", "OneHot", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "ReverseSequence", "Scan",
    "Scatter", "ScatterElements", "ScatterND", "Shape", "Shrink", "Sign", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Sub", "TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Upsample",
    "Where",
})  # fmt: skip
"""Operators that give right numbers for unsigned integers of 16 to 64 bits, or refuse an option by name."""


def register(*kinds: str, domain: str = "", tensors: bool = False) -> Callable[[_F], _F]:
    """Make a function the handler of `kinds`, as `Handlers.register` does; unsigned integers may be refused for it."""

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def guarded(op: Op, *inputs: Any) -> Any:
            if op.kind not in COMPUTES_UNSIGNED:
                _refuse_unsigned(op, inputs)
            return function(op, *inputs)

        HANDLERS.register(*kinds, domain=domain, tensors=tensors)(guarded)
        return function

    return decorate


def _refuse_unsigned(op: Op, inputs: tuple[Any, ...]) -> None:
    for value in inputs:
        if isinstance(value, torch.Tensor):
            name = _UNSIGNED.get(value.dtype)
        else:
            name = value.dtype.name if isinstance(value, np.ndarray) else None
        if name in _UNSIGNED.values():
            op.refuse(f"PyTorch does not compute it for {name}")
