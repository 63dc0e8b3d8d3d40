"""`ZipMap` at the end of a classifier: a dictionary per row, which skl2onnx writes unless it is told not to.

noa has tensors only. Where a `ZipMap` makes an output of the graph and nothing else, what it reads is the same numbers
as a plain tensor, one column per class: it is left out, and that is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx

_DOMAIN: Final = "ai.onnx.ml"
_KIND: Final = "ZipMap"
_SHOWN: Final = 10


def leave_out_zip_maps(model: onnx.ModelProto) -> tuple[str, ...]:
    """Make outputs that a `ZipMap` makes plain tensors of the same names; return what was done, in words.

    Their shapes are left open, for `complete_outputs` to find.
    """
    import onnx

    outputs = {value.name: value for value in model.graph.output}
    used = {name for node in _walk(model.graph) for name in node.input}
    notes: list[str] = []
    for node in model.graph.node:
        if (node.domain, node.op_type) != (_DOMAIN, _KIND) or len(node.output) != 1 or len(node.input) != 1:
            continue
        value = outputs.get(node.output[0])
        if value is None or value.name in used:
            continue
        classes = _classes(node)
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
        columns = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        notes.append(
            f"output `{value.name}` is a plain tensor here: the `{_KIND}` at its end, which makes a dictionary of each "
            f"row, was left out; its columns are the classes {columns}"
        )
    if notes and not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 13))
    return tuple(notes)


def maker_of(model: onnx.ModelProto, name: str) -> str | None:
    """Return in words which node makes a value: operator, node and opset."""
    for node in model.graph.node:
        if name in node.output:
            domain = node.domain or "ai.onnx"
            versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
            return f"`{node.op_type}` (node `{node.name}`, {domain} opset {versions.get(domain, '?')})"
    return None


def _classes(node: onnx.NodeProto) -> list[str]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_int64s":
            return [str(label) for label in attribute.ints]
        if attribute.name == "classlabels_strings":
            return [label.decode(errors="replace") for label in attribute.strings]
    return []


def _walk(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of all graphs within it."""
    found: list[onnx.NodeProto] = []
    graphs = [graph]
    while graphs:
        for node in graphs.pop().node:
            found.append(node)
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return found
