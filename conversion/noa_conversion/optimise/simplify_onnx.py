"""`onnx-slim`: fewer nodes that compute the same, by onnxslim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from noa.errors import ConversionError, DependencyMissingError
from noa_conversion.optimise.onnx_files import count_nodes, opset_of, read_graph, refuse_unchanged, write_graph

if TYPE_CHECKING:
    import onnx

STEP = "onnx-slim"


def simplify(source: Path, folder: Path) -> None:
    """Fold constants, remove what does nothing and merge what is computed twice.

    Raises:
        ConversionError: there was nothing to simplify, or the result is not what it should be.
        DependencyMissingError: onnxslim is not installed.
    """
    try:
        import onnxslim
    except ImportError as exc:
        raise DependencyMissingError("onnxslim", extra="optimize", purpose="simplifying an ONNX graph") from exc
    model = read_graph(source)
    before, opset = count_nodes(model).total(), opset_of(model)
    try:
        slim = cast("onnx.ModelProto", onnxslim.slim(model))
    except Exception as exc:  # onnxslim raises whatever its passes meet
        raise ConversionError(f"onnxslim cannot simplify the graph: {str(exc).splitlines()[0][:300]}") from exc
    after = count_nodes(slim).total()
    if opset_of(slim) != opset:
        raise ConversionError("onnxslim changed the opset", expected=f"opset {opset}", received=f"{opset_of(slim)}")
    if after >= before:
        raise refuse_unchanged(STEP, "the graph is as simple as onnxslim can make it", received=f"{before} nodes")
    write_graph(slim, source, folder, step=STEP, counts={"nodes_before": before, "nodes_after": after})
