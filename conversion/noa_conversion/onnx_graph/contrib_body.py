"""Writes the body of a `com.microsoft` operator: standard operators for the inputs and attributes of one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from noa.errors import ConversionError
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode, OnnxValue

if TYPE_CHECKING:
    from noa_conversion.onnx_graph.functions import InputType

OPSET = 21
"""The opset in which bodies are written."""

Written: TypeAlias = "str | Sequence[str | None] | None"
Writer: TypeAlias = "Callable[[Body], Written]"


class Body:
    """A body while it is written: values are names, and each `op` adds a node and returns the name of its result."""

    def __init__(self, node: OnnxNode, types: Sequence[InputType | None], *, prefix: str = "") -> None:
        self.node = node
        self._prefix = prefix
        self._types = types
        self._nodes: list[OnnxNode] = []
        self._constants: dict[str, np.ndarray] = {}

    @property
    def num_inputs(self) -> int:
        """How many inputs the node has."""
        return len(self._types)

    def wants(self, index: int) -> bool:
        """Tell whether the output at `index` is named."""
        return index < len(self.node.outputs) and self.node.outputs[index] != ""

    def input(self, index: int) -> str | None:
        """Return the value of an input, or None if it is left out."""
        return f"{self._prefix}in{index}" if index < len(self._types) and self._types[index] is not None else None

    def needed(self, index: int) -> str:
        """Return the value of an input that must be there."""
        name = self.input(index)
        return name if name is not None else self.refuse(f"its input {index} is missing")

    def type(self, index: int) -> InputType:
        """Return what is known of an input that must be there."""
        known = self._types[index] if index < len(self._types) else None
        return known if known is not None else self.refuse(f"its input {index} is missing")

    def dtype(self, index: int = 0) -> np.dtype:
        """Return the element type of an input."""
        return self.type(index).dtype

    def rank(self, index: int) -> int:
        """Return the number of axes of an input."""
        return len(self.type(index).shape)

    def size(self, index: int, axis: int, what: str) -> int:
        """Return a size of an input that must be a number."""
        size = self.type(index).shape[axis]
        return size if size is not None else self.refuse(f"{what} is a free axis")

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; one that is missing and has no default is refused."""
        value: Any = self.node.attributes.get(name, default)
        return value if value is not None else self.refuse(f"the attribute `{name}` is missing")

    def has(self, name: str) -> bool:
        """Tell whether the node has an attribute."""
        return name in self.node.attributes

    def passed_on(self, *names: str) -> dict[str, Any]:
        """Return attributes that a standard operator takes as they are, None for those left out."""
        return {name: self.node.attributes.get(name) for name in names}

    def allow(self, **defaults: Any) -> None:
        """Refuse attributes that have another value than the one that is implemented."""
        for name, default in defaults.items():
            value = self.node.attributes.get(name, default)
            if value != default:
                self.refuse(f"the attribute `{name}` is {value}, and only {default} is implemented")

    def refuse_inputs(self, **indices: int) -> None:
        """Refuse inputs that are not implemented."""
        for name, index in indices.items():
            if self.input(index) is not None:
                self.refuse(f"its input `{name}` is not implemented")

    def op(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str | None, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        index = len(self._nodes)
        names = [f"{self._prefix}v{index}_{place}" for place in range(outputs)]
        given = [name or "" for name in inputs]
        while given and not given[-1]:
            given.pop()
        self._nodes.append(
            OnnxNode(
                kind=kind,
                version=OPSET,
                name=f"{self.node.name}/{kind}_{index}",
                inputs=tuple(given),
                outputs=tuple(names),
                attributes={name: value for name, value in attributes.items() if value is not None},
            )
        )
        return names

    def constant(self, value: Any, dtype: Any) -> str:
        """Add a constant."""
        name = f"{self._prefix}c{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def number(self, value: float, index: int = 0) -> str:
        """Add a constant of the type of an input."""
        return self.constant(value, self.dtype(index))

    def ints(self, *values: int) -> str:
        """Add a list of whole numbers: axes, a shape."""
        return self.constant(list(values), np.int64)

    def refuse(self, reason: str) -> NoReturn:
        """Refuse the node.

        Raises:
            ConversionError: always; names the operator, the node and the reason.
        """
        node = self.node
        raise ConversionError(
            f"operator `{node.kind}` cannot be imported: {reason}",
            where=f"node `{node.name}`, domain {node.domain or 'ai.onnx'}, opset {node.version}",
            op=node.kind,
            node=node.name,
            domain=node.domain,
            opset=node.version,
            reason=reason,
        )

    def finish(self, written: Written) -> OnnxGraph:
        """Return the body as a graph whose outputs are what the node asks for."""
        results = [written] if written is None or isinstance(written, str) else list(written)
        outputs: list[str] = []
        for index in range(len(self.node.outputs)):
            name = results[index] if index < len(results) else None
            if name is None and self.wants(index):
                self.refuse(f"its output {index} is not implemented")
            outputs.append(name or str(results[0]))
        return self.graph([f"{self._prefix}in{index}" for index in range(len(self._types))], outputs)

    def graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> OnnxGraph:
        """Return what was written as a graph between these names."""
        return OnnxGraph(
            name=self.node.name,
            inputs=tuple(OnnxValue(name=name) for name in inputs),
            outputs=tuple(OnnxValue(name=name) for name in outputs),
            nodes=tuple(self._nodes),
            initialisers=self._constants,
        )
