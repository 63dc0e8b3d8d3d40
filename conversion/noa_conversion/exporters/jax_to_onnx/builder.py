"""The graph under construction: nodes, scopes of subgraphs, initialisers, names, and sizes of free axes as tensors.

A `Value` is one JAX value: its shape and dtype, and either the name of a tensor or a constant that is not yet in the
graph. Constants enter the graph when a node takes them, once per content. Constants and sizes always belong to the
outermost graph, where every subgraph sees them.
"""

from __future__ import annotations

import ast
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from noa.errors import ConversionError

if TYPE_CHECKING:
    import onnx

Dim: TypeAlias = Any
"""A size: an int, or JAX's symbolic expression over the free axes."""


def is_number(size: Dim) -> bool:
    """Tell whether a size is known, so not an expression over free axes."""
    return isinstance(size, int | np.integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One JAX value in the graph. `constant` holds it where it is known.

    The tensor of a complex number has one more axis, (real, imaginary), and that of a random key one for its words:
    `constant` and the tensor `name` have that form, `shape` and `dtype` are those of JAX.
    """

    shape: tuple[Dim, ...]
    dtype: Any
    name: str | None = None
    constant: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


Operand: TypeAlias = Value | str
"""What a node takes: a value, or the name of a tensor."""


@dataclass(slots=True)
class Scope:
    """The nodes of one graph or subgraph, in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list["onnx.NodeProto"])


class GraphBuilder:
    """Collects an ONNX graph. `axes` says for each free axis which input has it, and where."""

    def __init__(self, *, opset: int, axes: Mapping[str, tuple[str, int]], taken: Sequence[str]) -> None:
        self.opset = opset
        self.initialisers: dict[str, np.ndarray] = {}
        self._sizes_scope = Scope()
        self._main = Scope()
        self._scope = self._main
        self._axes = axes
        self._taken = set(taken)
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._sizes: dict[str, str] = {}
        self._num_nodes = 0

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes of the outermost graph: those that compute sizes come first."""
        return [*self._sizes_scope.nodes, *self._main.nodes]

    @contextmanager
    def subgraph(self) -> Generator[Scope]:
        """Collect the nodes that are added within into a scope of their own."""
        outer, self._scope = self._scope, Scope()
        try:
            yield self._scope
        finally:
            self._scope = outer

    def node(self, op: str, *operands: Operand, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.node_outputs(op, *operands, outputs=1, **attributes)[0]

    def node_outputs(self, op: str, *operands: Operand, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        names = [self.fresh(op.lower()) for _ in range(outputs)]
        self.add(op, operands, names, **attributes)
        return names

    def add(self, op: str, operands: Sequence[Operand], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with the given names of its outputs. The operand "" is an optional input left out."""
        from onnx import helper

        inputs = [self.name_of(operand) for operand in operands]
        name = f"{op}_{self._num_nodes}"
        self._num_nodes += 1
        self._scope.nodes.append(helper.make_node(op, inputs, list(outputs), name=name, **attributes))

    def name_of(self, operand: Operand) -> str:
        """Return the name of a tensor; a constant is put into the graph."""
        if isinstance(operand, str):
            return operand
        if operand.name is not None:
            return operand.name
        if operand.constant is None:
            raise ValueError("a value has neither name nor constant")
        return self.constant(operand.constant)

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Return the name of an initialiser with this content."""
        value = np.ascontiguousarray(array, dtype).reshape(np.shape(array))
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._constants:
            name = self.fresh("constant")
            self._constants[key] = name
            self.initialisers[name] = value
        return self._constants[key]

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a one-dimensional int64 constant: axes, starts, pads."""
        return self.constant(np.asarray(list(values), np.int64))

    def fresh(self, stem: str) -> str:
        """Return a name that nothing else has."""
        while True:
            self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{self._counts[stem]}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def shape(self, sizes: Sequence[Dim]) -> str:
        """Return the name of a one-dimensional int64 tensor with these sizes."""
        if all(is_number(size) for size in sizes):
            return self.integers(sizes)
        parts = [self.size(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def size(self, dim: Dim) -> str:
        """Return the name of an int64 tensor of shape (1,) that holds one size, computed from the inputs' shapes.

        Raises:
            ConversionError: the size is an expression that has no ONNX form.
        """
        if is_number(dim):
            return self.integers([int(dim)])
        text = str(dim)
        if text not in self._sizes:
            outer, self._scope = self._scope, self._sizes_scope
            try:
                self._sizes[text] = self._evaluate(ast.parse(text.replace("^", "**"), mode="eval").body, text)
            finally:
                self._scope = outer
        return self._sizes[text]

    def _evaluate(self, node: ast.expr, text: str) -> str:
        """Translate the text of a symbolic size: `2*batch + 1`, `floordiv(batch, 2)`, and `batch^2` for a power."""
        match node:
            case ast.Constant(value=int(value)):
                return self.integers([value])
            case ast.Name(id=name) if name in self._axes:
                source, axis = self._axes[name]
                return self.node("Shape", source, start=axis, end=axis + 1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.node("Neg", self._evaluate(operand, text))
            case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int(power))) if power > 0:
                factor = self._evaluate(left, text)
                result = factor
                for _ in range(power - 1):
                    result = self.node("Mul", result, factor)
                return result
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() as op, left=left, right=right):
                name = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}[type(op)]
                return self.node(name, self._evaluate(left, text), self._evaluate(right, text))
            case ast.Call(func=ast.Name(id=function), args=[left, right]) if function in (
                "floordiv",
                "mod",
                "max",
                "min",
            ):
                return self._evaluate_call(function, self._evaluate(left, text), self._evaluate(right, text))
            case _:
                raise ConversionError(f"the size `{text}` has no ONNX form", where="JAX to ONNX", received=text)

    def _evaluate_call(self, function: str, left: str, right: str) -> str:
        if function in ("max", "min"):
            return self.node(function.capitalize(), left, right)
        rest = self.node("Mod", left, right)  # the sign of the divisor, as in Python
        return rest if function == "mod" else self.node("Div", self.node("Sub", left, rest), right)
