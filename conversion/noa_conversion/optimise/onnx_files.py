"""Reading and writing the graphs that are optimised, and counting what is in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.atomic_write import write_file
from noa.digests import canonical_json
from noa.errors import ConversionError
from noa.signatures import Signature
from noa_conversion.files import MAX_GRAPH_BYTES, read_bytes
from noa_conversion.formats.onnx_check import parse_model
from noa_conversion.formats.onnx_format import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

CHANGE_FILE = "change.json"
"""What a step changed, in numbers; a part of the format's folder."""


def read_graph(folder: Path) -> onnx.ModelProto:
    """Read the graph of a folder of the format `onnx`, checked; functions are inlined: no optimiser looks into them.

    Raises:
        InvalidInputError: missing, corrupt or not safe to load.
    """
    from onnx import inliner

    model = parse_model(read_bytes(folder, MODEL_FILE), folder / MODEL_FILE)
    return inliner.inline_local_functions(model) if model.functions else model


def write_graph(model: onnx.ModelProto, source: Path, folder: Path, *, step: str, counts: Mapping[str, int]) -> None:
    """Write a changed graph with its source's signature, and what was changed.

    Raises:
        ConversionError: the graph is not valid, its tensors are not those of the signature, or it is too large.
    """
    import onnx

    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise ConversionError(
            "the model is larger than one ONNX file can be",
            expected=f"at most {MAX_GRAPH_BYTES} bytes",
            received=f"{model.ByteSize()} bytes",
        )
    signature = Signature.load(source)
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    wanted = [spec.name for spec in (*signature.inputs, *signature.outputs)]
    if sorted(names) != sorted(wanted):
        raise ConversionError(f"`{step}` changed the tensors of the graph", expected=str(wanted), received=str(names))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as exc:
        raise ConversionError(f"`{step}` made a graph that is not valid: {str(exc).splitlines()[0][:300]}") from exc
    write_file(folder / MODEL_FILE, model.SerializeToString(deterministic=True))
    write_file(folder / CHANGE_FILE, canonical_json({"step": step, "counts": dict(counts)}))
    signature.save(folder)


def count_nodes(model: onnx.ModelProto) -> Counter[str]:
    """Count the nodes of a graph and all within it by operator."""
    return Counter(node.op_type for graph in walk_graphs(model.graph) for node in graph.node)


def count_weights(model: onnx.ModelProto, dtype: int) -> int:
    """Count the initialisers of one type of elements, in all graphs."""
    return sum(tensor.data_type == dtype for graph in walk_graphs(model.graph) for tensor in graph.initializer)


def walk_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from walk_graphs(inner)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes of the outer graph into an order in which every value is made before it is used."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting, ordered = list(graph.node), list[Any]()
    while waiting:
        ready = [node for node in waiting if _needs(node) <= made | _inner(node)]
        if not ready:
            return  # a cycle: the checker names it
        for node in ready:
            made.update(node.output)
        ordered += ready
        taken = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in taken]
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _needs(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, also from within its subgraphs."""
    inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return {*node.input, *(name for graph in inner for step in graph.node for name in _needs(step))}


def _inner(node: onnx.NodeProto) -> set[str]:
    """Return what is made within the subgraphs of a node."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for part in walk_graphs(graph):
                found |= {value.name for value in part.input} | {tensor.name for tensor in part.initializer}
                found |= {name for step in part.node for name in step.output}
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of the standard operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def refuse_unchanged(step: str, reason: str, *, received: str) -> ConversionError:
    """Return the error for a step that found nothing to change: its result would claim what it is not."""
    return ConversionError(
        f"`{step}` changed nothing: {reason}",
        expected="at least one node or weight that it can change",
        received=received,
        remedy="Serve the format `onnx`; it is what this model has",
    )
