"""The values that one of our importers computes on its way through an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from noa_conversion.bisection.search import NamedValue
from noa_conversion.formats.onnx_format import MODEL_FILE
from noa_conversion.importers.interpreter import run_graph
from noa_conversion.importers.target import Target, Value
from noa_conversion.onnx_graph.model import OnnxNode
from noa_conversion.onnx_graph.reading import read_model


class ImportedValues:
    """Walks the graph in a target, eagerly, and keeps what is asked for. `to_array` brings a tensor back, or None.

    `scope` is entered around the walk.
    """

    def __init__(
        self,
        folder: Path,
        target: Target,
        to_array: Callable[[Any], np.ndarray | None],
        *,
        scope: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._graph = read_model(folder / MODEL_FILE).graph
        self._target = target
        self._to_array = to_array
        self._scope = scope
        self.order: tuple[NamedValue, ...] = tuple(
            NamedValue(name=name, node=node.name, kind=node.kind)
            for node in self._graph.nodes
            for name in node.outputs
            if name
        )

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the values of `names`; one that is no tensor is left out.

        Raises:
            ConversionError: the importer refuses a node; names it.
        """
        wanted = set(names)
        found: dict[str, np.ndarray] = {}

        def watch(node: OnnxNode, results: Sequence[Value]) -> None:
            for name, value in zip(node.outputs, results, strict=False):
                if name in wanted:
                    array = value if isinstance(value, np.ndarray) and value.dtype != object else self._to_array(value)
                    if array is not None:
                        found[name] = array

        with self._scope():
            given = [self._target.constant(inputs[value.name]) for value in self._graph.inputs]
            run_graph(self._graph, self._target, given, watch=watch)
        return found
