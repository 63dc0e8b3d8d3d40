"""Writing at indices and combining there (`scatter_reduce`, `index_add` and their like), for PyTorch's exporter.

Its own rule writes a mean as a plain overwrite, starts extremes from the largest finite number, and gives ONNX what is
written whole where PyTorch takes the corner that the indices cover. Here each is `ScatterElements` in a type that
runtimes combine: halves in 32 bits, as PyTorch does, narrow integers and booleans in 32. Of a mean the sum and the
count are kept; integers are divided to the floor. A NaN stays, which onnxruntime's extremes may lose.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

_BOOL, _FLOAT, _DOUBLE, _INT32, _INT64 = 9, 1, 11, 6, 7
_COMBINED = (_FLOAT, _DOUBLE, _INT32, _INT64)
_HALVES = (10, 16)
_WAYS = {"sum": "add", "prod": "mul", "mean": "add", "amax": "max", "amin": "min"}
_OF_TRUTH = {"sum": "max", "prod": "min", "amax": "max", "amin": "min"}


def translations() -> dict[Any, Any]:
    """Return the operators and what writes them, for `torch.onnx.export`."""
    import torch

    aten = torch.ops.aten
    return {
        aten.scatter.src: _scatter,
        aten.scatter_add.default: _scatter_add,
        aten.scatter_reduce.two: _scatter_reduce,
        aten.scatter.reduce: _scatter_with,
        aten.scatter.value_reduce: _scatter_value_with,
        aten.index_add.default: _index_add,
        aten.index_reduce.default: _index_reduce,
    }


def _scatter(x: Any, dim: int, index: Any, src: Any) -> Any:
    op = _op()
    lines = [_line(op, value) for value in (x, index, src)]
    return _back(op, op.ScatterElements(lines[0], lines[1], _corner(op, lines[2], index, src), axis=dim), x)


def _scatter_add(x: Any, dim: int, index: Any, src: Any) -> Any:
    return _combine(x, dim, index, src, "sum")


def _scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    return _combine(x, dim, index, src, reduce, include_self=include_self)


def _scatter_with(x: Any, dim: int, index: Any, src: Any, reduce: str) -> Any:
    return _combine(x, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])


def _scatter_value_with(x: Any, dim: int, index: Any, value: float, reduce: str) -> Any:
    op = _op()
    src = op.Expand(_number(op, value, int(x.dtype)), op.Shape(index))
    src.dtype, src.shape = x.dtype, index.shape
    return _scatter_with(x, dim, index, src, reduce)


def _index_add(x: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    op = _op()
    kind = int(x.dtype)
    given = source
    if alpha != 1:
        source = op.Mul(source, _number(op, alpha, kind))
        source.dtype, source.shape = given.dtype, given.shape
    return _combine(x, dim, _spread(op, index, given, dim), source, "sum")


def _index_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True) -> Any:
    op = _op()
    return _combine(x, dim, _spread(op, index, source, dim), source, reduce, include_self=include_self)


def _combine(x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """Combine what is written with what is there, or only what is written to one place."""
    op = _op()
    kind = int(x.dtype)
    ways = _OF_TRUTH if kind == _BOOL else _WAYS
    if reduce not in ways:
        raise NotImplementedError(f"`{reduce}` of {x.dtype} at indices has no ONNX form")
    wide = kind if kind in _COMBINED else _FLOAT if kind in _HALVES else _INT32
    if kind not in (*_COMBINED, *_HALVES) and x.dtype.itemsize > 2:
        raise NotImplementedError(f"`{reduce}` of {x.dtype} at indices has no ONNX form")
    places = _line(op, index)
    start = _widened(op, _line(op, x), kind, wide)
    written = _corner(op, _widened(op, _line(op, src), kind, wide), index, src)
    shape = op.Shape(places)
    if not include_self:
        neutral = op.Expand(_number(op, _neutral(reduce, kind), wide), shape)
        start = op.ScatterElements(start, places, neutral, axis=dim)
    result = op.ScatterElements(start, places, written, axis=dim, reduction=ways[reduce])
    is_float = wide in (_FLOAT, _DOUBLE)
    if reduce in ("amax", "amin") and is_float:
        was, comes = (op.Cast(op.IsNaN(value), to=_INT32) for value in (start, written))
        is_nan = op.ScatterElements(was, places, comes, axis=dim, reduction="max")
        result = op.Where(op.Cast(is_nan, to=_BOOL), _number(op, float("nan"), wide), result)
    if reduce == "mean":
        result = _divided(
            op, _widened(op, _widened(op, result, wide, kind), kind, wide), places, dim, wide, include_self
        )
    return _back(op, _widened(op, result, wide, kind), x)


def _divided(op: Any, total: Any, places: Any, dim: int, wide: int, include_self: bool) -> Any:
    one = _number(op, 1, wide)
    before = op.Expand(_number(op, 1 if include_self else 0, wide), op.Shape(total))
    count = op.ScatterElements(before, places, op.Expand(one, op.Shape(places)), axis=dim, reduction="add")
    count = op.Where(op.Equal(count, _number(op, 0, wide)), one, count)
    quotient = op.Div(total, count)
    if wide in (_FLOAT, _DOUBLE):
        return quotient
    zero = _number(op, 0, wide)  # `Div` rounds towards zero, PyTorch to the floor; a count is positive
    is_above = op.And(op.Less(total, zero), op.Not(op.Equal(op.Mul(quotient, count), total)))
    return op.Sub(quotient, op.Cast(is_above, to=wide))


def _neutral(reduce: str, kind: int) -> float:
    """Return the number that gives way to any that is written."""
    import onnx_ir as ir

    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if kind == _BOOL:
        return int(reduce == "amin")
    if kind in (_FLOAT, _DOUBLE, *_HALVES):
        return float("inf") if reduce == "amin" else -float("inf")
    bounds = np.iinfo(ir.DataType(kind).numpy())
    return int(bounds.max if reduce == "amin" else bounds.min)


def _corner(op: Any, written: Any, index: Any, src: Any) -> Any:
    """Return of what is written the part that the indices cover: PyTorch lets them be smaller, ONNX does not."""
    if index.shape is not None and src.shape is not None and list(index.shape) == list(src.shape):
        return written
    axes = list(range(max(len(index.shape or ()), 1)))
    zeros = op.Constant(value_ints=[0 for _ in axes])
    return op.Slice(written, zeros, op.Shape(_line(op, index)), op.Constant(value_ints=axes))


def _spread(op: Any, index: Any, source: Any, dim: int) -> Any:
    """Return an index of lines as one of elements."""
    import onnx_ir as ir

    rank = len(source.shape)
    at = dim % rank if rank else 0
    line = index if len(index.shape) == 1 else op.Reshape(index, op.Constant(value_ints=[-1]))
    axes = [axis for axis in range(rank) if axis != at]
    if axes:
        line = op.Unsqueeze(line, op.Constant(value_ints=axes))
    spread = op.Expand(line, op.Shape(_line(op, source)))
    spread.dtype, spread.shape = index.dtype, source.shape if rank else ir.Shape([1])
    return spread


def _line(op: Any, value: Any) -> Any:
    """ONNX has no indices of a tensor without axes."""
    if value.shape is None or len(value.shape):
        return value
    line = op.Reshape(value, op.Constant(value_ints=[-1]))
    line.dtype = value.dtype
    return line


def _back(op: Any, result: Any, x: Any) -> Any:
    return result if len(x.shape) else op.Reshape(result, op.Shape(x))


def _widened(op: Any, value: Any, source: int, target: int) -> Any:
    return value if source == target else op.Cast(value, to=target)


def _number(op: Any, value: float, kind: int) -> Any:
    import onnx_ir as ir

    return op.Constant(value=ir.tensor(value, dtype=ir.DataType(kind)))


def _op() -> Any:
    from onnxscript import opset18

    return cast("Any", opset18)
