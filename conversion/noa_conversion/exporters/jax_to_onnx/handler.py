"""What every primitive's handler gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from noa.errors import ConversionError
from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number, onnx_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One equation of a jaxpr: a primitive's name, its params, its inputs, and shape and dtype of its outputs."""

    graph: GraphBuilder
    primitive: str
    params: Mapping[str, Any]
    inputs: Sequence[Value]
    outputs: Sequence[Any]
    """Abstract values, with `shape` and `dtype`."""

    def node(self, op: str, *operands: Operand, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.graph.node(op, *operands, **attributes)

    def cast(self, operand: Operand, dtype: Any) -> str:
        """Add a cast."""
        return self.graph.node("Cast", operand, to=onnx_type(dtype))

    def scalar(self, value: float, like: Any) -> str:
        """Return the name of a constant with one element of the dtype `like`."""
        return self.graph.constant(np.asarray(value, np.dtype(like)))

    def refuse(self, reason: str, *, received: object = None) -> ConversionError:
        """Return the error that this use of the primitive has no ONNX form here."""
        return ConversionError(
            f"the JAX primitive `{self.primitive}` cannot be expressed in ONNX: {reason}",
            where="JAX to ONNX",
            received=received,
            remedy="Write the model without it, or serve the format `jax`",
            primitive=self.primitive,
        )


Handler: TypeAlias = Callable[[Call], list[Operand]]
"""Adds the nodes of one equation and returns its outputs, in order."""


def is_static(shape: Sequence[Any]) -> bool:
    """Tell whether all sizes are plain numbers."""
    return all(is_number(size) for size in shape)
