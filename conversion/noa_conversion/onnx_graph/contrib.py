"""Operators of `com.microsoft` as function bodies over standard operators: written once, for every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode

if TYPE_CHECKING:
    from noa_conversion.onnx_graph.functions import InputType


def body(node: OnnxNode, inputs: Sequence[InputType | None]) -> OnnxGraph | None:
    """Return the body of a node for these inputs, or None if there is none."""
    return None
