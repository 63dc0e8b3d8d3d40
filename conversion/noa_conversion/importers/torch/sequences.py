"""Sequences and optional values, which are Python's lists and None while a graph is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.table import register


def _sequence(op: Op, value: Value) -> list[Any]:
    if not isinstance(value, list):
        op.refuse("a sequence is needed where the file has a tensor")
    return list(value)


def _place(op: Op, position: Value, length: int, *, default: int) -> int:
    if position is None:
        return default
    place = int(np.asarray(op.known(position, "position")).reshape(()))
    return place + length if place < 0 else place


@register("SequenceConstruct")
def sequence_construct(op: Op, *values: Value) -> tuple[list[Any]]:
    """Make a sequence of values."""
    return (list(values),)


@register("SequenceEmpty")
def sequence_empty(op: Op) -> tuple[list[Any]]:
    """Make a sequence of nothing."""
    return ([],)


@register("SequenceInsert")
def sequence_insert(op: Op, values: Value, value: Value, position: Value = None) -> tuple[list[Any]]:
    """Insert a value before a position, by default at the end."""
    found = _sequence(op, values)
    place = _place(op, position, len(found), default=len(found))
    if not 0 <= place <= len(found):
        op.refuse(f"the position {place} is outside a sequence of {len(found)}")
    found.insert(place, value)
    return (found,)


@register("SequenceErase")
def sequence_erase(op: Op, values: Value, position: Value = None) -> tuple[list[Any]]:
    """Drop a value, by default the last."""
    found = _sequence(op, values)
    place = _place(op, position, len(found), default=len(found) - 1)
    if not 0 <= place < len(found):
        op.refuse(f"the position {place} is outside a sequence of {len(found)}")
    del found[place]
    return (found,)


@register("SequenceAt")
def sequence_at(op: Op, values: Value, position: Value) -> Any:
    """Return the value at a position."""
    found = _sequence(op, values)
    place = _place(op, position, len(found), default=0)
    if not 0 <= place < len(found):
        op.refuse(f"the position {place} is outside a sequence of {len(found)}")
    return (found[place],)


@register("SequenceLength")
def sequence_length(op: Op, values: Value) -> np.ndarray:
    """Return how many values there are."""
    return np.asarray(len(_sequence(op, values)), np.int64)


@register("SplitToSequence")
def split_to_sequence(op: Op, x: Value, split: Value = None) -> tuple[list[torch.Tensor]]:
    """Cut a tensor into a sequence of parts."""
    tensor = op.tensor(x)
    axis = op.axis(op.attribute("axis", 0), tensor.ndim)
    size = tensor.shape[axis]
    if split is not None:
        known = op.known(split, "split")
        if known.ndim:
            return (list(torch.split(tensor, [int(part) for part in known], axis)),)
        step = int(known)
    else:
        step = 1
    if not isinstance(size, int):
        op.refuse("how many parts it gives depends on an axis that is free", remedy="Fix it: sizes={'name': size}")
    parts = list(torch.split(tensor, step, axis))
    if split is None and not op.attribute("keepdims", 1):
        parts = [part.squeeze(axis) for part in parts]
    return (parts,)


@register("ConcatFromSequence")
def concat_from_sequence(op: Op, values: Value) -> torch.Tensor:
    """Join the values along an axis, a new one with `new_axis`."""
    tensors = [op.tensor(value) for value in _sequence(op, values)]
    if not tensors:
        op.refuse("the sequence is empty")
    axis = op.attribute("axis")
    if op.attribute("new_axis", 0):
        return torch.stack(tensors, op.axis(axis, tensors[0].ndim + 1))
    return torch.cat(tensors, op.axis(axis, tensors[0].ndim))


@register("SequenceMap")
def sequence_map(op: Op, values: Value, *others: Value) -> tuple[Any, ...]:
    """Run a graph for each value of a sequence."""
    body = op.attribute("body")
    first = _sequence(op, values)
    rows: list[list[Any]] = []
    for index, value in enumerate(first):
        rest = [other[index] if isinstance(other, list) else other for other in others]
        rows.append(op.run(body, [value, *rest]))
    return tuple([row[k] for row in rows] for k in range(len(body.outputs)))


@register("Optional")
def optional(op: Op, value: Value = None) -> tuple[Any]:
    """A value, or none."""
    return (value,)


@register("OptionalHasElement")
def optional_has_element(op: Op, value: Value = None) -> np.ndarray:
    """Tell whether there is a value."""
    return np.asarray(value is not None)


@register("OptionalGetElement")
def optional_get_element(op: Op, value: Value) -> tuple[Any]:
    """Return the value, which must be there."""
    if value is None:
        op.refuse("the optional value is empty")
    return (value,)
