"""What every primitive's handler gets and gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from noa.errors import ConversionError
from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import onnx_type, stored_dtype, stored_shape

Walk: TypeAlias = Callable[[GraphBuilder, Any, Sequence[Any], Sequence[Value]], list[Value]]
"""Writes a jaxpr: graph, jaxpr, its constants, its arguments; returns its outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One equation of a jaxpr: a primitive's name, its params, its inputs, and shape and dtype of its outputs."""

    graph: GraphBuilder
    primitive: str
    params: Mapping[str, Any]
    inputs: Sequence[Value]
    outputs: Sequence[Any]
    """Abstract values, with `shape` and `dtype`."""
    walk: Walk
    bind: Callable[..., Any]
    """The primitive itself, for handlers that write it by way of another function."""

    def node(self, op: str, *operands: Operand, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.graph.node(op, *operands, **attributes)

    def cast(self, operand: Operand, dtype: Any) -> str:
        """Add a cast."""
        return self.graph.node("Cast", operand, to=onnx_type(dtype))

    def cast_to(self, value: Value, dtype: Any) -> Operand:
        """Add a cast unless the value has the dtype."""
        return value if value.dtype == np.dtype(dtype) else self.cast(value, dtype)

    def cast_from(self, operand: Operand, source: Any, target: Any) -> Operand:
        """Add a cast of a tensor of the dtype `source` unless it has the dtype `target`."""
        return operand if np.dtype(source) == np.dtype(target) else self.cast(operand, target)

    def scalar(self, value: float, like: Any) -> str:
        """Return the name of a constant with one element of the dtype `like`."""
        return self.graph.constant(np.asarray(value, np.dtype(like)))

    def permuted(self, operand: Operand, order: Sequence[int]) -> Operand:
        """Add a transposition unless the axes are in order."""
        axes = [int(axis) for axis in order]
        return operand if axes == sorted(axes) else self.graph.node("Transpose", operand, perm=axes)

    def inline(self, closed: Any, inputs: Sequence[Value]) -> list[Value]:
        """Write a closed jaxpr in place."""
        return self.walk(self.graph, closed.jaxpr, closed.consts, inputs)

    def trace(self, function: Callable[..., Any], *inputs: Value) -> list[Value]:
        """Write what a JAX function of the stored tensors does: a primitive in terms of others."""
        import jax

        stored = [as_stored(value) for value in inputs]
        shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in stored]
        with scope_of([value.dtype for value in stored]):
            closed = jax.make_jaxpr(function)(*shapes)
        return self.inline(closed, stored)

    def refuse(self, reason: str, *, received: object = None) -> ConversionError:
        """Return the error that this use of the primitive has no ONNX form here."""
        return ConversionError(
            f"the JAX primitive `{self.primitive}` cannot be expressed in ONNX: {reason}",
            where="JAX to ONNX",
            received=received,
            remedy="Write the model without it, or serve the format `jax`",
            primitive=self.primitive,
        )


Handler: TypeAlias = Callable[[Call], Sequence[Operand]]
"""Adds the nodes of one equation and returns its outputs, in order."""


def scope_of(dtypes: Iterable[Any]) -> AbstractContextManager[Any]:
    """Return the scope to trace or compute in: an imported function may have 64 bits inside, which JAX outside of
    `jax.enable_x64` would read as 32."""
    import jax

    is_wide = any(isinstance(dtype, np.dtype) and dtype.name in _WIDE for dtype in dtypes)
    return jax.enable_x64(True) if is_wide else contextlib.nullcontext()


_WIDE = frozenset({"int64", "uint64", "float64", "complex128"})


def as_stored(value: Value) -> Value:
    """Return the tensor that holds a value, as a value of its own."""
    return Value(
        shape=stored_shape(value.shape, value.dtype),
        dtype=stored_dtype(value.dtype),
        name=value.name,
        constant=value.constant,
    )


def is_static(shape: Sequence[Any]) -> bool:
    """Tell whether all sizes are plain numbers."""
    return all(is_number(size) for size in shape)


def is_same_size(first: Any, second: Any) -> bool:
    """Tell whether two sizes, known or free, are certainly equal."""
    return str(first) == str(second)
