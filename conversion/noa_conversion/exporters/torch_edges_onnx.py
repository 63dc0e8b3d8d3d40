"""What PyTorch's exporter leaves out without a word: the divisor of a mean over windows, and the sign of NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

_FLOATS = (1, 10, 11, 16)


def translations() -> dict[Any, Any]:
    """Return the operators and what writes them, for `torch.onnx.export`."""
    import torch

    aten = torch.ops.aten
    return {
        aten.avg_pool2d.default: _pool2d,
        aten.avg_pool3d.default: _pool3d,
        aten.sign.default: _sign,
        aten.multinomial.default: _draw,
    }


def _pool2d(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    from onnxscript.function_libs.torch_lib.ops import nn

    if divisor_override is not None:
        return _divided(x, 2, kernel_size, stride, padding, is_ceiled=ceil_mode, divisor=divisor_override)
    return cast("Any", nn).aten_avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _pool3d(
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    from onnxscript.function_libs.torch_lib.ops import nn

    if divisor_override is not None:
        return _divided(x, 3, kernel_size, stride, padding, is_ceiled=ceil_mode, divisor=divisor_override)
    return cast("Any", nn).aten_avg_pool3d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _divided(
    x: Any,
    axes: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    is_ceiled: bool,
    divisor: int,
) -> Any:
    """Take the mean with all of the padding, which is the sum, and divide that."""
    if is_ceiled or len(x.shape) != axes + 2:
        raise NotImplementedError(f"`avg_pool{axes}d` with `divisor_override` and `ceil_mode`, or without a batch")
    op = _op()
    kernel, edge = (list(sizes) * (axes if len(sizes) == 1 else 1) for sizes in (kernel_size, padding))
    steps = list(stride) * (axes if len(stride) == 1 else 1) or kernel
    means = op.AveragePool(x, kernel_shape=kernel, strides=steps, pads=edge * 2, count_include_pad=1)
    return op.Mul(means, _number(op, math.prod(kernel) / divisor, int(x.dtype)))


def _draw(x: Any, num_samples: int, replacement: bool = False) -> Any:
    """ONNX puts back what it draws; one draw is the same either way."""
    from onnxscript.function_libs.torch_lib.ops import core

    if not replacement and num_samples != 1:
        raise NotImplementedError("`multinomial` without replacement has no ONNX form")
    return cast("Any", core).aten_multinomial(x, num_samples, replacement)


def _sign(x: Any) -> Any:
    """A NaN has none in PyTorch: it gives 0."""
    op = _op()
    kind = int(x.dtype)
    sign = op.Sign(x)
    return op.Where(op.IsNaN(x), _number(op, 0, kind), sign) if kind in _FLOATS else sign


def _number(op: Any, value: float, kind: int) -> Any:
    import onnx_ir as ir

    return op.Constant(value=ir.tensor(value, dtype=ir.DataType(kind)))


def _op() -> Any:
    from onnxscript import opset18

    return cast("Any", opset18)
