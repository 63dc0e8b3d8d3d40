"""What the inputs of an ONNX graph may hold, read from what the graph does with them.

A value is followed from an input through operators that only move it (`Reshape`, `Cast`, `Concat`, ...) and through the
addition of a constant, until it indexes a table (`Gather`, `OneHot`, ...: it must stay inside), decides a shape
(`Reshape`, `Expand`, ...: it cannot be made up) or goes through arithmetic on its way to an index (then 0 and 1 are
all that is known to be safe). Subgraphs are walked with their outer names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa_conversion.files import read_bytes
from noa_conversion.generated_inputs import InputRange
from noa_conversion.onnx_thresholds import find_threshold

if TYPE_CHECKING:
    import onnx

_Dims = Mapping[str, tuple[int | None, ...]]
_MOST_STEPS: Final = 200_000
_SHAPING: Final = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Tile"})
_CHOOSING: Final = frozenset({"Slice", "Concat", "Split", "Clip", "Where", "Trilu", "Compress", "ReverseSequence"})
_MOVES: Final = (_SHAPING | _CHOOSING | {"Identity", "Cast", "CastLike", "ReduceMax", "ReduceMin", "Max", "Min"}) | {
    "DepthToSpace",
    "SpaceToDepth",
}
_ARITHMETIC: Final = frozenset(
    {"Mul", "Div", "Mod", "Neg", "Abs", "CumSum", "ReduceSum", "Sum", "Range", "Floor", "Round", "Ceil", "Pow"}
)
# Which input of an operator is a table, which are its indices, and which attribute names the axis.
_INDEXING: Final = {
    "Gather": (0, 1),
    "GatherElements": (0, 1),
    "ScatterElements": (0, 1),
    "GatherBlockQuantized": (0, 1),
}
_ND_INDEXING: Final = {"GatherND": (0, 1), "ScatterND": (0, 1)}
_LOSSES: Final = frozenset({"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"})
# Inputs whose values are sizes, by operator.
_SHAPES: Final = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Resize": (2, 3), "Upsample": (1,),
    "Slice": (1, 2, 3, 4), "Pad": (1, 3), "TopK": (1,), "Unsqueeze": (1,), "Squeeze": (1,), "Range": (0, 1, 2),
    "Split": (1,), "CumSum": (1,), "OneHot": (1,), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,),
    "ReduceMin": (1,), "CenterCropPad": (1,), "EyeLike": (), "Loop": (0,), "ReduceProd": (1,), "ReduceL2": (1,),
}  # fmt: skip


def read_input_ranges(folder: Path, file: str = "model.onnx") -> dict[str, InputRange]:
    """Return what is known about the inputs of a graph in a format folder.

    Raises:
        InvalidInputError: the file is missing, corrupt or not safe to load.
    """
    from noa_conversion.formats.onnx_check import parse_model

    return find_input_ranges(parse_model(read_bytes(folder, file), folder / file))


def find_input_ranges(model: onnx.ModelProto) -> dict[str, InputRange]:
    """Return what is known about the inputs of a parsed and checked graph."""
    initialisers = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initialisers]
    nodes = list(_all_nodes(model.graph))
    users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            if name:
                users.setdefault(name, []).append((node, index))
    dims, constants = _known_dims(model), _constants(model, nodes)
    beyond = find_threshold(model, nodes)
    ranges: dict[str, InputRange] = {}
    for name in names:
        found = _follow(name, users, dims, constants)
        if beyond is not None:
            found = replace(found or InputRange(), beyond=beyond)
        if found is not None:
            ranges[name] = found
    return ranges


def _follow(
    name: str,
    users: Mapping[str, list[tuple[onnx.NodeProto, int]]],
    dims: _Dims,
    constants: Mapping[str, int],
) -> InputRange | None:
    """Walk forward; a state is a value, what was added to the input on the way, and whether it was computed with."""
    queue = deque([(name, 0, False)])
    seen = {(name, 0, False)}
    result: InputRange | None = None
    nothing: InputRange | None = None  # a table that no value from zero on indexes: the branch for negative ones
    steps = 0
    while queue and steps < _MOST_STEPS:
        value, shift, is_computed = queue.popleft()
        for node, index in users.get(value, ()):
            steps += 1
            found = _sink(node, index, shift, is_computed, dims, constants)
            if found is not None and found.high is not None and found.high <= found.low:
                nothing = found
                continue
            if found is not None:
                result = found if result is None else result.meet(found)
                continue
            step = _step(node, index, shift, is_computed, constants)
            if step is None:
                continue
            for output in node.output:
                state = (output, *step)
                if output and state not in seen:
                    seen.add(state)
                    queue.append(state)
    return nothing if result is None else result


def _sink(
    node: onnx.NodeProto, index: int, shift: int, is_computed: bool, dims: _Dims, constants: Mapping[str, int]
) -> InputRange | None:
    where = f"`{node.name or node.op_type}` ({node.op_type})"
    if index in _SHAPES.get(node.op_type, ()):
        return InputRange(reason=f"{where} takes it", decides_shape=True)
    if node.op_type in ("RNN", "LSTM", "GRU", "ReverseSequence") and index in (1, 4) and node.op_type != "LSTM":
        is_lengths = (node.op_type == "ReverseSequence") == (index == 1)
        return InputRange(low=1, high=2, reason=f"{where} takes lengths") if is_lengths else None
    if node.op_type == "LSTM" and index == 4:
        return InputRange(low=1, high=2, reason=f"{where} takes lengths")
    size = _indexed_size(node, index, dims, constants)
    if size is None:
        return None
    if is_computed:
        return InputRange(is_flag=True, reason=f"{where} takes an index that is computed from it")
    high = max(size, 1) - shift
    what = "of unknown size" if size < 1 else f"of {size} rows"
    return InputRange(low=max(-shift, 0), high=high, reason=f"{where} looks it up in a table {what}")


def _indexed_size(node: onnx.NodeProto, index: int, dims: _Dims, constants: Mapping[str, int]) -> int | None:
    """Return the number of rows that this input chooses from; 0 if that is not known, None if it chooses none."""
    kind = node.op_type
    if kind in _INDEXING and index == _INDEXING[kind][1]:
        shape = dims.get(node.input[0])
        attribute = "gather_axis" if kind == "GatherBlockQuantized" else "axis"
        axis = next((a.i for a in node.attribute if a.name == attribute), 0)
        return 0 if shape is None or not -len(shape) <= axis < len(shape) else shape[axis] or 0
    if kind in _ND_INDEXING and index == _ND_INDEXING[kind][1]:
        shape = dims.get(node.input[0]) or (None,)
        return min(size or 0 for size in shape)
    if kind in _LOSSES and index == 1:
        shape = dims.get(node.input[0]) or ()
        return shape[1] or 0 if len(shape) > 1 else 0
    if kind == "OneHot" and index == 0:
        return constants.get(node.input[1], 0)
    if kind == "EmbedLayerNormalization" and index in (0, 1):
        shape = dims.get(node.input[2 if index == 0 else 4]) or (None,)
        return shape[0] or 0
    return None


def _step(
    node: onnx.NodeProto, index: int, shift: int, is_computed: bool, constants: Mapping[str, int]
) -> tuple[int, bool] | None:
    """Return the state behind a node, None where the value ends or becomes something that indexes nothing."""
    kind = node.op_type
    if kind in ("Gather", "GatherElements", "GatherND") and index == 0:
        return shift, is_computed
    if kind == "Where" and index == 0:
        return None
    if kind in _MOVES:
        return (shift, is_computed) if index == 0 or kind in ("Concat", "Where", "Max", "Min") else None
    if kind in ("Add", "Sub") and len(node.input) == 2:
        other = constants.get(node.input[1 - index])
        if other is None or (kind == "Sub" and index == 1):
            return 0, True
        return shift + (other if kind == "Add" else -other), is_computed
    return (0, True) if kind in _ARITHMETIC else None


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _all_nodes(inner)


def _known_dims(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the sizes of constants, and of the values whose shape the file itself states or can be inferred."""
    import onnx

    found: dict[str, tuple[int | None, ...]] = {}
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    if model.ByteSize() < 1 << 28:
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
            values = [*values, *inferred.graph.value_info]
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            pass  # what is not known makes the range narrower
    for value in values:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    for tensor in model.graph.initializer:
        found[tensor.name] = tuple(tensor.dims)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                found[node.output[0]] = tuple(attribute.t.dims)
    return found


def _constants(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, int]:
    """Return the constants that are one whole number."""
    import numpy as np
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensors[node.output[0]] = attribute.t
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(list(tensor.dims), dtype=object)) != 1:
            continue
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            found[name] = int(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
    return found
