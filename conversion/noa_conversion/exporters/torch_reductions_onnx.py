"""Reductions for PyTorch's exporter, whose own rules are wrong at the edges.

Of theirs an extreme loses a NaN in onnxruntime, `any` of nothing is true, a mean in another type is computed in the
first one, a variance corrected by more than there are elements is negative instead of infinite, `logcumsumexp` of
numbers far below the greatest is -inf, and the cross entropy of large logits with weights is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

_BOOL, _INT32, _UINT8 = 9, 6, 2
_FLOATS = (1, 10, 11, 16)
_REDUCED = (*_FLOATS, 2, 3, 6, 7)  # the types of which ONNX has extremes; the others fit into 32 bits
_MAX_STEPS = 1 << 16
_MEAN, _SUM = 1, 2


def translations() -> dict[Any, Any]:
    """Return the operators and what writes them, for `torch.onnx.export`."""
    import torch

    aten = torch.ops.aten
    return {
        aten.argmax.default: _argmax,
        aten.argmin.default: _argmin,
        aten.amax.default: _amax,
        aten.amin.default: _amin,
        aten.max.default: _max,
        aten.min.default: _min,
        aten.max.dim: _max_of_axis,
        aten.min.dim: _min_of_axis,
        aten.any.default: _any,
        aten.any.dim: _any_of_axis,
        aten.mean.dim: _mean,
        torch.ops.prims.var.default: _variance,
        aten.logcumsumexp.default: _log_of_sums,
        aten.binary_cross_entropy_with_logits.default: _cross_entropy,
    }


def _argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _place(x, "ArgMax", dim, keepdim=keepdim)


def _argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _place(x, "ArgMin", dim, keepdim=keepdim)


def _place(x: Any, name: str, dim: int | None, *, keepdim: bool) -> Any:
    """Find an extreme: the first NaN is one, the others are not looked at then."""
    op = _op()
    rank, kind = len(x.shape), int(x.dtype)
    is_whole = dim is None or rank == 0
    line = op.Reshape(x, op.Constant(value_ints=[-1])) if is_whole else x
    axis = 0 if is_whole else dim
    line = line if kind in _REDUCED else op.Cast(line, to=_INT32)
    if kind in _FLOATS:
        is_nan = op.Cast(op.IsNaN(line), to=_INT32)
        shown = op.Cast(op.ReduceMax(is_nan, op.Constant(value_ints=[axis]), keepdims=1), to=_BOOL)
        marks = op.Cast(is_nan if name == "ArgMax" else op.Neg(is_nan), to=kind)
        line = op.Where(shown, marks, line)
    found = getattr(op, name)(line, axis=axis, keepdims=int(keepdim and not is_whole))
    return op.Reshape(found, op.Constant(value_ints=[1] * rank)) if is_whole and keepdim and rank else found


def _amax(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _extreme(x, "ReduceMax", dim, keepdim=keepdim)


def _amin(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _extreme(x, "ReduceMin", dim, keepdim=keepdim)


def _max(x: Any) -> Any:
    return _extreme(x, "ReduceMax", (), keepdim=False)


def _min(x: Any) -> Any:
    return _extreme(x, "ReduceMin", (), keepdim=False)


def _max_of_axis(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _extreme(x, "ReduceMax", [dim], keepdim=keepdim), _place(x, "ArgMax", dim, keepdim=keepdim)


def _min_of_axis(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _extreme(x, "ReduceMin", [dim], keepdim=keepdim), _place(x, "ArgMin", dim, keepdim=keepdim)


def _extreme(x: Any, name: str, dim: Sequence[int], *, keepdim: bool) -> Any:
    op = _op()
    rank, kind = len(x.shape), int(x.dtype)
    if not rank:
        return op.Identity(x)
    axes = op.Constant(value_ints=list(dim) or list(range(rank)))
    keepdims = int(keepdim)
    operand = x if kind in _REDUCED else op.Cast(x, to=_INT32)
    result = getattr(op, name)(operand, axes, keepdims=keepdims)
    if kind not in _REDUCED:
        return op.Cast(result, to=kind)
    if kind not in _FLOATS:
        return result
    has_nan = op.Cast(op.ReduceMax(op.Cast(op.IsNaN(x), to=_INT32), axes, keepdims=keepdims), to=_BOOL)
    return op.Where(has_nan, _number(op, float("nan"), kind), result)


def _any(x: Any) -> Any:
    return _any_of(x, list(range(len(x.shape))), keepdim=False)


def _any_of_axis(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _any_of(x, [dim] if len(x.shape) else [], keepdim=keepdim)


def _any_of(x: Any, axes: list[int], *, keepdim: bool) -> Any:
    """Of nothing runtimes give the lowest number, which is no truth."""
    op = _op()
    truth = op.Cast(x, to=_BOOL)
    if axes:
        highest = op.ReduceMax(op.Cast(truth, to=_INT32), op.Constant(value_ints=axes), keepdims=int(keepdim))
        truth = op.Greater(highest, _number(op, 0, _INT32))
    return op.Cast(truth, to=_UINT8) if int(x.dtype) == _UINT8 else truth


def _mean(x: Any, dim: Sequence[int] | None, keepdim: bool = False, dtype: int | None = None) -> Any:
    op = _op()
    rank = len(x.shape)
    wanted = x if dtype in (None, -1) or dtype == int(x.dtype) else op.Cast(x, to=dtype)
    if not rank:
        return op.Identity(wanted)
    axes = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return op.ReduceMean(wanted, op.Constant(value_ints=axes), keepdims=int(keepdim))


def _variance(x: Any, dims: Sequence[int] | None, correction: float | None = 1, output_dtype: int | None = None) -> Any:
    op = _op()
    rank, kind = len(x.shape), int(x.dtype)
    if not rank or output_dtype not in (None, -1, kind):
        raise NotImplementedError("a variance of one number, or in another type, has no ONNX form")
    axes = op.Constant(value_ints=list(dims or range(rank)))
    apart = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    total = op.ReduceSum(op.Mul(apart, apart), axes, keepdims=0)
    size = op.Cast(op.ReduceProd(op.Gather(op.Shape(x), axes), keepdims=0), to=kind)
    count = op.Sub(size, _number(op, 1 if correction is None else correction, kind))
    return op.Div(total, op.Max(count, _number(op, 0, kind)))


def _log_of_sums(x: Any, dim: int) -> Any:
    """Add each element to the one 1, 2, 4, ... places before it, in logarithms."""
    op = _op()
    rank, kind = len(x.shape), int(x.dtype)
    if not rank:
        return op.Identity(x)
    size = x.shape[dim]
    if not isinstance(size, int) or size > _MAX_STEPS:
        raise NotImplementedError("`logcumsumexp` along a free axis has no ONNX form")
    axis = op.Constant(value_ints=[dim % rank])
    result, step = x, 1
    while step < size:
        pads = op.Constant(value_ints=[step if at == dim % rank else 0 for at in range(rank)] + [0] * rank)
        kept = op.Slice(result, op.Constant(value_ints=[0]), op.Constant(value_ints=[size - step]), axis)
        result = _log_of_sum(op, result, op.Pad(kept, pads, _number(op, -float("inf"), kind)), kind)
        step *= 2
    return result


def _log_of_sum(op: Any, x: Any, y: Any, kind: int) -> Any:
    highest, lowest = op.Max(x, y), op.Min(x, y)
    one, zero = _number(op, 1, kind), _number(op, 0, kind)
    apart = op.Where(op.Equal(x, y), zero, op.Sub(lowest, highest))  # two infinities are not apart
    return op.Add(highest, op.Log(op.Add(one, op.Exp(apart))))


def _cross_entropy(x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = _MEAN) -> Any:
    """As PyTorch: `(1 - t) x + (1 + (p - 1) t) log(1 + exp(-x))`, in which nothing overflows."""
    op = _op()
    kind = int(x.dtype)
    one, zero = _number(op, 1, kind), _number(op, 0, kind)
    soft = op.Add(op.Max(op.Neg(x), zero), op.Log(op.Add(one, op.Exp(op.Neg(op.Abs(x))))))
    if pos_weight is not None:
        soft = op.Mul(soft, op.Add(one, op.Mul(op.Sub(pos_weight, one), target)))
    loss = op.Add(op.Mul(op.Sub(one, target), x), soft)
    if weight is not None:
        loss = op.Mul(loss, weight)
    if reduction not in (_MEAN, _SUM):
        return loss
    return op.ReduceMean(loss, keepdims=0) if reduction == _MEAN else op.ReduceSum(loss, keepdims=0)


def _number(op: Any, value: float, kind: int) -> Any:
    import onnx_ir as ir

    return op.Constant(value=ir.tensor(value, dtype=ir.DataType(kind)))


def _op() -> Any:
    from onnxscript import opset18

    return cast("Any", opset18)
