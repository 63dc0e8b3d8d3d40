"""Primitives that move elements without computing: reshape, broadcast, slice, pad, concatenate, iota.

Where one size is free, shapes are written as constants with -1 (reshape) or 1 (broadcast), which keeps the graph free
of shape arithmetic. Otherwise sizes are computed from the inputs' shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, is_same_size, is_static

_TO_END = np.iinfo(np.int64).max


def reshape_to(graph: GraphBuilder, operand: Operand, shape: tuple[Any, ...]) -> str:
    """Add a reshape; at most one free size becomes -1."""
    free = [index for index, size in enumerate(shape) if not is_number(size)]
    if len(free) == 1 and 0 not in shape:
        sizes = graph.integers([-1 if index in free else size for index, size in enumerate(shape)])
        return graph.node("Reshape", operand, sizes)
    return graph.node("Reshape", operand, graph.shape(shape), allowzero=1)


def slice_axes(graph: GraphBuilder, operand: Operand, cuts: dict[int, tuple[Any, Any, int]]) -> Operand:
    """Cut `axis: (start, end, step)`; ends may be free sizes."""
    if not cuts:
        return operand
    axes = sorted(cuts)
    return graph.node(
        "Slice",
        operand,
        graph.shape([cuts[axis][0] for axis in axes]),
        graph.shape([cuts[axis][1] for axis in axes]),
        graph.integers(axes),
        graph.integers([cuts[axis][2] for axis in axes]),
    )


def _reshape(call: Call) -> list[Operand]:
    if call.params.get("dimensions") is not None:
        raise call.refuse("it permutes the axes first", received=call.params["dimensions"])
    return [reshape_to(call.graph, call.inputs[0], tuple(call.params["new_sizes"]))]


def _transpose(call: Call) -> list[Operand]:
    return [call.node("Transpose", call.inputs[0], perm=[int(axis) for axis in call.params["permutation"]])]


def _squeeze(call: Call) -> list[Operand]:
    axes = [int(axis) for axis in call.params["dimensions"]]
    return [call.node("Squeeze", call.inputs[0], call.graph.integers(axes)) if axes else call.inputs[0]]


def _broadcast(call: Call) -> list[Operand]:
    value = call.inputs[0]
    shape = tuple(call.params["shape"])
    kept = [int(axis) for axis in call.params["broadcast_dimensions"]]
    added = [axis for axis in range(len(shape)) if axis not in kept]
    result: Operand = value
    if added and value.rank:
        result = call.node("Unsqueeze", result, call.graph.integers(added))
    # A size that the operand already has needs no number: 1 leaves it as it is.
    present = {axis: value.shape[index] for index, axis in enumerate(kept)}
    sizes = [1 if axis in present and is_same_size(present[axis], size) else size for axis, size in enumerate(shape)]
    if all(is_number(size) and size == 1 for size in sizes) and (value.rank or not shape):
        return [result]
    return [call.node("Expand", result, call.graph.shape(sizes))]


def _concatenate(call: Call) -> list[Operand]:
    return [call.node("Concat", *call.inputs, axis=int(call.params["dimension"]))]


def _stack(call: Call) -> list[Operand]:
    axis = int(call.params["axis"])
    parts = [call.node("Unsqueeze", value, call.graph.integers([axis])) for value in call.inputs]
    return [call.node("Concat", *parts, axis=axis)]


def _slice(call: Call) -> list[Operand]:
    value = call.inputs[0]
    starts, ends = call.params["start_indices"], call.params["limit_indices"]
    strides = call.params["strides"] or (1,) * value.rank
    cuts: dict[int, tuple[Any, Any, int]] = {}
    for axis, (start, end, step) in enumerate(zip(starts, ends, strides, strict=True)):
        reaches_end = is_same_size(end, value.shape[axis])
        if not (reaches_end and is_number(start) and start == 0 and step == 1):
            cuts[axis] = (start, _TO_END if reaches_end else end, int(step))
    return [slice_axes(call.graph, value, cuts)]


def _dynamic_slice(call: Call) -> list[Operand]:
    value, *starts = call.inputs
    sizes = tuple(call.params["slice_sizes"])
    cut = [axis for axis in range(value.rank) if not is_same_size(sizes[axis], value.shape[axis])]
    if not cut:
        return [value]
    rest = [value.shape[axis] - sizes[axis] for axis in cut]
    known = [starts[axis].constant for axis in cut]
    graph = call.graph
    if all(start is not None for start in known) and is_static(rest):
        begin = {axis: _clamped(start, value.shape[axis] - sizes[axis]) for axis, start in zip(cut, known, strict=True)}
        return [slice_axes(graph, value, {axis: (begin[axis], begin[axis] + sizes[axis], 1) for axis in cut})]
    if len(cut) == 1 and is_number(sizes[cut[0]]) and sizes[cut[0]] == 1:
        place = graph.node("Reshape", call.cast(starts[cut[0]], "int64"), graph.integers([1]))
        return [graph.node("Gather", value, _clamped_place(call, place, rest), axis=cut[0])]
    parts = [graph.node("Reshape", call.cast(starts[axis], "int64"), graph.integers([1])) for axis in cut]
    start = parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=0)
    start = _clamped_place(call, start, rest)
    end = graph.node("Add", start, graph.shape([sizes[axis] for axis in cut]))
    return [graph.node("Slice", value, start, end, graph.integers(cut))]


def _clamped_place(call: Call, start: str, highest: list[Any]) -> str:
    """Move a start so far back that what begins there fits, as JAX does."""
    graph = call.graph
    return graph.node("Min", graph.node("Max", start, graph.integers([0])), graph.shape(highest))


def _dynamic_update_slice(call: Call) -> list[Operand]:
    """Read each element either from the update, at its distance from the start, or from the array."""
    value, update, *starts = call.inputs
    graph = call.graph
    cut = [axis for axis in range(value.rank) if not is_same_size(update.shape[axis], value.shape[axis])]
    if not cut:
        return [update]
    moved: Operand = update
    mask: str | None = None
    for axis in cut:
        highest = value.shape[axis] - update.shape[axis]
        start = graph.node("Reshape", call.cast(starts[axis], "int64"), graph.integers([1]))
        distance = graph.node("Sub", _line(call, value.shape[axis]), _clamped_place(call, start, [highest]))
        last = graph.shape([update.shape[axis] - 1])
        inside = graph.node(
            "And",
            graph.node("GreaterOrEqual", distance, graph.integers([0])),
            graph.node("LessOrEqual", distance, last),
        )
        if not (is_number(update.shape[axis]) and update.shape[axis] == 1):  # one element is spread by Where
            near = graph.node("Min", graph.node("Max", distance, graph.integers([0])), last)
            moved = graph.node("Gather", moved, near, axis=axis)
        column = graph.node("Reshape", inside, graph.integers([-1 if i == axis else 1 for i in range(value.rank)]))
        mask = column if mask is None else graph.node("And", mask, column)
    return [graph.node("Where", str(mask), moved, value)]


def _line(call: Call, size: Any) -> str:
    """Return the name of 0, 1, ... as int64, for a known or a free size."""
    graph = call.graph
    if is_number(size):
        return graph.integers(range(int(size)))
    count = graph.node("Squeeze", graph.size(size))
    return graph.node("Range", graph.constant(np.int64(0)), count, graph.constant(np.int64(1)))


def pad_with(graph: GraphBuilder, value: Value, pads: list[tuple[Any, Any]], fill: Operand | Any) -> str:
    """Pad (or cut, where negative) both ends of each axis with a constant; sizes may be free."""
    filler: Operand = fill if isinstance(fill, str | Value) else graph.constant(np.asarray(fill, value.dtype))
    amounts = graph.shape([low for low, _ in pads] + [high for _, high in pads])
    return graph.node("Pad", value, amounts, filler, mode="constant")


def _pad(call: Call) -> list[Operand]:
    value, fill = call.inputs
    config = list(call.params["padding_config"])
    shape = list(value.shape)
    for axis, (_, _, inner) in enumerate(config):
        if not is_number(inner) or inner != 0:
            value = _spread(call, value, fill, axis, shape, inner)
            shape[axis] = value.shape[axis]
    pads = [(low, high) for low, high, _ in config]
    is_none = all(is_number(amount) and amount == 0 for pair in pads for amount in pair)
    return [value if is_none else pad_with(call.graph, value, pads, fill)]


def _spread(call: Call, value: Value, fill: Value, axis: int, shape: list[Any], inner: Any) -> Value:
    """Put `inner` fillers between the elements of one axis: pad a new axis after it, merge both, cut the last ones."""
    graph = call.graph
    apart = graph.node("Unsqueeze", value, graph.integers([axis + 1]))
    pads = [(0, 0)] * (axis + 1) + [(0, inner)] + [(0, 0)] * (value.rank - axis - 1)
    wide = Value(shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]), dtype=value.dtype, name=apart)
    padded = pad_with(graph, wide, pads, fill)
    full = shape[axis] * (inner + 1)
    merged = reshape_to(graph, padded, (*shape[:axis], full, *shape[axis + 1 :]))
    end = full - inner
    cut = slice_axes(graph, merged, {axis: (0, end, 1)})
    return Value(shape=(*shape[:axis], end, *shape[axis + 1 :]), dtype=value.dtype, name=graph.name_of(cut))


def _reverse(call: Call) -> list[Operand]:
    lowest = -_TO_END
    return [slice_axes(call.graph, call.inputs[0], {int(axis): (-1, lowest, -1) for axis in call.params["dimensions"]})]


def _iota(call: Call) -> list[Operand]:
    """Count along one axis. Small ones are folded before they come here."""
    graph = call.graph
    shape = tuple(call.params["shape"])
    axis = int(call.params["dimension"])
    line = call.cast(_line(call, shape[axis]), call.params["dtype"])
    if len(shape) == 1:
        return [line]
    column = graph.node("Reshape", line, graph.integers([-1 if index == axis else 1 for index in range(len(shape))]))
    return [
        graph.node("Expand", column, graph.shape([1 if index == axis else size for index, size in enumerate(shape)]))
    ]


def _split(call: Call) -> list[Operand]:
    sizes = list(call.params["sizes"])
    axis = int(call.params["axis"])
    return list(
        call.graph.node_outputs("Split", call.inputs[0], call.graph.shape(sizes), outputs=len(sizes), axis=axis)
    )


def _unstack(call: Call) -> list[Operand]:
    (value,) = call.inputs
    axis, count = int(call.params["axis"]), len(call.outputs)
    parts = call.graph.node_outputs("Split", value, call.graph.integers([1] * count), outputs=count, axis=axis)
    return [call.node("Squeeze", part, call.graph.integers([axis])) for part in parts]


def _tile(call: Call) -> list[Operand]:
    repeats = [int(count) for count in call.params["reps"]]
    return [call.node("Tile", call.inputs[0], call.graph.integers(repeats))]


def _size_as_value(call: Call) -> list[Operand]:
    size = call.node("Squeeze", call.graph.size(call.params["dim"]))
    return [call.cast(size, call.outputs[0].dtype)]


def _clamped(start: Any, highest: int) -> int:
    return min(max(int(start), 0), highest)


HANDLERS: dict[str, Handler] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "rev": _reverse,
    "iota": _iota,
    "split": _split,
    "tile": _tile,
    "unstack": _unstack,
    "dim_as_value": _size_as_value,
}
