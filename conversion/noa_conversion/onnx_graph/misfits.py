"""Whether a node can be computed of inputs of these shapes at all: what ONNX's own inference of shapes says.

`Squeeze` of an axis of size 2, `Reshape` of 6 elements to 4, `LSTM` of four axes: no runtime computes them. In a branch
of an `If` that is never taken they do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, numpy_helper, shape_inference

from noa_conversion.onnx_graph.model import OnnxGraph, OnnxNode
from noa_conversion.onnx_graph.schema_functions import node_proto, type_proto

if TYPE_CHECKING:
    from noa_conversion.onnx_graph.functions import InputType

_MOST_NUMBERS = 4096


def is_misfit(node: OnnxNode, inputs: Sequence[InputType | None]) -> bool:
    """Tell whether ONNX says that no inputs of these shapes fit the node; where it says nothing, they may."""
    if any(isinstance(value, OnnxGraph) for value in node.attributes.values()):
        return False
    try:
        outputs = _inferred(node, inputs)
    except shape_inference.InferenceError as exc:
        return "ShapeInferenceError" in str(exc)  # a wrong type is not a matter of shapes
    except (onnx.checker.ValidationError, onnx.defs.SchemaError, TypeError, ValueError, KeyError, RuntimeError):
        return False  # attributes and types of a file may be anything, and nothing is said of those
    if any(dim.dim_value < 0 for output in outputs.values() for dim in output.tensor_type.shape.dim):
        return True  # a window that is larger than what it moves over
    return node.kind == "Reshape" and node.domain == "" and _changes_count(inputs[0], outputs.get(node.outputs[0]))


def _inferred(node: OnnxNode, inputs: Sequence[InputType | None]) -> dict[str, onnx.TypeProto]:
    schema: Any = onnx.defs.get_schema(node.kind, node.version, node.domain)
    given = {name: entry for name, entry in zip(node.inputs, inputs, strict=False) if name and entry is not None}
    numbers = {
        name: numpy_helper.from_array(entry.array, name)
        for name, entry in given.items()
        if entry.array is not None and entry.array.dtype.kind in "iu" and entry.array.size <= _MOST_NUMBERS
    }
    return shape_inference.infer_node_outputs(
        schema,
        node_proto(schema, node, inputs),
        {name: type_proto(entry) for name, entry in given.items()},
        numbers,
        opset_imports=[helper.make_opsetid(node.domain, node.version)],
    )


def _changes_count(source: InputType | None, result: onnx.TypeProto | None) -> bool:
    """Tell whether the elements of a `Reshape` are more or fewer afterwards: ONNX's inference does not count them."""
    if source is None or result is None or not result.tensor_type.HasField("shape"):
        return False
    before = [size for size in source.shape if size is not None]
    after = [dim.dim_value for dim in result.tensor_type.shape.dim if dim.HasField("dim_value")]
    is_known = len(before) == len(source.shape) and len(after) == len(result.tensor_type.shape.dim)
    return is_known and math.prod(before) != math.prod(after)
