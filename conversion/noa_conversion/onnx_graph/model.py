"""An ONNX model as frozen values over numpy, without protobuf and without a framework.

`OnnxModel` holds one `OnnxGraph`; a graph holds `OnnxNode`s in an order in which every value is made before it is used.
Subgraphs are attributes of nodes and see the names around them. `reading.py` makes these and guarantees what they say:
names of values are unique over the whole model, subgraphs included, and no function call is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
Attribute: TypeAlias = (
    "int | float | str | list[int] | list[float] | list[str] | Array | OnnxGraph | list[OnnxGraph] | OnnxValue"
)
"""What `Op.attribute` can return; `OnnxValue` is a type written as an attribute, as `Optional` has it."""
ValueKind: TypeAlias = Literal["tensor", "sequence", "optional", "map", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxValue:
    """What a file declares about a value.

    `dtype` is numpy's (ml_dtypes for bfloat16, 8- and 4-bit floats, 4-bit integers; `StringDType` for texts) or None if
    it is not said; for a sequence it is that of the elements. `shape` is None if the rank is not said; an axis is a
    size, a name, or None.
    """

    name: str
    kind: ValueKind = "tensor"
    dtype: np.dtype | None = None
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """One application of an operator. An input or output that is left out is the empty name.

    `version` is the opset of `domain` where the node was written: the model's, or that of the function it came from.
    """

    kind: str
    domain: str = ""
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, "Attribute"])

    def subgraphs(self) -> Iterator[OnnxGraph]:
        """Yield the graphs among the attributes."""
        for value in self.attributes.values():
            if isinstance(value, OnnxGraph):
                yield value
            elif isinstance(value, list):
                yield from (entry for entry in value if isinstance(entry, OnnxGraph))


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraph:
    """Nodes in topological order between named inputs and outputs.

    `initialisers` are the weights and constants that the file stores by name; they are read-only views of the file.
    `inputs` never lists an initialiser. `values` holds what the file declares about inner values (and in- and outputs).
    """

    name: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    nodes: tuple[OnnxNode, ...]
    initialisers: Mapping[str, Array] = field(default_factory=dict[str, Array])
    values: Mapping[str, OnnxValue] = field(default_factory=dict[str, OnnxValue])

    def walk(self) -> Iterator[OnnxGraph]:
        """Yield this graph and all graphs within its nodes, outermost first."""
        yield self
        for node in self.nodes:
            for graph in node.subgraphs():
                yield from graph.walk()

    def all_initialisers(self) -> dict[str, Array]:
        """Return the initialisers of this graph and of all graphs within it; names are unique over the model."""
        return {name: array for graph in self.walk() for name, array in graph.initialisers.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """A model: its graph, and the opset of each domain as the file declares it."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    ir_version: int
    producer: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def opset(self) -> int:
        """The opset of the standard domain (1 if the file uses none of its operators)."""
        return self.opsets.get("", 1)
