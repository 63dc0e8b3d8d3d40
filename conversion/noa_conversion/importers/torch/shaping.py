"""Operators that move, join, cut or make tensors without looking at their values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.casting import named_dtype
from noa_conversion.importers.torch.dtypes import dtype_of, tagged, torch_dtype_of, widened
from noa_conversion.importers.torch.operands import in_wider, is_static
from noa_conversion.importers.torch.table import register

_FAR = 2**62
_LONGEST_STEP = 2**31 - 1
_EXACT = 2**53


def _keep_type(result: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return tagged(result, dtype_of(source))


@register("Reshape")
def reshape(op: Op, x: Value, shape: Value = None) -> torch.Tensor:
    """Give the elements another shape: 0 keeps an axis, -1 is what remains."""
    tensor = op.tensor(x)
    sizes = list(op.attribute("shape")) if op.version < 5 else op.integers(shape, "shape")
    if not op.attribute("allowzero", 0):
        kept = [isinstance(size, int) and size == 0 for size in sizes]
        if any(is_kept and axis >= tensor.ndim for axis, is_kept in enumerate(kept)):
            op.refuse(f"the shape {sizes} keeps an axis that its input of {tensor.ndim} axes does not have")
        sizes = [tensor.shape[axis] if kept[axis] else size for axis, size in enumerate(sizes)]
    return _keep_type(tensor.reshape(sizes), tensor)


@register("Transpose", tensors=True)
def transpose(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Reorder the axes, by default backwards."""
    order = op.attribute("perm", list(reversed(range(x.ndim))))
    return x if list(order) == list(range(x.ndim)) else _keep_type(x.permute(order), x)


@register("Squeeze")
def squeeze(op: Op, x: Value, axes: Value = None) -> torch.Tensor:
    """Drop axes of size 1, all of them if none is named."""
    tensor = op.tensor(x)
    listed = op.integers(axes, "axes") if axes is not None else op.attribute("axes", None)
    if listed is None:
        free = [axis for axis, size in enumerate(tensor.shape) if not isinstance(size, int)]
        if free:
            op.refuse(f"it names no axes, and whether axis {free[0]} has size 1 is known only at run time")
        listed = [axis for axis, size in enumerate(tensor.shape) if size == 1]
    drop = {op.axis(int(axis), tensor.ndim) for axis in listed}
    if any(isinstance(tensor.shape[axis], int) and tensor.shape[axis] != 1 for axis in drop):
        op.refuse(f"axes {sorted(drop)} of a tensor of shape {tuple(tensor.shape)} are not all 1")
    if any(not isinstance(tensor.shape[axis], int) for axis in drop):
        return tensor.reshape([size for axis, size in enumerate(tensor.shape) if axis not in drop])
    return _keep_type(torch.squeeze(tensor, sorted(drop)), tensor)


@register("Unsqueeze")
def unsqueeze(op: Op, x: Value, axes: Value = None) -> torch.Tensor:
    """Insert axes of size 1, counted in the result."""
    tensor = op.tensor(x)
    listed = op.integers(axes, "axes") if axes is not None else op.attribute("axes")
    result = tensor
    for axis in sorted(op.axis(int(axis), tensor.ndim + len(listed)) for axis in listed):
        result = torch.unsqueeze(result, axis)
    return _keep_type(result, tensor)


@register("Flatten", tensors=True)
def flatten(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Make a matrix: the axes before `axis`, and the rest."""
    axis = op.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        op.refuse(f"the axis {axis} is outside a tensor of {x.ndim} axes")
    if axis == 1 and x.ndim >= 2:
        return torch.flatten(x, 1)
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@register("Concat", tensors=True)
def concat(op: Op, *inputs: torch.Tensor) -> torch.Tensor:
    """Join along an axis."""
    axis = op.attribute("axis", 1) if op.version < 4 else op.attribute("axis")
    return _keep_type(torch.cat(inputs, op.axis(axis, inputs[0].ndim)), inputs[0])


@register("Split")
def split(op: Op, x: Value, sizes: Value = None) -> tuple[torch.Tensor, ...]:
    """Cut along an axis, into parts of given sizes or of equal ones."""
    tensor = op.tensor(x)
    axis = op.axis(op.attribute("axis", 0), tensor.ndim)
    if sizes is not None:
        parts = op.integers(sizes, "split")
    elif op.has("split"):
        parts = op.attribute("split")
    else:
        count = op.attribute("num_outputs", op.num_outputs)
        size = tensor.shape[axis]
        if not isinstance(size, int):
            step = (size + count - 1) // count
            whole = [torch.narrow(tensor, axis, i * step, step) for i in range(count - 1)]
            return (*whole, torch.ops.aten.slice.Tensor(tensor, axis, (count - 1) * step, _FAR))
        step = -(-size // count)
        parts = [max(min(step, size - i * step), 0) for i in range(count)]
    return tuple(torch.split(tensor, list(parts), axis))


@register("Slice")
def slice_(
    op: Op, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> torch.Tensor:
    """Cut ranges out of axes; a negative step walks backwards."""
    tensor = op.tensor(x)
    if op.version < 10:
        begins, finishes = op.attribute("starts"), op.attribute("ends")
        listed, strides = op.attribute("axes", list(range(len(begins)))), [1] * len(begins)
    else:
        begins, finishes = op.integers(starts, "starts"), op.integers(ends, "ends")
        listed = op.integers(axes, "axes") if axes is not None else list(range(len(begins)))
        strides = op.integers(steps, "steps") if steps is not None else [1] * len(begins)
    named = [op.axis(int(axis), tensor.ndim) for axis in listed]
    if len(set(named)) != len(named):
        op.refuse(f"its axes {named} name one twice")
    for axis, begin, finish, step in zip(named, begins, finishes, strides, strict=True):
        tensor = _slice_axis(op, tensor, axis, begin, finish, step)
    return _keep_type(tensor, op.tensor(x)) if isinstance(x, torch.Tensor) else tensor


def _slice_axis(op: Op, x: torch.Tensor, axis: int, begin: Size, finish: Size, step: Size) -> torch.Tensor:
    if not isinstance(step, int) or step == 0:
        op.refuse(f"the step {step} is not a known number other than 0")
    size = x.shape[axis]
    step = max(min(step, _LONGEST_STEP), -_LONGEST_STEP)  # what PyTorch adds to it must stay in 64 bits
    if step > 0:
        begin = max(min(begin, _FAR), -_FAR) if isinstance(begin, int) else begin
        finish = max(min(finish, _FAR), -_FAR) if isinstance(finish, int) else finish
        if isinstance(begin, int) and begin == 0 and isinstance(finish, int) and finish >= _FAR and step == 1:
            return x
        return torch.ops.aten.slice.Tensor(x, axis, begin, finish, step)
    first = _from_behind(size, begin, lowest=0)
    last = _from_behind(size, finish, lowest=-1)
    turned = in_wider(lambda wide: torch.flip(wide, [axis]), x)
    return torch.ops.aten.slice.Tensor(turned, axis, first, last, -step)


def _from_behind(size: Size, index: Size, *, lowest: int) -> Size:
    """Return where an index lies in the flipped axis."""
    if isinstance(index, int) and index < 0:
        return torch.sym_min(-index - 1, size - lowest - 1 if lowest == 0 else size)
    return torch.sym_max(size - 1 - index, 0)


@register("Expand")
def expand(op: Op, x: Value, shape: Value) -> torch.Tensor:
    """Broadcast to a shape; axes of either may be the larger."""
    tensor = op.tensor(x)
    sizes = op.integers(shape, "shape")
    own: list[Size] = [1] * (len(sizes) - tensor.ndim) + list(tensor.shape)
    sizes = [1] * (len(own) - len(sizes)) + list(sizes)
    target = [mine if is_static(given) and given == 1 else given for mine, given in zip(own, sizes, strict=True)]
    return _keep_type(tensor.expand(target), tensor)


@register("Tile")
def tile(op: Op, x: Value, repeats: Value, axis: Value = None) -> torch.Tensor:
    """Repeat along axes."""
    tensor = op.tensor(x)
    if op.version < 6:
        counts: list[Size] = [1] * tensor.ndim
        counts[int(op.integer(axis, "axis"))] = op.integer(repeats, "tiles")
    else:
        counts = op.integers(repeats, "repeats")
    return tensor.repeat(counts)


@register("Pad")
def pad(op: Op, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> torch.Tensor:
    """Add a border, of a constant or of the tensor's own values; negative widths cut."""
    tensor = op.tensor(x)
    mode = op.attribute("mode", "constant")
    if op.version < 11:
        widths = list(op.attribute("pads" if op.version >= 2 else "paddings"))
        value = np.asarray(op.attribute("value", 0.0), np.float64)
    else:
        widths = op.integers(pads, "pads")
    listed = [op.axis(int(a), tensor.ndim) for a in op.integers(axes, "axes")] if axes is not None else None
    over = listed if listed is not None else list(range(tensor.ndim))
    if len(widths) != 2 * len(over):
        op.refuse(f"it has {len(widths)} widths for {len(over)} axes")
    pairs = {axis: (widths[i], widths[i + len(over)]) for i, axis in enumerate(over)}
    if mode != "constant":
        for axis, (before, after) in pairs.items():
            tensor = _pad_with_own(op, tensor, axis, before, after, mode)
        return tensor
    flat: list[Size] = [width for axis in reversed(range(tensor.ndim)) for width in pairs.get(axis, (0, 0))]
    if all(isinstance(width, int) and width == 0 for width in flat):
        return tensor
    return _pad_constant(op, tensor, flat, value)


def _pad_constant(op: Op, x: torch.Tensor, flat: list[Size], value: Value) -> torch.Tensor:
    wide = x.to(torch.uint8) if x.dtype == torch.bool else widened(x)
    fill: Any = 0 if value is None else value
    if isinstance(fill, np.ndarray):
        fill = fill.reshape(()).item()
    if not isinstance(fill, torch.Tensor) and (isinstance(fill, float) or abs(fill) <= _EXACT):
        return functional.pad(wide, flat, value=fill).to(x.dtype)
    # PyTorch takes the number as a double, which does not hold all whole numbers of 64 bits.
    inside = functional.pad(torch.ones_like(x, dtype=torch.uint8), flat, value=0).to(torch.bool)
    filling = op.tensor(value).reshape(()).to(wide.dtype)
    return torch.where(inside, functional.pad(wide, flat), filling).to(x.dtype)


def _pad_with_own(op: Op, x: torch.Tensor, axis: int, before: Size, after: Size, mode: str) -> torch.Tensor:
    if isinstance(before, int) and isinstance(after, int) and before == 0 and after == 0:
        return x
    if is_static(before) and before < 0:  # what is cut away is not repeated either
        x, before = torch.ops.aten.slice.Tensor(x, axis, -before, _FAR), 0
    if is_static(after) and after < 0:
        x, after = torch.ops.aten.slice.Tensor(x, axis, 0, after), 0
    size = x.shape[axis]
    places = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "wrap":
        places = torch.remainder(places, size)
    elif mode == "reflect":
        turn = torch.sym_max(2 * (size - 1), 1)
        places = torch.remainder(places, turn)
        places = torch.where(places >= size, turn - places, places)
    else:
        op.refuse(f"the mode `{mode}` is unknown")
    return torch.index_select(x, axis, places)


@register("Shape")
def shape(op: Op, x: Value) -> torch.Tensor:
    """The sizes, as a tensor (the interpreter computes it on numbers, unless they are many)."""
    sizes = np.empty(op.rank(x), object)
    sizes[:] = op.shape(x)
    begin, end = op.attribute("start", 0), op.attribute("end", _FAR)
    return op.target.from_symbols(sizes[begin:end])


@register("Constant")
def constant(op: Op) -> torch.Tensor:
    """A value that the file holds (too large for the interpreter to keep as numbers)."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if op.has(name):
            array = op.attribute(name)
            dtype = {"value_float": np.float32, "value_floats": np.float32}.get(name, np.int64)
            return op.tensor(array if isinstance(array, np.ndarray) else np.asarray(array, dtype))
    return op.refuse(f"its value is of a kind that PyTorch does not have: {sorted(op.node.attributes)}")


@register("ConstantOfShape")
def constant_of_shape(op: Op, shape: Value) -> torch.Tensor:
    """One number, repeated."""
    sizes = op.integers(shape, "shape")
    value = op.attribute("value", np.zeros(1, np.float32))
    dtype = torch_dtype_of(value.dtype)
    if dtype is None:
        op.refuse(f"PyTorch has no tensors of {value.dtype}")
    if dtype.is_floating_point and dtype.itemsize == 1:
        return op.tensor(value.reshape(())).expand(sizes)
    return tagged(torch.full(sizes, value.reshape(()).item(), dtype=dtype), value.dtype)


@register("Range")
def range_(op: Op, start: Value, limit: Value, step: Value) -> torch.Tensor:
    """Numbers from `start` on, before `limit`."""
    if all(isinstance(value, np.ndarray) and value.dtype != object for value in (start, limit, step)):
        begin, end, by = (value.reshape(()).item() for value in (start, limit, step))
        dtype = torch_dtype_of(start.dtype)
        if by == 0:
            op.refuse("its step is 0")
        if start.dtype.kind == "f":
            count = max(math.ceil((end - begin) / by), 0)  # onnxruntime's own formula, in double precision
            return (torch.arange(count, dtype=dtype) * by + begin).to(dtype)
        count = max(-((begin - end) // by), 0)
        return (torch.arange(count) * by + begin).to(dtype)
    begin, end, by = (op.integer(value, name) for value, name in ((start, "start"), (limit, "limit"), (step, "delta")))
    return torch.arange(begin, end, by, dtype=torch_dtype_of(op.dtype(start)))


@register("EyeLike")
def eye_like(op: Op, x: Value) -> torch.Tensor:
    """Ones on a diagonal."""
    dtype = named_dtype(op, op.attribute("dtype")) if op.has("dtype") else op.dtype(x)
    rows, columns = op.shape(x)
    offset = op.attribute("k", 0)
    is_one = torch.arange(rows).reshape(-1, 1) + offset == torch.arange(columns).reshape(1, -1)
    return is_one.to(torch_dtype_of(dtype))


@register("Trilu")
def trilu(op: Op, x: Value, k: Value = None) -> torch.Tensor:
    """The upper or lower triangle."""
    tensor = op.tensor(x)
    upper = op.attribute("upper", 1)
    if k is None or isinstance(k, np.ndarray):
        diagonal = 0 if k is None else int(op.integer(k, "k"))
        compute = torch.triu if upper else torch.tril
        return in_wider(lambda wide: compute(wide, diagonal), tensor)
    rows = torch.arange(tensor.shape[-2]).reshape(-1, 1)
    columns = torch.arange(tensor.shape[-1]).reshape(1, -1)
    is_inside = columns - rows >= k if upper else columns - rows <= k
    return torch.where(is_inside, tensor, torch.zeros_like(tensor))


@register("DepthToSpace", tensors=True)
def depth_to_space(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Move channels into blocks of pixels."""
    block = op.attribute("blocksize")
    batch, channels, height, width = x.shape
    if op.attribute("mode", "DCR") == "CRD":
        return in_wider(lambda wide: functional.pixel_shuffle(wide, block), x)
    deep = x.reshape(batch, block, block, channels // (block * block), height, width)
    return deep.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // (block * block), height * block, width * block)


@register("SpaceToDepth", tensors=True)
def space_to_depth(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Move blocks of pixels into channels."""
    block = op.attribute("blocksize")
    batch, channels, height, width = x.shape
    deep = x.reshape(batch, channels, height // block, block, width // block, block)
    mode = op.attribute("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        op.refuse(f"the mode `{mode}` is unknown")
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return deep.permute(order).reshape(batch, channels * block * block, height // block, width // block)


@register("CenterCropPad")
def center_crop_pad(op: Op, x: Value, shape: Value) -> torch.Tensor:
    """Crop or pad around the middle to a size."""
    tensor = op.tensor(x)
    sizes = op.integers(shape, "shape")
    axes = [op.axis(axis, tensor.ndim) for axis in op.attribute("axes", list(range(tensor.ndim)))]
    flat: dict[int, tuple[Size, Size]] = {}
    for axis, size in zip(axes, sizes, strict=True):
        own = tensor.shape[axis]
        if not (isinstance(own, int) and isinstance(size, int)):
            op.refuse(f"whether axis {axis} is cropped or padded is known only at run time")
        if size < own:
            tensor = torch.narrow(tensor, axis, (own - size) // 2, size)
        elif size > own:
            flat[axis] = ((size - own) // 2, size - own - (size - own) // 2)
    if not flat:
        return tensor
    return _pad_constant(op, tensor, [w for axis in reversed(range(tensor.ndim)) for w in flat.get(axis, (0, 0))], None)
