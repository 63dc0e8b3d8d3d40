"""Operators that read or write by index.

An index out of range is an error in ONNX, and a compiled function cannot raise. One that is known is refused at import.
What is read at one that is known only at run time is marked: NaN, or of whole numbers the lowest (unsigned: the
highest); a write at one marks the whole result, because a write elsewhere would be a wrong number that looks right.

Operators whose output's size is decided by data (`NonZero`, `Unique`, `Compress`, `NonMaxSuppression`) are computed in
numpy from operands that are known at import, and refused otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import held_as, highest, is_float, is_unsigned, lowest
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.sizes import Size

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


def take_from_front(x: Tensor, index: Any, axis: int) -> Tensor:
    """Take slices at indices that never count from the end; NaN where one is out of range."""
    return jnp.take(x, from_front(index, x.shape[axis]), axis=axis, mode="fill")


def from_front(index: Any, size: Size) -> Tensor:
    """Return run-time indices with those below zero out of range, where JAX would count them from the end."""
    index = jnp.asarray(index)
    return jnp.where(index < 0, jnp.asarray(size, index.dtype), index)


def check_range(op: Op, indices: Any, size: Size) -> None:
    """Refuse known indices below zero or from `size` on."""
    if not (op.is_known(indices) and isinstance(size, int) and indices.size):
        return
    if indices.min() < 0 or indices.max() >= size:
        op.refuse(f"its indices reach from {indices.min()} to {indices.max()}, outside of an axis of {size}")


def _checked(op: Op, indices: Any, size: Size) -> Any:
    """Return known indices counted from the front, as numbers; others as a tensor, which JAX counts so itself."""
    if not (op.is_known(indices) and isinstance(size, int)):
        return op.tensor(indices)
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        op.refuse(f"its indices reach from {indices.min()} to {indices.max()}, outside of an axis of {size}")
    return np.where(indices < 0, indices + size, indices).astype(np.int32)


@register("Gather")
def gather(op: Op, data: Any, indices: Any) -> Tensor:
    """Take whole slices along an axis."""
    x = op.tensor(data)
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    index = _checked(op, indices, x.shape[axis])
    if isinstance(index, np.ndarray) and index.size == 1:
        first = int(index.reshape(-1)[0])
        part = lax.slice_in_dim(x, first, first + 1, axis=axis)
        return part.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    return jnp.take(x, jnp.asarray(index), axis=axis, mode="fill")


@register("GatherElements")
def gather_elements(op: Op, data: Any, indices: Any) -> Tensor:
    """Take one element for each index, along an axis."""
    x = op.tensor(data)
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    index = jnp.asarray(_checked(op, indices, x.shape[axis]))
    limits = [size if i == axis else index.shape[i] for i, size in enumerate(x.shape)]
    part = lax.slice(x, [0] * x.ndim, limits)
    return jnp.take_along_axis(part, index, axis=axis, mode="fill")


@register("GatherND")
def gather_nd(op: Op, data: Any, indices: Any) -> Tensor:
    """Take slices at tuples of indices."""
    x = op.tensor(data)
    batch = op.attribute("batch_dims", 0)
    parts = _tuples(op, x, indices, batch)
    shape = op.shape(indices)[:-1]
    leading = [lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(batch)]
    return x.at[(*leading, *map(jnp.asarray, parts))].get(mode="fill")


def _tuples(op: Op, x: Tensor, indices: Any, batch: int = 0) -> tuple[Any, ...]:
    """Return one index array per axis that the tuples in the last axis of `indices` name, after the batch axes."""
    return tuple(_checked(op, indices[..., i], x.shape[batch + i]) for i in range(op.shape(indices)[-1]))


@register("ScatterElements", "Scatter")
def scatter_elements(op: Op, data: Any, indices: Any, updates: Any) -> Tensor:
    """Write one element for each index, along an axis."""
    x = op.tensor(data)
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    index = _checked(op, indices, x.shape[axis])
    places = tuple(index if i == axis else lax.broadcasted_iota(jnp.int32, index.shape, i) for i in range(x.ndim))
    return _marked(_write(op, x, places, op.tensor(updates)), x, {axis: index})


@register("ScatterND")
def scatter_nd(op: Op, data: Any, indices: Any, updates: Any) -> Tensor:
    """Write slices at tuples of indices."""
    x = op.tensor(data)
    places = _tuples(op, x, indices)
    return _marked(_write(op, x, places, op.tensor(updates)), x, dict(enumerate(places)))


def _write(op: Op, x: Tensor, places: tuple[Any, ...], updates: Tensor) -> Tensor:
    reduction = op.attribute("reduction", "none")
    spot = x.at[tuple(map(jnp.asarray, places))]
    updates = updates.astype(x.dtype)
    match reduction:
        case "none":
            return spot.set(updates)
        case "add":
            return spot.add(updates)
        case "mul":
            return spot.multiply(updates)
        case "max":
            return spot.max(updates)
        case "min":
            return spot.min(updates)
        case _:
            return op.refuse(f"`reduction` is {reduction!r}")


def _marked(written: Tensor, x: Tensor, places: Mapping[int, Any]) -> Tensor:
    """Mark a result as a whole where a run-time index, by axis, is out of range: JAX leaves such a write out."""
    inside = [
        ((-size <= index) & (index < size)).all()
        for index, size in ((index, jnp.asarray(x.shape[axis], index.dtype)) for axis, index in _unknown(places))
    ]
    if not inside:
        return written
    return jnp.where(jnp.stack(inside).all(), written, jnp.asarray(_mark(written.dtype), written.dtype))


def _unknown(places: Mapping[int, Any]) -> list[tuple[int, Tensor]]:
    return [(axis, index) for axis, index in places.items() if not isinstance(index, np.ndarray)]


def _mark(dtype: Any) -> Any:
    """Return what JAX fills in for what is read out of range."""
    if is_float(dtype):
        return np.nan
    return highest(dtype) if dtype == np.bool_ or is_unsigned(dtype) else lowest(dtype)


@register("TensorScatter")
def tensor_scatter(op: Op, cache: Any, update: Any, write_indices: Any = None) -> Tensor:
    """Write new positions into a cache, from an index per batch entry on."""
    past, new = op.tensor(cache), op.tensor(update)
    axis = op.axis(op.attribute("axis", -2), past.ndim)
    mode = op.attribute("mode", "linear")
    if axis == 0 or mode not in ("linear", "circular"):
        op.refuse(f"axis {axis} with mode {mode!r}")
    starts = jnp.zeros(past.shape[:1], jnp.int32) if write_indices is None else op.tensor(write_indices)
    steps = lax.broadcasted_iota(starts.dtype, (past.shape[0], new.shape[axis]), 1) + starts[:, None]
    if mode == "circular":
        steps = jnp.mod(steps, jnp.asarray(past.shape[axis], steps.dtype))
    rows = lax.broadcasted_iota(starts.dtype, steps.shape, 0)
    moved_past, moved_new = jnp.moveaxis(past, axis, 1), jnp.moveaxis(new, axis, 1)
    written = jnp.moveaxis(moved_past.at[rows, steps].set(moved_new), 1, axis)
    return _marked(written, moved_past, {1: steps})


@register("OneHot")
def one_hot(op: Op, indices: Any, depth: Any, values: Any) -> Tensor:
    """Mark each index along a new axis; one outside of the depth marks nothing."""
    number = op.known(depth, "depth").reshape(-1)[0]
    size = int(number) if isinstance(number, np.generic) else number
    index = op.tensor(indices)
    index = index if jnp.issubdtype(index.dtype, jnp.signedinteger) else index.astype(jnp.int32)
    off_on = op.tensor(values)
    index = jnp.where(index < 0, index + jnp.asarray(size, index.dtype), index)
    axis = op.axis(op.attribute("axis", -1), index.ndim + 1)
    index = lax.expand_dims(index, (axis,))
    places = lax.broadcasted_iota(index.dtype, (*index.shape[:axis], size, *index.shape[axis + 1 :]), axis)
    return jnp.where(places == index, off_on[1], off_on[0])


@register("ReverseSequence", tensors=True)
def reverse_sequence(op: Op, x: Tensor, lengths: Tensor) -> Tensor:
    """Turn the first entries of each sequence around."""
    time, batch = op.attribute("time_axis", 0), op.attribute("batch_axis", 1)
    moved = jnp.moveaxis(x, (batch, time), (0, 1))
    steps = lax.broadcasted_iota(lengths.dtype, moved.shape[:2], 1)
    places = jnp.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    places = places.reshape(places.shape + (1,) * (moved.ndim - 2))
    return jnp.moveaxis(jnp.take_along_axis(moved, places, axis=1, mode="fill"), (0, 1), (batch, time))


@register("Compress")
def compress(op: Op, data: Any, condition: Any) -> Tensor:
    """Keep the slices whose condition holds; the condition must be known."""
    x = op.tensor(data)
    kept = np.flatnonzero(op.known(condition, "condition"))
    check_range(op, kept, x.shape[op.axis(op.attribute("axis"), x.ndim)] if op.has("axis") else x.size)
    if op.has("axis"):
        return jnp.take(x, jnp.asarray(kept, jnp.int32), axis=op.axis(op.attribute("axis"), x.ndim), mode="clip")
    return x.reshape(-1)[jnp.asarray(kept, jnp.int32)]


@register("NonZero")
def non_zero(op: Op, x: Any) -> np.ndarray:
    """Return where a known tensor is not zero, an axis in each row."""
    array = op.known(x, "X")
    if array.dtype == object:
        op.refuse("which of its elements are zero depends on a free axis")
    found = np.nonzero(np.atleast_1d(array) if array.ndim == 0 else array)
    return np.stack(found).astype(np.int64) if array.ndim else np.zeros((0, len(found[0])), np.int64)


@register("Unique")
def unique(op: Op, x: Any) -> tuple[np.ndarray, ...]:
    """Return the distinct elements or slices of a known tensor, sorted or in the order of their first appearance."""
    array = op.known(x, "X")
    if array.dtype == object:
        op.refuse("which of its elements are equal depends on a free axis")
    axis = op.axis(op.attribute("axis"), array.ndim) if op.has("axis") else None
    values, first, inverse, counts = np.unique(array, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not op.attribute("sorted", 1):
        order = np.argsort(first)
        values = np.take(values, order, axis=0 if axis is None else axis)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    outputs = (values, *(part.astype(np.int64) for part in (first, inverse, counts)))
    return outputs[: op.num_outputs]


@register("NonMaxSuppression")
def non_max_suppression(
    op: Op, boxes: Any, scores: Any, most: Any = None, overlap: Any = None, threshold: Any = None
) -> np.ndarray:
    """Select boxes greedily by score, dropping those that overlap a selected one; boxes and scores must be known."""
    all_boxes, all_scores = op.known(boxes, "boxes"), op.known(scores, "scores")
    limit = 0 if most is None else int(op.known(most, "max_output_boxes_per_class").reshape(-1)[0])
    iou = 0.0 if overlap is None else float(op.known(overlap, "iou_threshold").reshape(-1)[0])
    floor = None if threshold is None else float(op.known(threshold, "score_threshold").reshape(-1)[0])
    found: list[tuple[int, int, int]] = []
    for batch in range(all_scores.shape[0]):
        corners = _corners(all_boxes[batch].astype(np.float64), bool(op.attribute("center_point_box", 0)))
        for label in range(all_scores.shape[1]):
            picked = _pick(corners, all_scores[batch, label], limit, iou, floor)
            found += [(batch, label, box) for box in picked]
    return np.asarray(found, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """Return (top, left, bottom, right) of boxes given by two opposite corners or by centre and size."""
    if centred:
        x, y, width, height = boxes.T
        return np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], 1)
    y1, x1, y2, x2 = boxes.T
    return np.stack([np.minimum(y1, y2), np.minimum(x1, x2), np.maximum(y1, y2), np.maximum(x1, x2)], 1)


def _pick(corners: np.ndarray, scores: np.ndarray, limit: int, iou: float, floor: float | None) -> list[int]:
    picked: list[int] = []
    for box in np.argsort(-scores.astype(np.float64), kind="stable"):
        if len(picked) >= limit:
            break
        if floor is not None and scores[box] <= floor:
            break
        if all(_overlap(corners[box], corners[other]) <= iou for other in picked):
            picked.append(int(box))
    return picked


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    shared = height * width
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


@register("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(op: Op, data: Any, indices: Any) -> Tensor:
    """Take columns of the last axis."""
    x = op.tensor(data)
    index = op.tensor(indices).reshape(-1)
    x = x.reshape(1, -1) if x.ndim == 1 else x
    return jnp.take(x, index.astype(held_as(np.int64)), axis=-1, mode="fill")
