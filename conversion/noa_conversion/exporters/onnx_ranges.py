"""Count in whole numbers: `Range` of floats that come from whole numbers becomes a `Range` of those, and a cast.

PyTorch writes `arange(n, dtype=float32)` as a Range over casts. Its length then depends on floats, which no importer
can follow back to the size of an axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_FLOAT, _INT64 = 1, 7


def count_in_whole_numbers(graph: onnx.GraphProto) -> int:
    """Rewrite a graph in place and return how many nodes were changed; floats hold numbers below 2**24 exactly."""
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        sources = [_whole_source(name, makers, types) for name in node.input] if node.op_type == "Range" else [None]
        if any(source is None for source in sources):
            nodes.append(node)
            continue
        whole = f"{node.output[0]}_whole"
        given = [str(source) for source in sources]
        nodes.append(helper.make_node("Range", given, [whole], name=f"{node.name}_whole"))
        nodes.append(helper.make_node("Cast", [whole], [node.output[0]], name=node.name, to=_FLOAT))
        count += 1
    if count:
        del graph.node[:]
        graph.node.extend(nodes)
    return count


def _whole_source(name: str, makers: dict[str, onnx.NodeProto], types: dict[str, int]) -> str | None:
    """Return the int64 tensor of which a float one is a cast, if it is."""
    from onnx import helper

    maker = makers.get(name)
    if maker is None or maker.op_type != "Cast":
        return None
    target = next(helper.get_attribute_value(entry) for entry in maker.attribute if entry.name == "to")
    source = maker.input[0]
    return source if target == _FLOAT and _type(source, makers, types) == _INT64 else None


def _type(name: str, makers: dict[str, onnx.NodeProto], types: dict[str, int]) -> int:
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Constant":
        (entry,) = maker.attribute
        return _INT64 if entry.name == "value_int" else entry.t.data_type
    return types.get(name, 0)
