"""Where the elements of a gather or scatter lie in the flattened array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.handler import Call, is_static


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What each index stands for: a window of `sizes` in an array of `shape`, at its place on the axes `indexed`."""

    shape: tuple[Any, ...]
    sizes: tuple[Any, ...]
    indexed: tuple[int, ...]
    dropped: tuple[int, ...]
    """Axes of size 1 that the window's result does not have."""
    shared: tuple[int, ...]
    """Axes that the indices have too: each is at its own place."""
    shared_in_indices: tuple[int, ...]

    @property
    def kept(self) -> list[int]:
        """Axes of the array that the window's result has, in order."""
        return [axis for axis in range(len(self.shape)) if axis not in self.dropped]


class Places:
    """The places of all windows. `indices` has shape (batch ..., number of indexed axes)."""

    def __init__(self, call: Call, window: Window, indices: Value) -> None:
        self._call = call
        self._window = window
        self._batch = list(indices.shape[:-1])
        self._given = call.cast(indices, "int64")
        graph = call.graph
        highest = [window.shape[axis] - window.sizes[axis] for axis in window.indexed]
        bound = graph.node("Max", graph.shape(highest), graph.integers([0]))
        self._clamped = graph.node("Min", graph.node("Max", self._given, graph.integers([0])), bound)

    def inside(self) -> str:
        """Return the name of a mask of shape (batch ...): whether the whole window lies in the array."""
        graph = self._call.graph
        same = self._call.cast(graph.node("Equal", self._given, self._clamped), "int32")
        if not self._window.indexed:
            return graph.node("Expand", graph.constant(np.True_), graph.shape(self._batch))
        return self._call.cast(graph.node("ReduceMin", same, graph.integers([-1]), keepdims=0), "bool")

    def flat(self) -> str:
        """Return the name of int64 places of shape (batch ..., window ...), of windows moved into the array."""
        graph, window = self._call.graph, self._window
        strides = [self._stride(axis) for axis in range(len(window.shape))]
        rank = len(self._batch) + len(window.kept)
        total: str | None = None
        if window.indexed:
            scaled = graph.node("Mul", self._clamped, self._vector([strides[axis] for axis in window.indexed]))
            starts = graph.node("ReduceSum", scaled, graph.integers([-1]), keepdims=0)
            total = (
                graph.node("Unsqueeze", starts, graph.integers(range(len(self._batch), rank)))
                if window.kept
                else starts
            )
        for axis, place in zip(window.shared, window.shared_in_indices, strict=True):
            total = self._added(total, self._column(self._batch[place], strides[axis], place, rank))
        for position, axis in enumerate(window.kept):
            if not (is_number(window.sizes[axis]) and window.sizes[axis] == 1):
                column = self._column(window.sizes[axis], strides[axis], len(self._batch) + position, rank)
                total = self._added(total, column)
        full = [*self._batch, *(window.sizes[axis] for axis in window.kept)]
        zero = graph.constant(np.zeros((1,) * rank, np.int64))
        return graph.node("Expand", total if total is not None else zero, graph.shape(full))

    def _added(self, total: str | None, column: Operand) -> str:
        graph = self._call.graph
        return graph.name_of(column) if total is None else graph.node("Add", total, column)

    def _column(self, size: Any, stride: Any, axis: int, rank: int) -> Operand:
        graph = self._call.graph
        shape = [-1 if index == axis else 1 for index in range(rank)]
        if is_static([size, stride]):
            return graph.constant((np.arange(int(size), dtype=np.int64) * int(stride)).reshape(shape))
        count = graph.node("Squeeze", graph.size(size))
        line = graph.node("Range", graph.constant(np.int64(0)), count, graph.constant(np.int64(1)))
        scaled = graph.node("Mul", line, graph.size(stride))
        return graph.node("Reshape", scaled, graph.integers(shape))

    def _stride(self, axis: int) -> Any:
        stride: Any = 1
        for size in self._window.shape[axis + 1 :]:
            stride = stride * size
        return stride

    def _vector(self, sizes: list[Any]) -> str:
        return self._call.graph.shape(sizes)
