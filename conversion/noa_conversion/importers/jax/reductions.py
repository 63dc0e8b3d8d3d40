"""Reductions, running sums, arg-extremes, top-k, and the softmax family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax import softmaxes
from noa_conversion.importers.jax.dtypes import accumulator, held_as, highest, is_float, is_unsigned, lowest
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_AXES_ARE_AN_INPUT = {"ReduceSum": 13}
_SOFTMAX_BY_AXIS = 13


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return jnp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _average(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if is_float(x):
        return jnp.mean(x, axis=axes, keepdims=keep)
    wide = x.astype(jnp.uint64 if is_unsigned(x) else jnp.int64)  # a sum may be beyond the type that its mean has
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return lax.div(_sum(wide, axes, keep), jnp.asarray(count, wide.dtype)).astype(x.dtype)


def _largest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return jnp.max(x, axis=axes, keepdims=keep, initial=lowest(x.dtype) if _is_empty(x, axes) else None)


def _smallest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return jnp.min(x, axis=axes, keepdims=keep, initial=highest(x.dtype) if _is_empty(x, axes) else None)


def _is_empty(x: Tensor, axes: tuple[int, ...]) -> bool:
    return any(x.shape[axis] == 0 for axis in axes)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return jnp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _euclidean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if is_float(x):
        return jnp.sqrt(_sum(x * x, axes, keep))
    return jnp.sqrt(_sum(x.astype(jnp.float64) ** 2, axes, keep)).astype(x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    wide = x if is_float(x) else x.astype(jnp.float64)
    total = softmaxes.log_sum_exp(wide, axes).astype(x.dtype)
    return total if keep else total.squeeze(axes)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return jnp.log(_sum(x, axes, keep)).astype(x.dtype)


_REDUCTIONS: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
    "ReduceSum": _sum,
    "ReduceMean": _average,
    "ReduceMax": _largest,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(jnp.abs(x), axes, keep),
    "ReduceL2": _euclidean,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduce(
    kind: str, function: Callable[[Any, tuple[int, ...], bool], Any], op: Op, data: Any, axes: Any = None
) -> Tensor:
    x = op.tensor(data)
    if op.version < _AXES_ARE_AN_INPUT.get(kind, 18):
        listed = op.attribute("axes", list[int]())
    else:
        listed = [] if axes is None else op.integers(axes, "axes")
    if not listed:
        if op.attribute("noop_with_empty_axes", 0):
            return _without_axes(kind, x)
        listed = list(range(x.ndim))
    return function(x, tuple(op.axis(int(axis), x.ndim) for axis in listed), bool(op.attribute("keepdims", 1)))


def _without_axes(kind: str, x: Tensor) -> Tensor:
    """Return what a reduction over no axis gives: what is done to each element still is."""
    if kind in ("ReduceL1", "ReduceL2"):
        return jnp.abs(x)
    if kind == "ReduceSumSquare":
        return x * x
    return jnp.log(x) if kind == "ReduceLogSum" else x


for _kind, _function in _REDUCTIONS.items():
    register(_kind)(functools.partial(_reduce, _kind, _function))


def _arg_extreme(choose: Callable[..., Any], op: Op, x: Tensor) -> Tensor:
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    keep = bool(op.attribute("keepdims", 1))
    if op.attribute("select_last_index", 0):
        found = x.shape[axis] - 1 - first_extreme(choose, jnp.flip(x, axis), axis)
    else:
        found = first_extreme(choose, x, axis)
    return (lax.expand_dims(found, (axis,)) if keep else found).astype(held_as(np.int64))


def first_extreme(choose: Callable[..., Any], x: Tensor, axis: int) -> Tensor:
    """Return the first place of an extreme, in 32 bits; `choose` is `lax.argmax` or `lax.argmin`.

    JAX lowers both in the scope of its caller, and fails there for 64-bit places or elements if it has no 64 bits.
    """
    if np.dtype(x.dtype).itemsize < 8:
        return choose(x, axis, np.int32)
    extreme = (jnp.max if choose is lax.argmax else jnp.min)(x, axis=axis, keepdims=True)
    is_it = (x == extreme) | (x != x)  # what is no number comes first, as in lax
    places = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.min(jnp.where(is_it, places, np.int32(np.iinfo(np.int32).max)), axis=axis)


register("ArgMax", tensors=True)(functools.partial(_arg_extreme, lax.argmax))
register("ArgMin", tensors=True)(functools.partial(_arg_extreme, lax.argmin))


def _running(function: Callable[..., Any], neutral: int, op: Op, data: Any, axis: Any) -> Tensor:
    x = op.tensor(data)
    along = op.axis(int(op.integer(axis, "axis")), x.ndim)
    backwards = bool(op.attribute("reverse", 0))
    if op.attribute("exclusive", 0):
        shift = (-1, 1, 0) if backwards else (1, -1, 0)
        edge = [shift if i == along else (0, 0, 0) for i in range(x.ndim)]
        x = lax.pad(x, jnp.asarray(neutral, x.dtype), edge)
    return function(x, axis=along, reverse=backwards)


register("CumSum")(functools.partial(_running, lax.cumsum, 0))
register("CumProd")(functools.partial(_running, lax.cumprod, 1))


@register("TopK")
def top_k(op: Op, data: Any, k: Any = None) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest along an axis and where they are; ties go to the lower index."""
    x = op.tensor(data)
    count = op.attribute("k") if op.version < 10 else op.integer(k, "K")
    axis = op.axis(op.attribute("axis", -1), x.ndim)
    moved = jnp.moveaxis(x, axis, -1)
    order = moved if op.attribute("largest", 1) else _reversed_order(moved)
    _, indices = lax.top_k(lax.stop_gradient(_with_one_zero(order)), count)
    values = jnp.take_along_axis(moved, indices, axis=-1)
    indices = indices.astype(held_as(np.int64))
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


def _reversed_order(x: Tensor) -> Tensor:
    return -x if is_float(x) else jnp.bitwise_not(x)  # the complement turns the order of all integers, signed or not


def _with_one_zero(x: Tensor) -> Tensor:
    """Return what `lax.top_k` is to order by: it puts -0 below 0, and to onnxruntime they are equal.

    By its bits, where JAX has a type for them: compared as a number, what is not quite zero could count as it.
    """
    if not is_float(x):
        return x
    width = np.dtype(x.dtype).itemsize * 8
    if width == 64:  # the bits of 64 are whole numbers that JAX may not have
        return jnp.where(x == 0, jnp.zeros_like(x), x)
    bits = lax.bitcast_convert_type(x, np.dtype(f"uint{width}"))
    return jnp.where(bits == bits.dtype.type(1 << (width - 1)), jnp.zeros_like(x), x)


def _softmax_shape(op: Op, x: Tensor) -> tuple[Tensor, int]:
    """Return the tensor and the axis to normalise over: before opset 13 all axes from `axis` on count as one."""
    if op.version >= _SOFTMAX_BY_AXIS:
        return x, op.axis(op.attribute("axis", -1), x.ndim)
    axis = op.axis(op.attribute("axis", 1), x.ndim)
    if axis == x.ndim - 1:
        return x, axis
    return x.reshape((*x.shape[:axis], -1)), axis


@register("Softmax", tensors=True)
def softmax(op: Op, x: Tensor) -> Tensor:
    """Normalise the exponentials."""
    flat, axis = _softmax_shape(op, x)
    return softmaxes.softmax(flat, axis).reshape(x.shape)


@register("LogSoftmax", tensors=True)
def log_softmax(op: Op, x: Tensor) -> Tensor:
    """Normalise in the logarithm."""
    flat, axis = _softmax_shape(op, x)
    return softmaxes.log_softmax(flat, axis).reshape(x.shape)


@register("Hardmax", tensors=True)
def hardmax(op: Op, x: Tensor) -> Tensor:
    """One at the first largest element, zero elsewhere."""
    flat, axis = _softmax_shape(op, x)
    return jax.nn.one_hot(first_extreme(lax.argmax, flat, axis), flat.shape[axis], dtype=x.dtype, axis=axis).reshape(
        x.shape
    )


def sum_of_squares(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sum of squares, accumulated in at least 32 bits."""
    wide = x.astype(accumulator(x.dtype))
    return jnp.sum(wide * wide, axis=axes, keepdims=True)
