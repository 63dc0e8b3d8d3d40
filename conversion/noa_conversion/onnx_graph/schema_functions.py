"""The function bodies that ONNX's own schemas define, as graphs with the attributes of one node filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from noa_conversion.onnx_graph.building import Builder
from noa_conversion.onnx_graph.dtypes import code_of
from noa_conversion.onnx_graph.model import Attribute, OnnxGraph, OnnxNode
from noa_conversion.onnx_graph.protos import TensorReader

if TYPE_CHECKING:
    from noa_conversion.onnx_graph.functions import InputType

_KIND = onnx.AttributeProto


def schema_body(node: OnnxNode, inputs: Sequence[InputType | None]) -> OnnxGraph | None:
    """Return the body that a node's schema gives for its attributes and these inputs, or None."""
    try:
        schema: Any = onnx.defs.get_schema(node.kind, node.version, node.domain)
    except (onnx.defs.SchemaError, TypeError):
        return None
    if any(isinstance(value, OnnxGraph) for value in node.attributes.values()):
        return None
    function = _function(schema, node, inputs)
    if function is None:
        return None
    bound = {name: _default(entry) for name, entry in schema.attributes.items() if entry.default_value.name}
    path = Path(f"the function of {function.name}")
    builder = Builder(path, TensorReader(b"", path))
    return builder.function(function, {**bound, **node.attributes}, [output != "" for output in node.outputs])


def _function(schema: Any, node: OnnxNode, inputs: Sequence[InputType | None]) -> onnx.FunctionProto | None:
    function = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, node.version)
        proto = node_proto(schema, node, inputs).SerializeToString()
        types = [type_proto(entry).SerializeToString() for entry in inputs]
        body = schema.get_context_dependent_function_with_opset_version(version, proto, types)
    elif schema.has_function:
        version = _newest(schema.function_opset_versions, node.version)
        body = schema.get_function_with_opset_version(version)
    else:
        return None
    function.ParseFromString(body if isinstance(body, bytes) else body.SerializeToString())
    if all(entry.domain for entry in function.opset_import):
        # The preview domain's bodies use standard operators and do not say which.
        function.opset_import.append(helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    return function if function.node else None


def _newest(versions: Sequence[int], allowed: int) -> int:
    return max((version for version in versions if version <= allowed), default=min(versions))


def _default(entry: Any) -> Attribute:
    value = helper.get_attribute_value(entry.default_value)
    return value.decode() if isinstance(value, bytes) else value


def node_proto(schema: Any, node: OnnxNode, inputs: Sequence[InputType | None]) -> onnx.NodeProto:
    """Return a node as a message; an input of which nothing is known is left out."""
    names = [name if i < len(inputs) and inputs[i] is not None else "" for i, name in enumerate(node.inputs)]
    while names and not names[-1]:
        names.pop()
    proto = onnx.NodeProto(op_type=node.kind, domain=node.domain, name=node.name, input=names, output=node.outputs)
    for name, value in node.attributes.items():
        kind = int(schema.attributes[name].type) if name in schema.attributes else None
        written: Any = numpy_helper.from_array(np.array(value)) if isinstance(value, np.ndarray) else value
        proto.attribute.append(helper.make_attribute(name, written, attr_type=kind))
    return proto


def type_proto(entry: InputType | None) -> onnx.TypeProto:
    """Return the type of an input as a message."""
    if entry is None:
        return onnx.TypeProto()
    return helper.make_tensor_type_proto(code_of(entry.dtype), entry.shape)
