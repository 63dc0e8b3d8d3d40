"""The values inside a stored PyTorch program, under the names of its nodes.

PyTorch's exporter to ONNX names values after the nodes they come from, so the two have names in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noa.errors import InvalidInputError
from noa_conversion.bisection.search import NamedValue
from noa_conversion.formats.torch_format import first_line, import_torch, read_program


class TorchValues:
    """The nodes of `program.pt2`."""

    def __init__(self, folder: Path) -> None:
        self._where = folder
        self._graph, weights, self._signature = read_program(folder)
        self._weights = list(weights.values())
        self.order: tuple[NamedValue, ...] = tuple(
            NamedValue(name=node.name, node=node.name, kind=str(node.target))
            for node in self._graph.graph.nodes
            if node.op == "call_function"
        )

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the values of `names`; one that is no tensor is left out.

        Raises:
            InvalidInputError: PyTorch refuses the inputs.
        """
        torch = import_torch()
        wanted = set(names)
        found: dict[str, np.ndarray] = {}

        class Watching(torch.fx.Interpreter):
            """Runs the graph and keeps what is wanted."""

            def run_node(self, n: Any) -> Any:
                value = super().run_node(n)
                if n.name in wanted and isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:
                    found[n.name] = value.detach().cpu().numpy().copy()
                return value

        given = [torch.from_numpy(np.array(inputs[spec.name])) for spec in self._signature.inputs]
        try:
            with torch.inference_mode():
                Watching(self._graph).run(*self._weights, *given)
        except (RuntimeError, IndexError, TypeError, ValueError) as exc:
            raise InvalidInputError(f"PyTorch could not compute: {first_line(exc)}", where=str(self._where)) from exc
        return found
