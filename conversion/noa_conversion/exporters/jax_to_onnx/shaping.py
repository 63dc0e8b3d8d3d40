"""Primitives that move elements without computing: reshape, broadcast, slice, pad, concatenate, iota.

Where one size is free, shapes are written as constants with -1 (reshape) or 1 (broadcast), which keeps the graph free
of shape arithmetic. Otherwise sizes are computed from the inputs' shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, is_static

_TO_END = np.iinfo(np.int64).max
# onnxruntime's Pad has no kernel for these.
_PAD_THROUGH = {"int16": "int32", "uint16": "int32", "bool": "int32", "float16": "float32"}


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
    sizes = [1 if axis in present and str(present[axis]) == str(size) else size for axis, size in enumerate(shape)]
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
        reaches_end = str(end) == str(value.shape[axis])
        if not (reaches_end and is_number(start) and start == 0 and step == 1):
            cuts[axis] = (start, _TO_END if reaches_end else end, int(step))
    return [slice_axes(call.graph, value, cuts)]


def _dynamic_slice(call: Call) -> list[Operand]:
    value, *starts = call.inputs
    sizes = tuple(call.params["slice_sizes"])
    cut = [axis for axis in range(value.rank) if str(sizes[axis]) != str(value.shape[axis])]
    if not cut:
        return [value]
    rest = [value.shape[axis] - sizes[axis] for axis in cut]
    known = [starts[axis].constant for axis in cut]
    graph = call.graph
    if all(start is not None for start in known) and is_static(rest):
        begin = {axis: _clamped(start, value.shape[axis] - sizes[axis]) for axis, start in zip(cut, known, strict=True)}
        return [slice_axes(graph, value, {axis: (begin[axis], begin[axis] + sizes[axis], 1) for axis in cut})]
    parts = [graph.node("Reshape", call.cast(starts[axis], "int64"), graph.integers([1])) for axis in cut]
    start = parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=0)
    start = graph.node("Min", graph.node("Max", start, graph.integers([0])), graph.shape(rest))
    end = graph.node("Add", start, graph.shape([sizes[axis] for axis in cut]))
    return [graph.node("Slice", value, start, end, graph.integers(cut))]


def _dynamic_update_slice(call: Call) -> list[Operand]:
    value, update, *starts = call.inputs
    pads: list[tuple[int, int]] = []
    for axis, start in enumerate(starts):
        rest = value.shape[axis] - update.shape[axis]
        if not is_number(rest) or start.constant is None:
            raise call.refuse("it writes at a computed place, or into a part of a free axis")
        low = _clamped(start.constant, rest)
        pads.append((low, rest - low))
    is_new = call.node("Expand", call.graph.constant(np.True_), call.node("Shape", update))
    mask = pad_with(call.graph, Value(shape=update.shape, dtype=np.dtype(bool), name=is_new), pads, np.False_)
    moved = pad_with(call.graph, update, pads, np.zeros((), update.dtype))
    return [call.node("Where", mask, moved, value)]


def pad_with(graph: GraphBuilder, value: Value, pads: list[tuple[int, int]], fill: Operand | Any) -> str:
    """Pad (or cut, where negative) both ends of each axis with a constant."""
    through = _PAD_THROUGH.get(value.dtype.name)
    operand: Operand = value
    filler: Operand = fill if isinstance(fill, str | Value) else graph.constant(np.asarray(fill, value.dtype))
    amounts = graph.integers([low for low, _ in pads] + [high for _, high in pads])
    if through is None:
        return graph.node("Pad", operand, amounts, filler, mode="constant")
    from noa_conversion.exporters.jax_to_onnx.builder import onnx_type

    operand, filler = (graph.node("Cast", item, to=onnx_type(through)) for item in (operand, filler))
    padded = graph.node("Pad", operand, amounts, filler, mode="constant")
    return graph.node("Cast", padded, to=onnx_type(value.dtype))


def _pad(call: Call) -> list[Operand]:
    value, fill = call.inputs
    config = list(call.params["padding_config"])
    if any(inner != 0 for _, _, inner in config):
        raise call.refuse("it pads between elements", received=config)
    if not all(is_number(amount) for low, high, _ in config for amount in (low, high)):
        raise call.refuse("it pads by a free size", received=config)
    pads = [(int(low), int(high)) for low, high, _ in config]
    return [pad_with(call.graph, value, pads, fill) if any(map(any, pads)) else value]


def _reverse(call: Call) -> list[Operand]:
    lowest = -_TO_END
    return [slice_axes(call.graph, call.inputs[0], {int(axis): (-1, lowest, -1) for axis in call.params["dimensions"]})]


def _iota(call: Call) -> list[Operand]:
    """Count along one axis. Static ones are folded before they come here; this is for free sizes."""
    graph = call.graph
    shape = tuple(call.params["shape"])
    axis = int(call.params["dimension"])
    scalar = graph.node("Squeeze", graph.size(shape[axis]))
    count = graph.node("Range", graph.constant(np.int64(0)), scalar, graph.constant(np.int64(1)))
    line = call.cast(count, call.params["dtype"])
    if len(shape) == 1:
        return [line]
    column = graph.node("Reshape", line, graph.integers([-1 if index == axis else 1 for index in range(len(shape))]))
    return [
        graph.node("Expand", column, graph.shape([1 if index == axis else size for index, size in enumerate(shape)]))
    ]


def _split(call: Call) -> list[Operand]:
    sizes = list(call.params["sizes"])
    if not is_static(sizes):
        raise call.refuse("it splits a free axis", received=str(sizes))
    axis = int(call.params["axis"])
    names = call.graph.node_outputs("Split", call.inputs[0], call.graph.integers(sizes), outputs=len(sizes), axis=axis)
    return list(names)


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
    "dim_as_value": _size_as_value,
}
