"""Give the inputs and outputs of an exported graph their names, whatever the values between them are called."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from noa.errors import ConversionError

if TYPE_CHECKING:
    import onnx


def name_tensors(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename a graph's inputs and outputs in place; a value between them that has such a name gets another.

    Raises:
        ConversionError: a weight has the name of an input or output. Both names are the user's, and ONNX has one list.
    """
    sides = ((graph.input, inputs, "input"), (graph.output, outputs, "output"))
    weights = {tensor.name for tensor in graph.initializer}
    taken = {name for inner in _graphs(graph) for name in _names(inner)}
    wanted = {*inputs, *outputs}
    renamed: dict[str, str] = {}
    for values, names, side in sides:
        for value, name in zip(values, names, strict=True):
            if name in weights and value.name != name:
                raise ConversionError(
                    f"the {side} `{name}` has the name of a weight, and ONNX tells them apart by name only",
                    expected=f"an {side} whose name is no weight's",
                    received=name,
                    remedy=f"Call the {side} otherwise in the signature",
                )
            renamed[value.name] = name
    for name in sorted(wanted & taken - renamed.keys()):
        renamed[name] = _free(name, taken | wanted)
        taken.add(renamed[name])
    _rename(graph, renamed)


def _free(name: str, taken: set[str]) -> str:
    count = 2
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def _graphs(graph: onnx.GraphProto) -> Generator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _names(graph: onnx.GraphProto) -> Generator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output)


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for inner in _graphs(graph):
        for value in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            value.name = renamed.get(value.name, value.name)
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
