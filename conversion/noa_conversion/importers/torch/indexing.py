"""Operators that read and write at indices, and those whose result is indices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch import unsigned
from noa_conversion.importers.torch.dtypes import dtype_of, tagged, widened
from noa_conversion.importers.torch.operands import in_wider, is_static
from noa_conversion.importers.torch.table import register

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_front(indices: torch.Tensor, size: Size) -> torch.Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@register("Gather")
def gather(op: Op, x: Value, indices: Value) -> torch.Tensor:
    """Take whole slices of an axis."""
    tensor = op.tensor(x)
    axis = op.axis(op.attribute("axis", 0), tensor.ndim)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return torch.select(tensor, axis, op.integer(indices, "indices"))
    places = op.tensor(indices)
    is_plain = isinstance(indices, np.ndarray) and indices.dtype != object and (indices >= 0).all()
    places = places if is_plain else _from_front(places, tensor.shape[axis])
    if axis == 0 and tensor.ndim == 2 and tensor.is_floating_point() and tensor.element_size() > 1:
        return functional.embedding(places, tensor)
    if places.ndim == 1:
        return tagged(torch.index_select(tensor, axis, places), dtype_of(tensor))
    taken = torch.index_select(tensor, axis, places.reshape(-1))
    return tagged(taken.reshape([*tensor.shape[:axis], *places.shape, *tensor.shape[axis + 1 :]]), dtype_of(tensor))


@register("GatherElements", tensors=True)
def gather_elements(op: Op, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Take single elements along an axis."""
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    places = _from_front(indices, x.shape[axis])
    return in_wider(lambda wide: torch.gather(wide, axis, places), x)


@register("GatherND", tensors=True)
def gather_nd(op: Op, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Take slices at tuples of indices, batch by batch."""
    batch_dims = op.attribute("batch_dims", 0)
    depth = indices.shape[-1]
    if not is_static(depth):
        op.refuse("how many indices make a tuple is known only at run time")
    parts = [_from_front(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    rank = indices.ndim - 1
    batches = [
        torch.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(rank)]) for axis in range(batch_dims)
    ]
    return x[(*batches, *parts)]


@register("ScatterElements", "Scatter", tensors=True)
def scatter_elements(op: Op, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Write single elements along an axis, or combine them with what is there."""
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    places = _from_front(indices, x.shape[axis])
    reduction = op.attribute("reduction", "none")
    if reduction == "none":
        return in_wider(lambda wide, new: torch.scatter(wide, axis, places, new), x, updates)
    if reduction not in _REDUCE:
        op.refuse(f"the reduction `{reduction}` is unknown")
    if reduction == "add":
        return in_wider(lambda wide, new: torch.scatter_add(wide, axis, places, new), x, updates)
    return _combined(
        lambda wide, new: torch.scatter_reduce(wide, axis, places, new, _REDUCE[reduction], include_self=True),
        *(reduction, x, updates),
    )


def _combined(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    reduction: str,
    x: torch.Tensor,
    updates: torch.Tensor,
) -> torch.Tensor:
    """Combine what is there with updates; the greater of two 64-bit unsigned integers is found in their true order."""
    if x.dtype == torch.uint64 and reduction in ("max", "min"):
        return unsigned.ordered(compute(unsigned.ordered(x), unsigned.ordered(updates))).to(x.dtype)
    return in_wider(compute, x, updates)


@register("ScatterND", tensors=True)
def scatter_nd(op: Op, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """Write slices at tuples of indices, or combine them with what is there."""
    depth = indices.shape[-1]
    if not is_static(depth):
        op.refuse("how many indices make a tuple is known only at run time")
    reduction = op.attribute("reduction", "none")
    parts = [_from_front(indices[..., i], x.shape[i]) for i in range(depth)]
    if reduction in ("none", "add"):
        is_sum = reduction == "add"
        return in_wider(lambda wide, new: torch.index_put(wide, tuple(parts), new, accumulate=is_sum), x, updates)
    if reduction not in _REDUCE:
        op.refuse(f"the reduction `{reduction}` is unknown")
    place = parts[0]
    for axis in range(1, depth):
        place = place * x.shape[axis] + parts[axis]
    rest = list(x.shape[depth:])
    width = math.prod(rest)
    rows = place.reshape(-1, 1).expand(-1, width)
    result = _combined(
        lambda wide, new: torch.scatter_reduce(wide, 0, rows, new, _REDUCE[reduction], include_self=True),
        *(reduction, x.reshape(-1, width), updates.reshape(-1, width)),
    )
    return result.reshape(x.shape)


@register("TensorScatter", tensors=True)
def tensor_scatter(
    op: Op, cache: torch.Tensor, update: torch.Tensor, write_indices: torch.Tensor | None = None
) -> torch.Tensor:
    """Write a block into a cache, for each batch at its own place."""
    axis = op.axis(op.attribute("axis", -2), cache.ndim)
    mode = op.attribute("mode", "linear")
    if mode not in ("linear", "circular"):
        op.refuse(f"the mode `{mode}` is unknown")
    places = torch.arange(update.shape[axis]).reshape([-1 if i == axis else 1 for i in range(cache.ndim)])
    if write_indices is not None:
        places = places + write_indices.to(torch.int64).reshape([-1] + [1] * (cache.ndim - 1))
    if mode == "circular":
        places = torch.remainder(places, cache.shape[axis])
    return in_wider(lambda wide, new: torch.scatter(wide, axis, places.expand(update.shape), new), cache, update)


@register("OneHot")
def one_hot(op: Op, indices: Value, depth: Value, values: Value) -> torch.Tensor:
    """One value at the index, another elsewhere; an index outside of the depth marks nothing."""
    places = op.tensor(indices)
    count = int(np.asarray(op.known(depth, "depth")).reshape(()))
    axis = op.attribute("axis", -1)
    axis = axis + places.ndim + 1 if axis < 0 else axis
    levels = op.tensor(values)
    whole = _from_front(_whole(places, beyond=count), count)
    row = torch.arange(count).reshape([-1 if i == axis else 1 for i in range(places.ndim + 1)])
    return torch.where(torch.unsqueeze(whole, axis) == row, levels[1], levels[0])


def _whole(places: torch.Tensor, *, beyond: int) -> torch.Tensor:
    """Return indices of any type as `int64`; what that does not hold becomes `beyond`."""
    whole = places.to(torch.int64)
    if places.dtype == torch.uint64:
        return torch.where(whole < 0, torch.full_like(whole, beyond), whole)
    if not places.is_floating_point():
        return whole
    is_held = (places > -(2.0**62)) & (places < 2.0**62)  # no number fails both
    return torch.where(is_held, whole, torch.full_like(whole, beyond))


@register("TopK")
def top_k(op: Op, x: Value, k: Value = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest or least values of an axis with their indices; of equal ones the first."""
    tensor = op.tensor(x)
    axis = op.axis(op.attribute("axis", -1), tensor.ndim)
    count = op.integer(k, "k") if op.version >= 10 else op.attribute("k")
    largest = bool(op.attribute("largest", 1))

    order = torch.sort(unsigned.in_order(tensor), dim=axis, descending=largest, stable=True)[1]
    places = torch.narrow(order, axis, 0, count)
    return in_wider(lambda wide: torch.gather(wide, axis, places), tensor), places


@register("NonZero", tensors=True)
def non_zero(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Indices of all values other than zero, one row per axis."""
    x = widened(x)
    if x.ndim == 0:
        return torch.nonzero(x.reshape(1)).transpose(0, 1).narrow(0, 0, 0)
    return torch.nonzero(x).transpose(0, 1)


@register("Compress")
def compress(op: Op, x: Value, condition: Value) -> torch.Tensor:
    """Keep the slices of an axis where a condition holds."""
    tensor = op.tensor(x)
    axis = op.attribute("axis", None)
    if axis is None:
        tensor, axis = tensor.reshape(-1), 0
    axis = op.axis(axis, tensor.ndim)
    if op.is_known(condition):
        places = op.tensor(np.flatnonzero(condition).astype(np.int64))
    else:
        places = torch.nonzero(op.tensor(condition)).reshape(-1)
    return torch.index_select(tensor, axis, places)


@register("Unique", tensors=True)
def unique(op: Op, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each value once, with its first index, its place and its count; sorted, or in order of appearance."""
    axis = op.attribute("axis", None)
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = op.axis(axis, x.ndim)
    size = x.shape[axis]
    if x.ndim == 1:
        values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True)
    else:
        values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(size, device=x.device)
    first = torch.full_like(counts, 0).scatter_reduce(0, inverse, places, "amin", include_self=False)
    if not op.attribute("sorted", 1):
        order = torch.argsort(first)
        values = in_wider(lambda wide: torch.index_select(wide, axis, order), values)
        first, counts = first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return values, first, inverse, counts


@register("ReverseSequence", tensors=True)
def reverse_sequence(op: Op, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Reverse the first part of each batch's sequence."""
    batch_axis, time_axis = op.attribute("batch_axis", 1), op.attribute("time_axis", 0)
    times = torch.arange(x.shape[time_axis]).reshape([-1 if i == time_axis else 1 for i in range(x.ndim)])
    ends = lengths.to(torch.int64).reshape([-1 if i == batch_axis else 1 for i in range(x.ndim)])
    places = torch.where(times < ends, ends - 1 - times, times)
    is_inside = (places >= 0) & (places < x.shape[time_axis])
    places = torch.where(is_inside, places, 0)
    mark = _mark_of(x.dtype)

    def turn(wide: torch.Tensor) -> torch.Tensor:
        turned = torch.gather(wide, time_axis, places.expand(x.shape))
        return torch.where(is_inside, turned, torch.full([], mark, dtype=wide.dtype))

    return in_wider(turn, x)


def _mark_of(dtype: torch.dtype) -> float:
    """Return what stands for an element that is not there: NaN, or the lowest integer (unsigned: the highest)."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    if dtype == torch.bool:
        return False
    if dtype == torch.uint64:
        return -1  # the bits of the highest in the signed type that computes
    limits = torch.iinfo(dtype)
    return limits.min or limits.max
