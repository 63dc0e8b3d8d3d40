"""The graph under construction: nodes, initialisers, names, and sizes of free axes as tensors.

A `Value` is one JAX value: its shape and dtype, and either the name of a tensor or a constant that is not yet in the
graph. Constants enter the graph when a node takes them, once per content.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """One JAX value in the graph. `constant` holds it where it is known."""

    shape: tuple[Dim, ...]
    dtype: np.dtype[Any]
    name: str | None = None
    constant: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


Operand: TypeAlias = Value | str
"""What a node takes: a value, or the name of a tensor."""


class GraphBuilder:
    """Collects an ONNX graph. `axes` says for each free axis which input has it, and where."""

    def __init__(self, *, opset: int, axes: Mapping[str, tuple[str, int]], taken: Sequence[str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, np.ndarray] = {}
        self._axes = axes
        self._taken = set(taken)
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._sizes: dict[str, str] = {}

    def node(self, op: str, *operands: Operand, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output; more are named by `node_outputs`."""
        return self.node_outputs(op, *operands, outputs=outputs, **attributes)[0]

    def node_outputs(self, op: str, *operands: Operand, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        from onnx import helper

        names = [self.fresh(op.lower()) for _ in range(outputs)]
        inputs = [self.name_of(operand) for operand in operands]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes))
        return names

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
        key = (value.dtype.str, value.shape, value.tobytes())
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
            self._sizes[text] = self._evaluate(ast.parse(text, mode="eval").body, text)
        return self._sizes[text]

    def _evaluate(self, node: ast.expr, text: str) -> str:
        """Translate the text of a symbolic size: JAX prints what it parses, `2*batch + 1`, `floordiv(batch, 2)`."""
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


def onnx_type(dtype: Any) -> int:
    """Return ONNX's number of a NumPy dtype.

    Raises:
        ConversionError: ONNX has no such type (keys of random generators, for one).
    """
    from onnx import helper

    try:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, ValueError, TypeError) as exc:
        raise ConversionError(f"the dtype {dtype} has no ONNX form", where="JAX to ONNX", received=str(dtype)) from exc
