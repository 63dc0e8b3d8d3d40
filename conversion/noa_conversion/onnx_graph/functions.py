"""Expansion of an operator into a graph of simpler ones, for what a target has no handler for.

The body is the function that the operator's schema defines (a fixed one, or one that depends on attributes and input
types), or, for `com.microsoft`, one of ours. Attributes are filled in; names are the body's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noa_conversion.onnx_graph import contrib
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode
from noa_conversion.onnx_graph.schema_functions import schema_body


@dataclass(frozen=True, slots=True, kw_only=True)
class InputType:
    """What is known of an input when an operator is expanded; `array` if its numbers are."""

    dtype: np.dtype
    shape: tuple[int | None, ...]
    array: np.ndarray | None = None


def expand(node: OnnxNode, inputs: Sequence[InputType | None]) -> OnnxGraph | None:
    """Return the body of an operator for these inputs, or None if it has none."""
    body = contrib.body(node, inputs)
    return body if body is not None else schema_body(node, inputs)
