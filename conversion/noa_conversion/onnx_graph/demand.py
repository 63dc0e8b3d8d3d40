"""Which values must be known as numbers for a graph to be imported: those that decide shapes or structure.

An operand like `Reshape`'s second is demanded. From there the demand follows the operators of shape arithmetic
backwards: what a demanded value is computed from is demanded too, up to the graph's inputs and initialisers. It stops
where only a shape is read (`Shape`, `Size`), for a shape is known without the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from noa_conversion.onnx_graph.integers import knows
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxModel, OnnxNode

# Operator: the inputs that must be numbers. Attributes in older opsets simply have no such input.
_DEMANDED: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
# Of these operators the first input is data whose numbers do not matter for a demanded result.
_SHAPE_ONLY = {"Shape", "Size"}


def demanded_inputs(model: OnnxModel) -> frozenset[str]:
    """Return the graph inputs that must be given as numbers (`bind`)."""
    return demanded_names(model.graph) & {value.name for value in model.graph.inputs}


def demanded_initialisers(model: OnnxModel) -> frozenset[str]:
    """Return the initialisers, of all graphs, that are numbers for the import and so are no parameters."""
    return demanded_names(model.graph) & frozenset(model.graph.all_initialisers())


def demanded_names(graph: OnnxGraph) -> frozenset[str]:
    """Return every value, of this graph and all within it, that is demanded as numbers."""
    makers = {name: node for inner in graph.walk() for node in inner.nodes for name in node.outputs if name}
    formals = _formals(graph)
    found: set[str] = set()
    waiting = [name for inner in graph.walk() for node in inner.nodes for name in _asked(node)]
    while waiting:
        name = waiting.pop()
        if not name or name in found:
            continue
        found.add(name)
        waiting.extend(formals.get(name, ()))
        if (node := makers.get(name)) is not None:
            waiting.extend(_needs(node, name))
    return frozenset(found)


def _asked(node: OnnxNode) -> Iterable[str]:
    """Return the inputs that a node itself demands."""
    if node.domain != "":
        return ()
    if node.kind == "Loop" and (_stacks(node) or _carries_sequences(node)):
        return node.inputs[:2]
    if node.kind == "Dropout":
        return node.inputs[1:3] if len(node.inputs) > 2 else ()  # the share counts only while training
    return [node.inputs[index] for index in _DEMANDED.get(node.kind, ()) if index < len(node.inputs)]


def _stacks(node: OnnxNode) -> bool:
    """Tell whether a loop stacks a value per turn, so that the number of turns is the size of an output."""
    return len(node.outputs) > len(node.inputs) - 2


def _carries_sequences(node: OnnxNode) -> bool:
    """Tell whether a loop carries a sequence or an optional value, whose structure depends on the number of turns."""
    return any(value.kind in ("sequence", "optional") for body in node.subgraphs() for value in body.inputs)


def _needs(node: OnnxNode, output: str) -> Iterable[str]:
    """Return what a node's demanded output is computed from."""
    if node.domain != "" or node.kind in _SHAPE_ONLY:
        return ()
    if node.kind == "If":
        place = node.outputs.index(output)
        results = [graph.outputs[place].name for graph in node.subgraphs() if place < len(graph.outputs)]
        return [*node.inputs, *results]
    if node.kind in ("Loop", "Scan"):
        return ()
    return node.inputs if knows(node.kind) or node.kind in _SEQUENCES else ()


_SEQUENCES = {
    "ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct", "SequenceErase",
    "SequenceInsert", "SplitToSequence",
}  # fmt: skip


def _formals(graph: OnnxGraph) -> dict[str, list[str]]:
    """Return, for each input of a subgraph, the values that a `Loop` or `Scan` starts it with."""
    result: dict[str, list[str]] = {}
    for inner in graph.walk():
        for node in inner.nodes:
            for body in node.subgraphs() if node.kind in ("Loop", "Scan") else ():
                given = list(node.inputs) if node.kind == "Loop" else list(node.inputs)[-len(body.inputs) :]
                for formal, actual in zip(body.inputs, given, strict=False):
                    if not (node.kind == "Loop" and formal.name == body.inputs[0].name):
                        result.setdefault(formal.name, []).append(actual)
    return result
