"""The values inside an ONNX graph, computed by onnxruntime without any fusing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from noa.errors import InvalidInputError
from noa_conversion.bisection.search import NamedValue
from noa_conversion.files import read_bytes
from noa_conversion.formats.onnx_check import parse_model
from noa_conversion.formats.onnx_format import MODEL_FILE
from noa_conversion.onnx_runs import run_session


class OnnxValues:
    """Values of the outer graph of `model.onnx`; those within subgraphs are not seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / MODEL_FILE
        self._model = parse_model(read_bytes(folder, MODEL_FILE), self._path)
        self.order: tuple[NamedValue, ...] = tuple(
            NamedValue(name=name, node=node.name or f"{node.op_type}_{index}", kind=_kind(node.domain, node.op_type))
            for index, node in enumerate(self._model.graph.node)
            for name in node.output
            if name and node.op_type != "Constant"
        )

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the values of `names`; one that is no tensor is left out.

        Raises:
            InvalidInputError: onnxruntime refuses the graph or the inputs.
        """
        import onnx
        import onnxruntime as ort

        probe = onnx.ModelProto()
        probe.CopyFrom(self._model)
        del probe.graph.output[:]
        known = {value.name: value for value in self._model.graph.output}
        for name in names:
            probe.graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
            taken = {value.name for value in session.get_inputs()}
            given = {name: array for name, array in inputs.items() if name in taken}
            values = run_session(session, list(names), given, where="the graph that is searched")
        except Exception as exc:  # onnxruntime's errors have no common base
            text = str(exc).strip().splitlines()
            raise InvalidInputError(
                f"onnxruntime does not show the values inside: {text[0][:300] if text else type(exc).__name__}",
                where=str(self._path),
            ) from exc
        return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def _kind(domain: str, kind: str) -> str:
    return f"{domain}.{kind}" if domain and domain != "ai.onnx" else kind
