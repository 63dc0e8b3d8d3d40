"""Operators of `com.microsoft` as bodies over standard operators: written once, for every target.

What onnxruntime's optimiser and quantiser write into files. Each writer is compared with onnxruntime's own kernel in
`tests/conversion/test_contrib_*.py`. A variant that is not done exactly is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from noa_conversion.onnx_graph.contrib_attention import ATTENTION
from noa_conversion.onnx_graph.contrib_body import Body, Writer
from noa_conversion.onnx_graph.contrib_fused import FUSED
from noa_conversion.onnx_graph.contrib_grouped import GROUPED
from noa_conversion.onnx_graph.contrib_quantised import QUANTISED
from noa_conversion.onnx_graph.contrib_recurrent import RECURRENT
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode

if TYPE_CHECKING:
    from noa_conversion.onnx_graph.functions import InputType

DOMAIN = "com.microsoft"
# onnxruntime keeps these in the standard domain, where ONNX has no operators of these names.
_STANDARD = {"SimplifiedLayerNormalization"}
_WRITERS: dict[str, Writer] = {**FUSED, **QUANTISED, **ATTENTION, **GROUPED, **RECURRENT}


def body(node: OnnxNode, inputs: Sequence[InputType | None]) -> OnnxGraph | None:
    """Return the body of a node for these inputs, or None if there is none.

    Raises:
        ConversionError: the operator is known and this variant of it is not.
    """
    writer = _WRITERS.get(node.kind)
    if writer is None or (node.domain != DOMAIN and node.kind not in _STANDARD):
        return None
    written = Body(node, inputs)
    return written.finish(writer(written))


def kinds() -> frozenset[str]:
    """Return all operators that have a body here."""
    return frozenset(_WRITERS)
