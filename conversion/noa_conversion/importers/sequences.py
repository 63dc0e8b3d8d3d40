"""Sequences and optionals, which are Python lists and None while a graph is walked: no target has to know them.

They are used where a target has no handler of its own. A position in a sequence must be known; a sequence that a loop
builds at run time is the target's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from noa_conversion.importers.op import Op
from noa_conversion.importers.registry import Handlers
from noa_conversion.importers.target import Value
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode, OnnxValue

SEQUENCES = Handlers("every target")
"""The handlers for operators on sequences and optionals."""


@SEQUENCES.register("SequenceEmpty")
def _empty(op: Op) -> list[Value]:
    return []


@SEQUENCES.register("SequenceConstruct")
def _construct(op: Op, *inputs: Value) -> list[Value]:
    return list(inputs)


@SEQUENCES.register("SequenceLength")
def _length(op: Op, sequence: Value) -> np.ndarray:
    return np.asarray(len(_list(op, sequence)), np.int64)


@SEQUENCES.register("SequenceAt")
def _at(op: Op, sequence: Value, position: Value) -> Value:
    return _list(op, sequence)[_position(op, sequence, position, 0)]


@SEQUENCES.register("SequenceErase")
def _erase(op: Op, sequence: Value, position: Value = None) -> list[Value]:
    at = len(_list(op, sequence)) - 1 if position is None else _position(op, sequence, position, 0)
    return [*sequence[:at], *sequence[at + 1 :]]


@SEQUENCES.register("SequenceInsert")
def _insert(op: Op, sequence: Value, tensor: Value, position: Value = None) -> list[Value]:
    at = len(_list(op, sequence)) if position is None else _position(op, sequence, position, 1)
    return [*sequence[:at], tensor, *sequence[at:]]


@SEQUENCES.register("SequenceMap")
def _map(op: Op, sequence: Value, *others: Value) -> tuple[list[Value], ...]:
    columns = [_list(op, sequence), *others]
    count = len(columns[0])
    if any(isinstance(column, list) and len(column) != count for column in others):
        op.refuse("its sequences have different lengths")
    results: tuple[list[Value], ...] = tuple([] for _ in range(op.num_outputs))
    for turn in range(count):
        values = op.run(
            op.attribute("body"), [column[turn] if isinstance(column, list) else column for column in columns]
        )
        for result, value in zip(results, values, strict=True):
            result.append(value)
    return results


@SEQUENCES.register("ConcatFromSequence")
def _concat(op: Op, sequence: Value) -> Value:
    pieces, axis = _list(op, sequence), op.attribute("axis")
    if not pieces:
        op.refuse("its sequence is empty")
    graph = _Chain(op, len(pieces))
    names = list(graph.inputs)
    if op.attribute("new_axis", 0):
        axis = op.axis(axis, op.rank(pieces[0]) + 1)
        names = [graph.node("Unsqueeze", [name], constants={"axes": [axis]}) for name in names]
    return graph.compute(pieces, graph.node("Concat", names, axis=axis))


@SEQUENCES.register("SplitToSequence")
def _split(op: Op, data: Value, split: Value = None) -> list[Value]:
    axis = op.axis(op.attribute("axis", 0), op.rank(data))
    sizes = _split_sizes(op, op.shape(data)[axis], split)
    if not sizes:
        return []
    graph = _Chain(op, 1)
    pieces = graph.several("Split", graph.inputs, len(sizes), constants={"split": sizes}, axis=axis)
    if split is None and not op.attribute("keepdims", 1):
        pieces = [graph.node("Squeeze", [piece], constants={"axes": [axis]}) for piece in pieces]
    return graph.compute_all([data], pieces)


@SEQUENCES.register("Optional")
def _optional(op: Op, value: Value = None) -> Value:
    return value


@SEQUENCES.register("OptionalHasElement")
def _has_element(op: Op, value: Value = None) -> np.ndarray:
    return np.asarray(value is not None)


@SEQUENCES.register("OptionalGetElement")
def _get_element(op: Op, value: Value) -> Value:
    if value is None:
        op.refuse("the optional value is empty")
    return value


def _split_sizes(op: Op, size: Any, split: Value) -> list[int]:
    if not isinstance(size, int):
        op.refuse("the axis that it splits is free")
    if split is None:
        return [1] * size
    sizes = op.integers(split, "split")
    if op.rank(split) == 0:
        if sizes[0] <= 0:
            op.refuse("it splits into pieces of no size")
        return [min(sizes[0], size - start) for start in range(0, size, sizes[0])]
    if sum(sizes) != size:
        op.refuse(f"it splits an axis of {size} into {sizes}")
    return sizes


def _list(op: Op, sequence: Value) -> list[Value]:
    if not isinstance(sequence, list):
        op.refuse("a sequence is needed where the file has something else")
    return sequence


def _position(op: Op, sequence: Value, position: Value, extra: int) -> int:
    size = len(_list(op, sequence))
    at = op.integer(position, "position")
    if not -size <= at < size + extra:
        op.refuse(f"the position {at} is outside a sequence of {size}")
    return at + size if at < 0 else at


class _Chain:
    """A small graph made on the spot, walked in the node's place."""

    def __init__(self, op: Op, num_inputs: int) -> None:
        self.inputs = [f"x{index}" for index in range(num_inputs)]
        self._op = op
        self._nodes: list[OnnxNode] = []
        self._constants: dict[str, np.ndarray] = {}

    def node(self, kind: str, inputs: list[str], *, constants: dict[str, Any] | None = None, **attributes: Any) -> str:
        return self.several(kind, inputs, 1, constants=constants, **attributes)[0]

    def several(
        self, kind: str, inputs: list[str], count: int, *, constants: dict[str, Any] | None = None, **attributes: Any
    ) -> list[str]:
        index = len(self._nodes)
        outputs = [f"y{index}_{place}" for place in range(count)]
        names = list(inputs)
        for name, numbers in (constants or {}).items():
            names.append(f"{name}{index}")
            self._constants[names[-1]] = np.asarray(numbers, np.int64)
        self._nodes.append(
            OnnxNode(
                kind=kind,
                version=max(self._op.version, 13),
                name=f"{self._op.name}/{kind}{index}",
                inputs=tuple(names),
                outputs=tuple(outputs),
                attributes=attributes,
            )
        )
        return outputs

    def compute(self, values: list[Value], output: str) -> Value:
        return self.compute_all(values, [output])[0]

    def compute_all(self, values: list[Value], outputs: list[str]) -> list[Value]:
        graph = OnnxGraph(
            name=self._op.name,
            inputs=tuple(OnnxValue(name=name) for name in self.inputs),
            outputs=tuple(OnnxValue(name=name) for name in outputs),
            nodes=tuple(self._nodes),
            initialisers=self._constants,
        )
        walk: Callable[..., list[Value]] = self._op.walk
        return walk(graph, values)
