"""Operators that move elements without computing: shapes, slices, pads, joins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import element_type, held_as
from noa_conversion.importers.jax.fills import spread
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.sizes import Size, ceil_divide, is_plain, larger, smaller

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_LONGEST_STEP = np.iinfo(np.int32).max
_PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@register("Reshape")
def reshape(op: Op, data: Any, shape: Any = None) -> Tensor:
    """Give another shape: 0 keeps the axis at its place (unless `allowzero`), -1 takes the rest."""
    x = op.tensor(data)
    sizes = op.attribute("shape") if op.version < 5 else op.integers(shape, "shape")
    if not op.attribute("allowzero", 0):
        if any(is_plain(size) and size == 0 and i >= x.ndim for i, size in enumerate(sizes)):
            op.refuse(f"`shape` {sizes} keeps an axis that a tensor of {x.ndim} axes does not have")
        sizes = [x.shape[i] if is_plain(size) and size == 0 else size for i, size in enumerate(sizes)]
    return jnp.reshape(x, tuple(sizes))


@register("Flatten", tensors=True)
def flatten(op: Op, x: Tensor) -> Tensor:
    """Make a matrix: the axes before `axis`, and the rest."""
    axis = op.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows: Size = 1
    for size in x.shape[:axis]:
        rows = rows * size
    columns: Size = 1
    for size in x.shape[axis:]:
        columns = columns * size
    return jnp.reshape(x, (rows, columns))


@register("Transpose", tensors=True)
def transpose(op: Op, x: Tensor) -> Tensor:
    """Reorder the axes; all are reversed by default."""
    order = op.attribute("perm", list(range(x.ndim))[::-1])
    return x if order == list(range(x.ndim)) else lax.transpose(x, order)


@register("Squeeze")
def squeeze(op: Op, data: Any, axes: Any = None) -> Tensor:
    """Drop axes of size one."""
    x = op.tensor(data)
    listed = _listed_axes(op, axes)
    if listed is None:
        listed = [axis for axis, size in enumerate(x.shape) if is_plain(size) and size == 1]
    dropped = tuple(op.axis(int(axis), x.ndim) for axis in listed)
    if any(x.shape[axis] != 1 for axis in dropped):
        op.refuse(f"an axis of {dropped} is not of size one in {tuple(x.shape)}")
    return lax.squeeze(x, dropped)


@register("Unsqueeze")
def unsqueeze(op: Op, data: Any, axes: Any = None) -> Tensor:
    """Add axes of size one."""
    x = op.tensor(data)
    listed = _listed_axes(op, axes)
    if listed is None:
        op.refuse("the axes are missing")
    rank = x.ndim + len(listed)
    return lax.expand_dims(x, tuple(op.axis(int(axis), rank) for axis in listed))


def _listed_axes(op: Op, axes: Any) -> list[Size] | None:
    if op.version < 13:
        return op.attribute("axes") if op.has("axes") else None
    return None if axes is None else op.integers(axes, "axes")


@register("Expand")
def expand(op: Op, data: Any, shape: Any) -> Tensor:
    """Broadcast against a shape, in both directions."""
    x = op.tensor(data)
    wanted = broadcast_shape(x.shape, tuple(op.integers(shape, "shape")))
    return spread(x.reshape(()), wanted) if all(size == 1 for size in x.shape) else jnp.broadcast_to(x, wanted)


def broadcast_shape(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    """Return the shape that both broadcast to; an axis of one follows the other."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    return tuple(right if left == 1 else left if right == 1 else right for left, right in zip(a, b, strict=True))


@register("Tile")
def tile(op: Op, data: Any, repeats: Any, along: Any = None) -> Tensor:
    """Repeat along each axis. Opset 1 names one axis."""
    x = op.tensor(data)
    times = op.integers(repeats, "repeats")
    if op.version < 6:
        axis = op.axis(int(op.integer(along, "axis")), x.ndim)
        times = [times[0] if i == axis else 1 for i in range(x.ndim)]
    if any(is_plain(count) and count < 0 for count in times):
        op.refuse(f"`repeats` {times} holds a negative number")
    return jnp.tile(x, tuple(times))


@register("Concat", tensors=True)
def concat(op: Op, *values: Tensor) -> Tensor:
    """Join along an axis."""
    axis = op.attribute("axis", 1) if op.version < 4 else op.attribute("axis")
    return lax.concatenate(values, op.axis(axis, values[0].ndim))


@register("Split")
def split(op: Op, data: Any, sizes: Any = None) -> tuple[Tensor, ...]:
    """Cut into parts of given or equal sizes."""
    x = op.tensor(data)
    axis = op.axis(op.attribute("axis", 0), x.ndim)
    if op.version < 13 and op.has("split"):
        parts = op.attribute("split")
    elif sizes is not None:
        parts = op.integers(sizes, "split")
    else:
        parts = equal_parts(op, x.shape[axis], int(op.attribute("num_outputs", op.num_outputs)))
    return tuple(lax.split(x, parts, axis))


def equal_parts(op: Op, size: Size, count: int) -> list[Size]:
    """Return `count` sizes that sum up to `size`: equal ones, only the last may be smaller."""
    part = ceil_divide(size, count) if is_plain(size) else size // count
    last = size - part * (count - 1)
    if is_plain(size) and last < 0:
        op.refuse(f"an axis of {size} cannot be cut into {count} parts")
    if not is_plain(size) and last != part:
        op.refuse(f"the free axis {size} may not be a multiple of {count}")
    return [part] * (count - 1) + [last]


@register("Slice")
def slice_(op: Op, data: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Tensor:
    """Cut a range out of each named axis, in steps of either sign."""
    x = op.tensor(data)
    if op.version < 10:
        firsts, lasts = op.attribute("starts"), op.attribute("ends")
        named, strides = op.attribute("axes", list(range(len(firsts)))), [1] * len(firsts)
    else:
        firsts, lasts = op.integers(starts, "starts"), op.integers(ends, "ends")
        named = list(range(len(firsts))) if axes is None else op.integers(axes, "axes")
        strides = [1] * len(firsts) if steps is None else op.integers(steps, "steps")
    begin, end, stride = [0] * x.ndim, list(x.shape), [1] * x.ndim
    turned: list[int] = []
    seen: set[int] = set()
    for first, last, axis, step in zip(firsts, lasts, named, strides, strict=True):
        axis, step = op.axis(int(axis), x.ndim), int(step)
        if step == 0:
            op.refuse("a step is zero")
        if axis in seen:
            op.refuse(f"its axes name axis {axis} twice")
        seen.add(axis)
        begin[axis], end[axis] = _bounds(first, last, x.shape[axis], step)
        stride[axis] = min(abs(step), _LONGEST_STEP)  # XLA ends the process where an index overflows
        if step < 0:
            turned.append(axis)
    if turned:
        x = lax.rev(x, turned)
    return lax.slice(x, begin, end, stride)


def _bounds(first: Size, last: Size, size: Size, step: int) -> tuple[Size, Size]:
    """Return where a slice begins and ends, counted on the reversed axis if the step is negative."""
    if step > 0:
        begin = _clamped(first, size, 0, size)
        return begin, larger(_clamped(last, size, 0, size), begin)
    begin = size - 1 - _clamped(first, size, -1, size - 1)
    end = size - 1 - _clamped(last, size, -1, size - 1)
    return begin, larger(end, begin)


def _clamped(index: Size, size: Size, low: Size, high: Size) -> Size:
    """Count a negative index from the end and hold it in the range, as Python's slices do."""
    if is_plain(index):
        if index >= np.iinfo(np.int32).max:
            return high
        if index <= np.iinfo(np.int32).min:
            return low
        if index < 0:
            return larger(index + size, low)
        return smaller(index, high)
    return larger(smaller(index, high), low)


@register("Pad")
def pad(op: Op, data: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    """Add or (with negative amounts) take away at both ends of each axis."""
    x = op.tensor(data)
    if op.version < 11:
        amounts = op.attribute("pads" if op.version >= 2 else "paddings")
        fill: Any = jnp.asarray(op.attribute("value", 0.0), x.dtype)
    else:
        amounts = op.integers(pads, "pads")
        fill = jnp.zeros((), x.dtype) if value is None else op.tensor(value).reshape(())
    named = list(range(x.ndim)) if axes is None else [op.axis(int(a), x.ndim) for a in op.integers(axes, "axes")]
    if len(amounts) != 2 * len(named):
        op.refuse(f"`pads` holds {len(amounts)} numbers for {len(named)} axes")
    both: list[tuple[Size, Size]] = [(0, 0)] * x.ndim
    for i, axis in enumerate(named):
        both[axis] = (amounts[i], amounts[i + len(named)])
    mode = op.attribute("mode", "constant")
    if mode == "constant":
        return lax.pad(x, fill.astype(x.dtype), [(low, high, 0) for low, high in both])
    if mode not in _PAD_MODES:
        op.refuse(f"`mode` is {mode!r}")
    for axis, (low, high) in enumerate(both):
        if (low, high) != (0, 0):
            x = _pad_axis(op, _cut_axis(op, x, axis, low, high), axis, low, high, mode)
    return x


def _cut_axis(op: Op, x: Tensor, axis: int, low: Size, high: Size) -> Tensor:
    """Take away what negative amounts ask for; what is left is what positive ones copy from, as in onnxruntime."""
    first, last = (-n if is_plain(n) and n < 0 else 0 for n in (low, high))
    if not (first or last):
        return x
    size = x.shape[axis]
    if is_plain(size) and first + last > size:
        op.refuse(f"`pads` takes {first} and {last} elements away from an axis of {size}")
    return lax.slice_in_dim(x, first, size - last, axis=axis)


def _pad_axis(op: Op, x: Tensor, axis: int, low: Size, high: Size, mode: str) -> Tensor:
    low, high = (0 if is_plain(n) and n < 0 else n for n in (low, high))
    size = x.shape[axis]
    if is_plain(size) and size == 0 and (low, high) != (0, 0):
        op.refuse(f"mode {mode!r} has nothing to copy from on an axis of size 0")
    if is_plain(size):
        return jnp.pad(x, [(low, high) if i == axis else (0, 0) for i in range(x.ndim)], mode=_PAD_MODES[mode])
    # jnp.pad asks for proof that a free axis is long enough.
    at = jnp.arange(low + size + high, dtype=jnp.int32) - low
    last = jnp.asarray(size, jnp.int32) - 1
    if mode == "reflect":
        at = last - jnp.abs(last - jnp.mod(at, jnp.maximum(2 * last, 1)))
    elif mode == "wrap":
        at = jnp.mod(at, last + 1)
    return jnp.take(x, at, axis=axis, mode="clip")


@register("ConstantOfShape")
def constant_of_shape(op: Op, shape: Any) -> Tensor:
    """Fill a shape with one value, a float zero by default."""
    value = np.asarray(op.attribute("value", np.zeros(1, np.float32))).reshape(-1)
    return spread(op.tensor(value[0:1]).reshape(()), tuple(op.integers(shape, "input")))


@register("EyeLike", tensors=True)
def eye_like(op: Op, x: Tensor) -> Tensor:
    """Ones on a diagonal, in the shape of another matrix."""
    dtype = held_as(element_type(op, op.attribute("dtype"))) if op.has("dtype") else x.dtype
    rows = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    columns = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return (columns - rows == op.attribute("k", 0)).astype(dtype)


@register("Range")
def range_(op: Op, start: Any, limit: Any, delta: Any) -> Tensor:
    """Count from a start up to (not including) a limit; all three must be known."""
    first, last, step = op.known(start, "start"), op.known(limit, "limit"), op.known(delta, "delta")
    dtype = held_as(op.dtype(start))
    a, b, d = (array.reshape(-1)[0] for array in (first, last, step))
    if any(array.dtype == object for array in (first, last, step)):
        count = larger(ceil_divide(b - a, d) if d != 1 else b - a, 0)
        return jnp.asarray(a, dtype) + jnp.asarray(d, dtype) * lax.iota(dtype, count)
    count = max(int(np.ceil((b - a) / d)), 0) if first.dtype.kind == "f" else len(range(int(a), int(b), int(d)))
    return op.tensor((a + np.arange(count) * d).astype(op.dtype(start)))


@register("Trilu")
def trilu(op: Op, data: Any, k: Any = None) -> Tensor:
    """Keep the upper or lower triangle of the last two axes."""
    x = op.tensor(data)
    shift = 0 if k is None else op.tensor(k).reshape(())
    rows = lax.broadcasted_iota(jnp.int32, x.shape[-2:], 0)
    columns = lax.broadcasted_iota(jnp.int32, x.shape[-2:], 1)
    kept = columns - rows >= shift if op.attribute("upper", 1) else columns - rows <= shift
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


@register("DepthToSpace", tensors=True)
def depth_to_space(op: Op, x: Tensor) -> Tensor:
    """Spread channels over blocks of pixels."""
    size = op.attribute("blocksize")
    batch, channels, height, width = x.shape
    if op.attribute("mode", "DCR") == "DCR":
        split_ = x.reshape(batch, size, size, channels // (size * size), height, width)
        order = (0, 3, 4, 1, 5, 2)
    else:
        split_ = x.reshape(batch, channels // (size * size), size, size, height, width)
        order = (0, 1, 4, 2, 5, 3)
    return lax.transpose(split_, order).reshape(batch, channels // (size * size), height * size, width * size)


@register("SpaceToDepth", tensors=True)
def space_to_depth(op: Op, x: Tensor) -> Tensor:
    """Gather blocks of pixels into channels."""
    size = op.attribute("blocksize")
    batch, channels, height, width = x.shape
    split_ = x.reshape(batch, channels, height // size, size, width // size, size)
    order = (0, 3, 5, 1, 2, 4) if op.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = lax.transpose(split_, order)
    return moved.reshape(batch, channels * size * size, height // size, width // size)


@register("CenterCropPad")
def center_crop_pad(op: Op, data: Any, shape: Any) -> Tensor:
    """Cut or fill each axis around its centre until it has the asked size."""
    x = op.tensor(data)
    sizes = op.integers(shape, "shape")
    named = [op.axis(axis, x.ndim) for axis in op.attribute("axes", list(range(x.ndim)))]
    amounts: list[tuple[Size, Size, int]] = [(0, 0, 0)] * x.ndim
    for axis, size in zip(named, sizes, strict=True):
        missing = size - x.shape[axis]
        if not is_plain(missing):
            op.refuse(f"whether axis {axis} is cut or filled depends on the free axis {missing}")
        before = missing // 2 if missing >= 0 else -(-missing // 2)
        amounts[axis] = (before, missing - before, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), amounts)
