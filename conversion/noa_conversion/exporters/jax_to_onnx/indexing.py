"""`gather`: table lookup, indexing by several arrays, along an axis, a fixed window; any other as a flat lookup.

A flat lookup computes the place of each element of the result in the flattened array.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, is_same_size, is_static
from noa_conversion.exporters.jax_to_onnx.places import Places, Window
from noa_conversion.exporters.jax_to_onnx.shaping import reshape_to, slice_axes


def _gather(call: Call) -> list[Operand]:
    value, indices = call.inputs
    numbers = call.params["dimension_numbers"]
    sizes = call.params["slice_sizes"]
    indexed = [int(axis) for axis in numbers.start_index_map]
    if numbers.operand_batching_dims:
        return [_along_axis(call, value, indices) if _is_along_axis(call, value, indices) else _flat(call)]
    if indices.rank == 1 and indices.constant is not None and is_static([value.shape[axis] for axis in indexed]):
        fixed = _fixed_window(call, value, indices.constant)
        if fixed is not None:
            return [fixed]
    others = [axis for axis in range(value.rank) if axis not in indexed]
    is_lookup = sorted(numbers.collapsed_slice_dims) == sorted(indexed)
    is_lookup = is_lookup and all(is_same_size(sizes[axis], value.shape[axis]) for axis in others)
    return [_lookup(call, value, indices, indexed, others) if is_lookup else _flat(call)]


def _flat(call: Call) -> Operand:
    """Look each element up by its place in the flattened array."""
    value, indices = call.inputs
    numbers = call.params["dimension_numbers"]
    graph = call.graph
    sizes = [int(size) if is_static([size]) else size for size in call.params["slice_sizes"]]
    dropped = [int(axis) for axis in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
    window = Window(
        shape=tuple(value.shape),
        sizes=tuple(sizes),
        indexed=tuple(int(axis) for axis in numbers.start_index_map),
        dropped=tuple(dropped),
        shared=tuple(int(axis) for axis in numbers.operand_batching_dims),
        shared_in_indices=tuple(int(axis) for axis in numbers.start_indices_batching_dims),
    )
    places = Places(call, window, indices)
    rows = graph.node("Gather", reshape_to(graph, value, (-1,)), places.flat(), axis=0)
    rank = indices.rank - 1 + len(window.kept)
    offsets = [int(axis) for axis in numbers.offset_dims]
    batch = [axis for axis in range(rank) if axis not in offsets]
    order = [0] * rank
    for position, axis in enumerate([*batch, *offsets]):
        order[axis] = position
    result = call.permuted(rows, order) if order != sorted(order) else rows
    if "FILL" not in str(call.params["mode"]):
        return result
    mask = graph.node("Unsqueeze", places.inside(), graph.integers(offsets)) if offsets else places.inside()
    return graph.node("Where", mask, result, _fill(call))


def _lookup(call: Call, value: Value, indices: Value, indexed: list[int], others: list[int]) -> Operand:
    """Give whole rows of the other axes; the result has the indices' axes and those, in the order JAX asks for."""
    graph = call.graph
    numbers = call.params["dimension_numbers"]
    wide = call.cast(indices, "int64")
    safe = _inside(call, wide, [value.shape[axis] for axis in indexed])
    order = [*indexed, *others]
    table: Operand = value
    if len(indexed) == 1:
        last = graph.node("Squeeze", safe, graph.integers([indices.rank - 1]))
        axis = indexed[0]
        rows = graph.node("Gather", value, last, axis=axis)
        # Gather leaves the axes before `axis` in front of the indices'.
        front = list(range(axis, axis + indices.rank - 1))
        rest = [index for index in range(value.rank - 1 + indices.rank - 1) if index not in front]
        placed = [*front, *rest]
    else:
        table = value if order == sorted(order) else graph.node("Transpose", value, perm=order)
        rows = graph.node("GatherND", table, safe)
        placed = list(range(indices.rank - 1 + len(others)))
    rank = len(placed)
    offsets = [int(axis) for axis in numbers.offset_dims]
    batch = [axis for axis in range(rank) if axis not in offsets]
    target = [0] * rank
    for position, axis in zip(placed, [*batch, *offsets], strict=True):
        target[axis] = position
    result: Operand = rows if target == sorted(target) else graph.node("Transpose", rows, perm=target)
    return _fill_outside(call, result, wide, safe, batch, rank)


def _inside(call: Call, indices: str, sizes: list[Any]) -> str:
    """Clamp indices to `0 .. size - 1`; the last axis of `indices` goes with `sizes`, or there is one size for all."""
    graph = call.graph
    if is_static(sizes):
        highest = graph.integers([size - 1 for size in sizes])
    else:
        highest = graph.node("Sub", graph.shape(sizes), graph.constant(np.int64(1)))
    return graph.node("Min", graph.node("Max", indices, graph.constant(np.int64(0))), highest)


def _fill_outside(call: Call, rows: Operand, wide: str, safe: str, batch: list[int], rank: int) -> Operand:
    """Where the mode is to fill, write JAX's fill value over rows whose index is out of bounds."""
    if "FILL" not in str(call.params["mode"]) or _is_inside(call):
        return rows
    graph = call.graph
    same = call.cast(graph.node("Equal", wide, safe), "int32")
    inside = call.cast(graph.node("ReduceMin", same, graph.integers([-1]), keepdims=0), "bool")
    added = [axis for axis in range(rank) if axis not in batch]
    mask = graph.node("Unsqueeze", inside, graph.integers(added)) if added else inside
    return graph.node("Where", mask, rows, _fill(call))


def _is_inside(call: Call) -> bool:
    """Tell whether the indices are known, and within the array."""
    value, indices = call.inputs
    sizes = [value.shape[axis] for axis in call.params["dimension_numbers"].start_index_map]
    if indices.constant is None or not is_static(sizes):
        return False
    return bool(((indices.constant >= 0) & (indices.constant < np.asarray(sizes))).all())


def _fill(call: Call) -> str:
    dtype = np.dtype(call.outputs[0].dtype)
    return call.graph.constant(np.asarray(_fill_value(call.params["fill_value"], dtype), dtype))


def _fill_value(given: Any, dtype: np.dtype[Any]) -> Any:
    """JAX fills with NaN, the smallest signed or the largest unsigned integer, or True."""
    if given is not None:
        return given
    if is_float(dtype):
        return np.nan
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _is_along_axis(call: Call, value: Value, indices: Value) -> bool:
    """Tell whether a lookup is `take_along_axis`."""
    numbers = call.params["dimension_numbers"]
    axes = [int(axis) for axis in numbers.start_index_map]
    shared = [int(axis) for axis in numbers.operand_batching_dims]
    places = [int(axis) for axis in numbers.start_indices_batching_dims]
    is_plain = len(axes) == 1 and sorted([*shared, *axes]) == list(range(value.rank)) and shared == places
    return is_plain and indices.rank == value.rank + 1 and list(numbers.collapsed_slice_dims) == axes


def _along_axis(call: Call, value: Value, indices: Value) -> Operand:
    """Each element of the indices picks along one axis, at its own place on all others."""
    graph = call.graph
    axis = int(call.params["dimension_numbers"].start_index_map[0])
    wide = graph.node("Squeeze", call.cast(indices, "int64"), graph.integers([indices.rank - 1]))
    safe = _inside(call, wide, [value.shape[axis]])
    found = graph.node("GatherElements", value, safe, axis=axis)
    if "FILL" not in str(call.params["mode"]):
        return found
    return graph.node("Where", graph.node("Equal", wide, safe), found, _fill(call))


def _fixed_window(call: Call, value: Value, start: np.ndarray) -> Operand | None:
    """Cut a window at a known place; None if it is none that a slice can cut."""
    numbers = call.params["dimension_numbers"]
    sizes = call.params["slice_sizes"]
    cuts: dict[int, tuple[Any, Any, int]] = {}
    for axis, first in zip(numbers.start_index_map, start, strict=True):
        if not is_static([sizes[axis]]):
            return None
        highest = value.shape[axis] - sizes[axis]
        if not 0 <= int(first) <= highest and "FILL" in str(call.params["mode"]):
            return None
        begin = min(max(int(first), 0), highest)
        cuts[int(axis)] = (begin, begin + int(sizes[axis]), 1)
    if any(axis not in cuts and not is_same_size(sizes[axis], value.shape[axis]) for axis in range(value.rank)):
        return None
    result = slice_axes(call.graph, value, cuts)
    collapsed = [int(axis) for axis in numbers.collapsed_slice_dims]
    return call.node("Squeeze", result, call.graph.integers(collapsed)) if collapsed else result


HANDLERS: dict[str, Handler] = {"gather": _gather}
