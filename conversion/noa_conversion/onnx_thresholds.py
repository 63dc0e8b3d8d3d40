"""Where the operators of an ONNX graph bend: numbers that made-up inputs must go past, or a comparison shows nothing.

Two converters may differ only beyond a bound (`clip` of an LSTM, `Clip`, `HardSigmoid`), which normal numbers seldom
reach. Only bounds that the file holds as constants are seen, wherever in the graph they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import onnx

_FARTHEST: Final = 1e4
"""Bounds above it hold nothing back in practice, and inputs past them would only overflow."""
_COMPARING: Final = frozenset({"Clip", "Min", "Max", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
# Attributes that are bounds, with the value they have where they are left out, by operator.
_ATTRIBUTES: Final[Mapping[str, Mapping[str, float | None]]] = {
    "RNN": {"clip": None}, "GRU": {"clip": None}, "LSTM": {"clip": None}, "Clip": {"min": None, "max": None},
    "Shrink": {"lambd": 0.5}, "ThresholdedRelu": {"alpha": 1.0}, "Attention": {"softcap": None},
}  # fmt: skip


def find_threshold(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> float | None:
    """Return the greatest bound that some operator of these nodes has, as a distance from zero; None without one."""
    numbers = _numbers(model, nodes)
    found = (abs(bound) for node in nodes for bound in _bounds(node, numbers))
    return max((bound for bound in found if math.isfinite(bound) and 0 < bound <= _FARTHEST), default=None)


def _bounds(node: onnx.NodeProto, numbers: Mapping[str, float]) -> Iterator[float]:
    given: dict[str, Any] = {attribute.name: attribute.f for attribute in node.attribute}
    for name, default in _ATTRIBUTES.get(node.op_type, {}).items():
        if (bound := given.get(name, default)) is not None:
            yield bound
    if node.op_type == "HardSigmoid":
        slope, shift = given.get("alpha", 0.2), given.get("beta", 0.5)
        if slope:
            yield from (-shift / slope, (1 - shift) / slope)
    if node.op_type == "HardSwish":
        yield 3.0
    if node.op_type in _COMPARING:
        yield from (numbers[name] for name in node.input if name in numbers)


def _numbers(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, float]:
    """Return the constants that are one float."""
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, float] = {}
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
            elif attribute.name == "value_float":
                found[node.output[0]] = attribute.f
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    for name, tensor in tensors.items():
        is_inside = tensor.data_location != onnx.TensorProto.EXTERNAL
        if is_inside and tensor.data_type in floats and math.prod(tensor.dims) == 1:
            found[name] = float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
    return found
