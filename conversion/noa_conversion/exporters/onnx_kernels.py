"""Widen what runtimes have no kernels for: bfloat16 is computed in 32 bits and rounded, some narrow types are moved so.

Weights and the values between nodes keep their type; only the node itself sees the wider one. For bfloat16 that is what
processors without it do: compute in 32 bits, round each result. Moving elements in a wider type loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_BFLOAT16, _FLOAT32, _INT32 = 16, 1, 6
_NARROW_KINDS = {9: "bool", 4: "uint16", 5: "int16"}
# These only move elements, or hold subgraphs, and have kernels for every type.
_ANY_TYPE = frozenset(
    (
        *("Identity", "Cast", "CastLike", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice"),
        *("Gather", "GatherElements", "GatherND", "Split", "If", "Loop", "Scan", "Shape", "Size", "Constant"),
        *(
            "ConstantOfShape",
            "SplitToSequence",
            "SequenceConstruct",
            "SequenceAt",
            "ConcatFromSequence",
            "SequenceInsert",
        ),
    )
)
_NO_NARROW = {
    "Pad": ("uint16", "int16"),
    **dict.fromkeys(("Where", "Min", "Max", "Clip"), ("bool", "uint16", "int16")),
}


def fit_kernels(model: onnx.ModelProto) -> int:
    """Put casts around the nodes that need them, in place, and return how many nodes that were."""
    types = element_types(model)
    return _Widening(types).graph(model.graph)


class _Widening:
    """One walk over a graph and its subgraphs; `types` says what each tensor holds."""

    def __init__(self, types: dict[str, int]) -> None:
        self._types = types
        self._taken = set(types)

    def graph(self, graph: onnx.GraphProto) -> int:
        """Widen nodes of a graph in place."""
        nodes: list[onnx.NodeProto] = []
        count = 0
        for node in graph.node:
            count += sum(self.graph(attribute.g) for attribute in node.attribute if attribute.HasField("g"))
            wide = self._wide_types(node)
            if not wide:
                nodes.append(node)
                continue
            nodes += self._wrapped(node, wide)
            count += 1
        del graph.node[:]
        graph.node.extend(nodes)
        return count

    def _wide_types(self, node: onnx.NodeProto) -> dict[int, int]:
        """Return which types of this node's tensors are to be widened, and to what."""
        if node.op_type in _ANY_TYPE or node.domain not in ("", "ai.onnx"):
            return {}
        if node.op_type.startswith("Scatter") and not any(entry.name == "reduction" for entry in node.attribute):
            return {}
        found = {self._types.get(name, 0) for name in (*node.input, *node.output)}
        wide = {_BFLOAT16: _FLOAT32} if _BFLOAT16 in found else {}
        narrow = _NO_NARROW.get(node.op_type, ())
        result = self._types.get(node.output[0], 0)
        if _NARROW_KINDS.get(result) in narrow:
            wide[result] = _INT32
        return wide

    def _wrapped(self, node: onnx.NodeProto, wide: dict[int, int]) -> list[onnx.NodeProto]:
        from onnx import helper

        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        kept = 1 if node.op_type == "Where" else 0  # the condition stays a condition
        for index, name in enumerate(node.input):
            target = wide.get(self._types.get(name, 0))
            if name and target is not None and index >= kept:
                cast = self._fresh(f"{name}_wide")
                before.append(helper.make_node("Cast", [name], [cast], name=cast, to=target))
                node.input[index] = cast
        for index, name in enumerate(node.output):
            source = self._types.get(name, 0)
            if name and source in wide:
                computed = self._fresh(f"{name}_wide")
                after.append(helper.make_node("Cast", [computed], [name], name=f"{computed}_cast", to=source))
                node.output[index] = computed
        return [*before, node, *after]

    def _fresh(self, stem: str) -> str:
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor by name; weights take part by their type only."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(_without_weights(model))
    inferred = onnx.shape_inference.infer_shapes(bare)
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    _collect(inferred.graph, types)
    return types


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with large initialisers as inputs, so that inference copies no weights."""
    import onnx
    from onnx import helper

    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    taken = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2 and tensor.ByteSize() < 1024:
            graph.initializer.append(tensor)
        elif tensor.name not in taken:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bare


def _collect(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    values: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    for value in values:
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, types)
