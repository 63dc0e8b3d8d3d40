"""Graphs of protobuf messages as `OnnxGraph`s: names made unique, nodes in order, calls of functions inlined.

`Builder` makes one model. It never follows a claim of the file without a bound: recursion, and a model that its calls
make too large, are refused before (`calls.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.calls import check_calls, functions_of, key_of, plain_domain
from noa_conversion.onnx_graph.model import Attribute, OnnxGraph, OnnxNode, OnnxValue
from noa_conversion.onnx_graph.protos import TensorReader, read_text, read_type, typed_value
from noa_conversion.onnx_graph.scopes import Frame, Scope, UniqueNames, in_order

_KIND = onnx.AttributeProto


class Builder:
    """Builds the graphs of one model."""

    def __init__(self, path: Path, tensors: TensorReader, functions: Iterable[onnx.FunctionProto] = ()) -> None:
        self._path = path
        self._tensors = tensors
        self._names = UniqueNames()
        self._node_names = UniqueNames()
        self._functions = functions_of(functions, self._refuse)

    def model(self, proto: onnx.ModelProto) -> OnnxGraph:
        """Build the graph of a model.

        Raises:
            InvalidInputError: as `graph` does; or its functions call themselves or make it too large.
        """
        check_calls(proto.graph.node, self._functions, self._refuse)
        return self.graph(proto.graph, Frame(opsets=opsets_of(proto)))

    def graph(self, proto: onnx.GraphProto, frame: Frame, around: Scope | None = None) -> OnnxGraph:
        """Build one graph; `around` holds the names that it can see.

        Raises:
            InvalidInputError: a name is undefined or defined twice, the nodes run in a circle, a function recurs.
        """
        scope = Scope(parent=around)
        arrays = self._initialisers(proto, scope)
        inputs = [value for value in proto.input if value.name not in arrays]
        for value in inputs:
            self._define(value.name, scope, "input")
        for node in proto.node:
            for name in node.output:
                if name:
                    self._define(name, scope, f"output of node `{node.name or node.op_type}`")
        values: dict[str, OnnxValue] = {}
        for value in (*proto.value_info, *proto.input, *proto.output):
            if (unique := scope.names.get(value.name)) is not None:
                values[unique] = typed_value(unique, value.type)
        nodes: list[OnnxNode] = []
        for node in in_order(proto.node, self._refuse):
            self._add(node, scope, frame, nodes, values)
        return OnnxGraph(
            name=proto.name,
            inputs=tuple(values[scope.names[value.name]] for value in inputs),
            outputs=tuple(self._output(value, scope, values) for value in proto.output),
            nodes=tuple(nodes),
            initialisers={scope.names[name]: array for name, array in arrays.items()},
            values=values,
        )

    def function(self, proto: onnx.FunctionProto, bound: Mapping[str, Attribute], wanted: Sequence[bool]) -> OnnxGraph:
        """Build a function as a graph of its own, its attributes filled in; `wanted` tells which outputs are used."""
        scope = Scope()
        for name in proto.input:
            self._define(name, scope, "input")
        frame = Frame(opsets=_opsets(proto.opset_import), bound=bound)
        values: dict[str, OnnxValue] = {}
        nodes = self._body(proto, scope, frame, {}, values)
        outputs: list[OnnxValue] = []
        for name, is_wanted in zip(proto.output, wanted, strict=False):
            unique = scope.find(name)
            if unique is None and is_wanted:
                self._refuse(f"nothing makes the output `{name}` of the function `{proto.name}`")
            outputs.append(OnnxValue(name=unique or outputs[0].name))
        inputs = tuple(OnnxValue(name=scope.names[name]) for name in proto.input)
        return OnnxGraph(name=proto.name, inputs=inputs, outputs=tuple(outputs), nodes=tuple(nodes), values=values)

    def _initialisers(self, proto: onnx.GraphProto, scope: Scope) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for tensor in proto.initializer:
            self._define(tensor.name, scope, "initialiser")
            arrays[tensor.name] = self._tensors.read(tensor)
        for sparse in proto.sparse_initializer:
            self._define(sparse.values.name, scope, "initialiser")
            arrays[sparse.values.name] = self._tensors.read_sparse(sparse)
        return arrays

    def _output(self, value: onnx.ValueInfoProto, scope: Scope, values: Mapping[str, OnnxValue]) -> OnnxValue:
        unique = scope.find(value.name)
        if not unique:
            self._refuse(f"nothing makes the output `{value.name}`")
        return values.get(unique) or read_type(value)

    def _add(
        self, node: onnx.NodeProto, scope: Scope, frame: Frame, nodes: list[OnnxNode], values: dict[str, OnnxValue]
    ) -> None:
        """Append one node, or the nodes of the function that it calls."""
        self._check_text(node.domain, node.op_type, node.name, node.overload)
        domain = plain_domain(node.domain)
        inputs = [self._resolve(name, scope, node) for name in node.input]
        attributes = self._attributes(node, scope, frame)
        name = self._node_names.take(frame.prefix + (node.name or _name_of(node)))
        function = self._functions.get(key_of(node))
        if function is not None:
            outputs = [scope.names[output] if output else "" for output in node.output]
            inner = self._open(frame, name, function, attributes)
            nodes += self._call(function, inputs, outputs, inner, values)
            return
        nodes.append(
            OnnxNode(
                kind=node.op_type,
                domain=domain,
                version=frame.opsets.get(domain, 1),
                name=name,
                inputs=tuple(inputs),
                outputs=tuple(scope.names[output] if output else "" for output in node.output),
                attributes=attributes,
            )
        )

    def _open(self, frame: Frame, name: str, function: onnx.FunctionProto, given: Mapping[str, Attribute]) -> Frame:
        empty = Frame(opsets={})
        defaults = {entry.name: self._attribute(entry, Scope(), empty) for entry in function.attribute_proto}
        bound = {key: value for key, value in {**defaults, **given}.items() if value is not None}
        opsets = {**frame.opsets, **_opsets(function.opset_import)}
        return Frame(opsets=opsets, bound=bound, prefix=f"{name}/")

    def _call(
        self,
        function: onnx.FunctionProto,
        inputs: Sequence[str],
        outputs: Sequence[str],
        frame: Frame,
        values: dict[str, OnnxValue],
    ) -> list[OnnxNode]:
        if len(inputs) > len(function.input) or len(outputs) > len(function.output):
            self._refuse(f"the function `{function.name}` is called with more inputs or outputs than it has")
        padded = [*inputs, *("" for _ in range(len(function.input) - len(inputs)))]
        scope = Scope(dict(zip(function.input, padded, strict=True)))
        wanted = {name: output for name, output in zip(function.output, outputs, strict=False) if output}
        passed = {name: output for name, output in wanted.items() if name in scope.names}
        made = {name: output for name, output in wanted.items() if name not in scope.names}
        nodes = self._body(function, scope, frame, made, values)
        for name, output in made.items():
            if scope.find(name) != output:
                self._refuse(f"nothing makes the output `{name}` of the function `{function.name}`")
        for name, output in passed.items():
            unique = self._node_names.take(f"{frame.prefix}{output}")
            nodes.append(
                OnnxNode(kind="Identity", version=13, name=unique, inputs=(scope.names[name],), outputs=(output,))
            )
        return nodes

    def _body(
        self,
        function: onnx.FunctionProto,
        scope: Scope,
        frame: Frame,
        made: Mapping[str, str],
        values: dict[str, OnnxValue],
    ) -> list[OnnxNode]:
        """Build the nodes of a function; `made` holds the unique names of what it makes for its caller."""
        for node in function.node:
            for name in node.output:
                if name in scope.names:
                    self._refuse(f"the value `{name}` of the function `{function.name}` is defined twice")
                if name:
                    scope.names[name] = made.get(name) or self._names.take(frame.prefix + name)
        for value in function.value_info:
            if unique := scope.names.get(value.name):
                values.setdefault(unique, typed_value(unique, value.type))
        nodes: list[OnnxNode] = []
        for node in in_order(function.node, self._refuse):
            self._add(node, scope, frame, nodes, values)
        return nodes

    def _attributes(self, node: onnx.NodeProto, scope: Scope, frame: Frame) -> dict[str, Attribute]:
        result: dict[str, Attribute] = {}
        for attribute in node.attribute:
            self._check_text(attribute.name, attribute.ref_attr_name)
            if attribute.name in result:
                self._refuse(f"node `{node.name or node.op_type}` has the attribute `{attribute.name}` twice")
            if attribute.ref_attr_name:
                value = frame.bound.get(attribute.ref_attr_name)
            else:
                value = self._attribute(attribute, scope, frame)
            if value is not None:
                result[attribute.name] = value
        return result

    def _attribute(self, attribute: onnx.AttributeProto, scope: Scope, frame: Frame) -> Attribute | None:
        what = f"attribute `{attribute.name}`"
        match _kind_of(attribute):
            case _KIND.FLOAT:
                return float(attribute.f)
            case _KIND.INT:
                return int(attribute.i)
            case _KIND.STRING:
                return read_text(attribute.s, what, self._path)
            case _KIND.FLOATS:
                return [float(number) for number in attribute.floats]
            case _KIND.INTS:
                return [int(number) for number in attribute.ints]
            case _KIND.STRINGS:
                return [read_text(text, what, self._path) for text in attribute.strings]
            case _KIND.TENSOR:
                return self._tensors.read(attribute.t)
            case _KIND.SPARSE_TENSOR:
                return self._tensors.read_sparse(attribute.sparse_tensor)
            case _KIND.GRAPH:
                return self.graph(attribute.g, frame, scope)
            case _KIND.GRAPHS:
                return [self.graph(graph, frame, scope) for graph in attribute.graphs]
            case _KIND.TYPE_PROTO:
                return typed_value("", attribute.tp)
            case kind:
                return self._refuse(f"{what} is of the kind {kind}, which no operator here has")

    def _define(self, name: str, scope: Scope, role: str) -> None:
        self._check_text(name)
        if not name:
            self._refuse(f"an {role} has no name")
        if name in scope.names:
            self._refuse(f"the value `{name}` is defined twice, the second time as {role}")
        scope.names[name] = self._names.take(name)

    def _check_text(self, *texts: object) -> None:
        """Refuse names that are no text: protobuf returns them as bytes."""
        for text in texts:
            if not isinstance(text, str):
                self._refuse(f"the name {text!r} is no text")

    def _resolve(self, name: str, scope: Scope, node: onnx.NodeProto) -> str:
        if not name:
            return ""
        unique = scope.find(name)
        if unique is None:
            self._refuse(f"the value `{name}` is used by node `{node.name or node.op_type}` and nothing makes it")
        return unique

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidInputError(what, where=str(self._path))


def _opsets(entries: Iterable[Any]) -> dict[str, int]:
    return {plain_domain(entry.domain): int(entry.version) for entry in entries}


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the opset of each domain that a model names."""
    return _opsets(model.opset_import)


def _name_of(node: onnx.NodeProto) -> str:
    first = next((output for output in node.output if output), "")
    return f"{node.op_type}_{first}" if first else node.op_type


def _kind_of(attribute: onnx.AttributeProto) -> int:
    """Return an attribute's type; files of the first version do not say it."""
    if attribute.type != _KIND.UNDEFINED:
        return attribute.type
    fields = {
        "f": _KIND.FLOAT, "i": _KIND.INT, "s": _KIND.STRING, "t": _KIND.TENSOR, "g": _KIND.GRAPH,
    }  # fmt: skip
    for name, kind in fields.items():
        if attribute.HasField(name):
            return kind
    lists = {"floats": _KIND.FLOATS, "ints": _KIND.INTS, "strings": _KIND.STRINGS, "graphs": _KIND.GRAPHS}
    for name, kind in lists.items():
        if len(getattr(attribute, name)):
            return kind
    return _KIND.INTS
