"""Sums, means, norms and extremes over axes, and running sums along one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch import unsigned
from noa_conversion.importers.torch.dtypes import widened
from noa_conversion.importers.torch.operands import in_wider, is_integer, is_static
from noa_conversion.importers.torch.table import register

Reduce = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _axes(op: Op, x: torch.Tensor, axes: Value) -> list[int] | None:
    """Return the axes to reduce; None if nothing is."""
    listed = op.integers(axes, "axes") if axes is not None else op.attribute("axes", [])
    if not listed:
        return None if op.attribute("noop_with_empty_axes", 0) else list(range(x.ndim))
    return sorted({op.axis(int(axis), x.ndim) for axis in listed})


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if is_integer(x):
        return torch.div(_sum(x.to(torch.int64), axes, keep), _count(x, axes), rounding_mode="trunc").to(x.dtype)
    return torch.mean(x, axes, keepdim=keep)


def _count(x: torch.Tensor, axes: list[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in reversed(axes):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(x: torch.Tensor, axes: list[int], keep: bool, *, largest: bool) -> torch.Tensor:
    if any(is_static(x.shape[axis]) and x.shape[axis] == 0 for axis in axes):
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        kept = shape if keep else [size for axis, size in enumerate(shape) if axis not in axes]
        return torch.full(kept, _worst(x.dtype, largest=largest), dtype=x.dtype, device=x.device)
    compute = torch.amax if largest else torch.amin
    free = [axis for axis in axes if not is_static(x.shape[axis])]
    if not free:
        return compute(x, axes, keep)
    fixed = [axis for axis in axes if axis not in free]
    x = compute(x, fixed, True) if fixed else x
    for axis in free:  # it may have no elements at run time, where PyTorch gives an error and ONNX the worst value
        one = [1 if place == axis else size for place, size in enumerate(x.shape)]
        worst = torch.full(one, _worst(x.dtype, largest=largest), dtype=x.dtype, device=x.device)
        x = compute(torch.cat([x, worst], axis), [axis], True)
    return x if keep else torch.squeeze(x, axes)


def _worst(dtype: torch.dtype, *, largest: bool) -> float | int | bool:
    if dtype == torch.bool:
        return not largest
    if dtype.is_floating_point:
        return -math.inf if largest else math.inf
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def _max(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _extreme(x, axes, keep, largest=True)


def _min(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _extreme(x, axes, keep, largest=False)


def _l1(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _sum(torch.abs(x), axes, keep)


def _l2(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if is_integer(x):
        return torch.sqrt(_sum(x.to(torch.float64) ** 2, axes, keep)).to(x.dtype)
    return torch.sqrt(_sum(x * x, axes, keep))


def _sum_square(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _in_float(lambda wide: torch.log(_sum(wide, axes, keep)), x)


def _log_sum_exp(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return _in_float(lambda wide: torch.logsumexp(wide, axes, keep), x)


def _in_float(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return compute(x.to(torch.float64)).to(x.dtype) if is_integer(x) else compute(x)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}
_IN_DOUBLE = {"ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}
_BEFORE_REDUCTION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": torch.square,
    "ReduceLogSum": torch.log,
}


@register(*_REDUCTIONS)
def reduce(op: Op, x: Value, axes: Value = None) -> torch.Tensor:
    """Reduce over axes; none means all, or with `noop_with_empty_axes` each value by itself."""
    tensor = op.tensor(x)
    over = _axes(op, tensor, axes)
    is_unsigned = tensor.dtype in (torch.uint16, torch.uint32, torch.uint64)
    kind = "ReduceSum" if op.kind == "ReduceL1" and is_unsigned else op.kind  # it is its own absolute value
    if over is None:
        before = _BEFORE_REDUCTION.get(kind)
        return tensor if before is None else in_wider(before, tensor)
    if tensor.dtype == torch.uint64 and kind in _IN_DOUBLE:
        op.refuse("PyTorch has no 64-bit unsigned numbers in double precision here")
    compute, keep = _REDUCTIONS[kind], bool(op.attribute("keepdims", 1))
    if not over:
        tensor, over, keep = tensor.reshape(1), [0], False
    if tensor.dtype == torch.uint64 and kind in ("ReduceMax", "ReduceMin"):
        return unsigned.ordered(compute(unsigned.ordered(tensor), over, keep)).to(torch.uint64)
    return in_wider(lambda wide: compute(wide, over, keep), tensor)


@register("ArgMax", "ArgMin", tensors=True)
def arg_extreme(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Index of the greatest or least value along an axis: the first, or the last with `select_last_index`."""
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    compute = torch.argmax if op.kind == "ArgMax" else torch.argmin
    keep = bool(op.attribute("keepdims", 1))
    x = unsigned.in_order(x)
    if not op.attribute("select_last_index", 0):
        return compute(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - compute(torch.flip(x, [axis]), axis, keepdim=keep)


@register("CumSum", "CumProd")
def cumulative(op: Op, x: Value, axis: Value) -> torch.Tensor:
    """Running sum or product; `exclusive` leaves the own value out, `reverse` begins at the end."""
    tensor, dtype = widened(op.tensor(x)), op.tensor(x).dtype
    along = op.axis(int(op.integer(axis, "axis")), tensor.ndim)
    compute = torch.cumsum if op.kind == "CumSum" else torch.cumprod
    if op.attribute("reverse", 0):
        tensor = torch.flip(tensor, [along])
    if op.attribute("exclusive", 0):
        first = tensor.narrow(along, 0, 1)
        start = torch.zeros_like(first) if op.kind == "CumSum" else torch.ones_like(first)
        tensor = torch.cat([start, tensor.narrow(along, 0, tensor.shape[along] - 1)], along)
    result = compute(tensor, along, dtype=tensor.dtype)
    result = torch.flip(result, [along]) if op.attribute("reverse", 0) else result
    return result if result.dtype == dtype else result.to(dtype)
