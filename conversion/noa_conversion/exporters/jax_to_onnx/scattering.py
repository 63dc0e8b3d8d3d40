"""`scatter` and its kin: whole rows through ScatterND, anything else element by element in the flattened array.

What lies outside goes to one more element at the end, which is cut off, so that nothing is written for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, is_same_size, is_static
from noa_conversion.exporters.jax_to_onnx.places import Places, Window
from noa_conversion.exporters.jax_to_onnx.shaping import reshape_to

# What runtimes do not add, multiply or compare where they scatter.
_WIDER = {
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
    "bfloat16": "float32",
    "bool": "int32",
    "float16": "float32",
}


def _scatter(call: Call, reduction: str) -> list[Operand]:
    value, _, updates = call.inputs
    if updates.rank and any(is_static([size]) and size == 0 for size in updates.shape):
        return [value]
    if reduction == "none" and _is_opaque(call):
        raise call.refuse("it applies a function of its own")
    dtype = value.dtype
    wide = _widened(dtype, reduction)
    if reduction != "none" and wide != dtype.name:
        value, updates = (Value(shape=v.shape, dtype=np.dtype(wide), name=call.cast(v, wide)) for v in (value, updates))
    if reduction == "sub":
        updates, reduction = Value(shape=updates.shape, dtype=updates.dtype, name=call.node("Neg", updates)), "add"
    window = _window(call, value, updates)
    numbers = call.params["dimension_numbers"]
    windows = [int(axis) for axis in numbers.update_window_dims]
    batch = [axis for axis in range(updates.rank) if axis not in windows]
    ordered = call.permuted(updates, [*batch, *windows])
    if _is_rows(call, window, value):
        result = _rows(call, window, value, ordered, reduction)
    else:
        result = _flat(call, window, value, ordered, reduction)
    return [result if reduction == "none" else call.cast_from(result, wide, dtype)]


def _widened(dtype: Any, reduction: str) -> str:
    if dtype.name == "uint32":
        return "int32" if reduction in ("add", "sub", "mul") else "int64"
    return _WIDER.get(str(dtype.name), str(dtype.name))


def _is_opaque(call: Call) -> bool:
    """Tell whether a plain `scatter` has a function that is not to take the update."""
    jaxpr = call.params.get("update_jaxpr")
    return jaxpr is not None and (len(jaxpr.eqns) > 0 or jaxpr.outvars[0] is not jaxpr.invars[1])


def _window(call: Call, value: Value, updates: Value) -> Window:
    numbers = call.params["dimension_numbers"]
    shared = tuple(int(axis) for axis in numbers.operand_batching_dims)
    dropped = (*(int(axis) for axis in numbers.inserted_window_dims), *shared)
    windows = iter(updates.shape[axis] for axis in numbers.update_window_dims)
    return Window(
        shape=tuple(value.shape),
        sizes=tuple(1 if axis in dropped else next(windows) for axis in range(value.rank)),
        indexed=tuple(int(axis) for axis in numbers.scatter_dims_to_operand_dims),
        dropped=dropped,
        shared=shared,
        shared_in_indices=tuple(int(axis) for axis in numbers.scatter_indices_batching_dims),
    )


def _is_rows(call: Call, window: Window, value: Value) -> bool:
    """Tell whether each index stands for a whole row of the axes that are not indexed, certainly within the array."""
    is_whole = sorted(window.dropped) == sorted(window.indexed) and not window.shared
    is_whole = is_whole and all(is_same_size(window.sizes[axis], value.shape[axis]) for axis in window.kept)
    if not is_whole or not window.indexed:
        return False
    if "CLIP" in str(call.params["mode"]):
        return True
    indices = call.inputs[1].constant
    sizes = [value.shape[axis] for axis in window.indexed]
    if indices is not None and is_static(sizes):
        return bool(((indices >= 0) & (indices < np.asarray(sizes))).all())
    return len(window.indexed) == 1  # one more row takes what lies outside


def _rows(call: Call, window: Window, value: Value, updates: Operand, reduction: str) -> Operand:
    graph = call.graph
    order = [*window.indexed, *window.kept]
    table = call.permuted(value, order)
    indices = call.inputs[1]
    wide = call.cast(indices, "int64")
    sizes = [value.shape[axis] for axis in window.indexed]
    is_open = "CLIP" not in str(call.params["mode"]) and indices.constant is None
    if is_open:
        last = graph.shape(sizes)
        outside = graph.node(
            "Or", graph.node("Less", wide, graph.integers([0])), graph.node("GreaterOrEqual", wide, last)
        )
        wide = graph.node("Where", outside, last, wide)
        shape = [1, *(value.shape[axis] for axis in window.kept)]
        row = graph.node("Expand", call.scalar(0, value.dtype), graph.shape(shape))
        table = graph.node("Concat", table, row, axis=0)
    elif indices.constant is None:
        highest = graph.node("Sub", graph.shape(sizes), graph.integers([1]))
        wide = graph.node("Min", graph.node("Max", wide, graph.integers([0])), highest)
    result = graph.node("ScatterND", table, wide, updates, **_reduction(reduction))
    if is_open:
        result = graph.node("Slice", result, graph.integers([0]), graph.shape(sizes), graph.integers([0]))
    return call.permuted(result, [int(axis) for axis in np.argsort(order)])


def _flat(call: Call, window: Window, value: Value, updates: Operand, reduction: str) -> Operand:
    graph = call.graph
    places = Places(call, window, call.inputs[1])
    flat = places.flat()
    line = reshape_to(graph, value, (-1,))
    is_open = "CLIP" not in str(call.params["mode"])
    count = graph.shape([_count(value.shape)])
    if is_open:
        added = graph.integers(range(call.inputs[1].rank - 1, call.inputs[1].rank - 1 + len(window.kept)))
        inside = graph.node("Unsqueeze", places.inside(), added) if window.kept else places.inside()
        flat = graph.node("Where", inside, flat, count)
        line = graph.node("Concat", line, graph.constant(np.zeros(1, value.dtype)), axis=0)
    flat, line_of_updates = (reshape_to(graph, item, (-1,)) for item in (flat, updates))
    result = graph.node("ScatterElements", line, flat, line_of_updates, axis=0, **_reduction(reduction))
    if is_open:
        result = graph.node("Slice", result, graph.integers([0]), count, graph.integers([0]))
    return reshape_to(graph, result, tuple(value.shape))


def _reduction(name: str) -> dict[str, str]:
    return {} if name == "none" else {"reduction": name}


def _count(shape: tuple[Any, ...]) -> Any:
    total: Any = 1
    for size in shape:
        total = total * size
    return total


HANDLERS: dict[str, Handler] = {
    "scatter": partial(_scatter, reduction="none"),
    **{f"scatter-{name}": partial(_scatter, reduction=name) for name in ("add", "sub", "mul", "min", "max")},
}
