"""Keep the numbers of a float64 module double on the way from PyTorch to ONNX.

PyTorch's exporter writes every number of Python in 32 bits and casts it: `x * 0.1` is wrong by 1e-9 in float64. It
notes at each node of ONNX which call it stands for; the number is read there again, in full. One that is in no call is
the exporter's own: a fraction or a constant of mathematics is known, or has few digits; any other is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from noa.errors import ConversionError

if TYPE_CHECKING:
    import onnx

_FLOAT, _DOUBLE = 1, 11
_CALL: Final = "pkg.torch.onnx.fx_node"
_TARGET: Final = re.compile(r"\[target=(?:torch\.ops\.)?([^\]]+)\]")
_NUMBER: Final = re.compile(r"(?<![\w.%])-?(?:\d+\.\d*|\d+)(?:e[+-]?\d+)?(?![\w.])")
# These give a tensor another type because the module asks for it.
_CONVERSIONS: Final = ("aten._to_copy", "aten.to.", "prims.convert_element_type", "aten.type_as")
_OWN: Final = (math.pi, math.pi / 180, 180 / math.pi, math.pi / 2, math.log(2), math.log(10), math.sqrt(2 / math.pi))
_FEW_DIGITS: Final = 6  # what float32 gives back as it was written


def translations() -> dict[Any, Any]:
    """Return the tests for infinities, for `torch.onnx.export`: in 32 bits 1e300 is one."""
    import torch

    aten = torch.ops.aten
    return {
        aten.isinf.default: _is_infinite,
        aten.isposinf.default: _is_highest,
        aten.isneginf.default: _is_lowest,
    }


def _is_infinite(x: Any) -> Any:
    return _test_infinity(x)


def _is_highest(x: Any) -> Any:
    return _test_infinity(x, detect_negative=0)


def _is_lowest(x: Any) -> Any:
    return _test_infinity(x, detect_positive=0)


def _test_infinity(x: Any, **signs: int) -> Any:
    from onnxscript import opset18

    op = cast("Any", opset18)
    return op.IsInf(x if int(x.dtype) == _DOUBLE else op.Cast(x, to=_FLOAT), **signs)


def keep_doubles(graph: onnx.GraphProto, types: dict[str, int]) -> int:
    """Rewrite a graph in place and return how many numbers are double now; `types` says what each tensor holds.

    Raises:
        ConversionError: a number of the exporter's own is in 32 bits, or it computes a float64 operation in them.
    """
    return 0 if _DOUBLE not in types.values() else _Pass(types).graph(graph, {})


class _Pass:
    """One walk over a graph and its subgraphs."""

    def __init__(self, types: dict[str, int]) -> None:
        self._types = types

    def graph(self, graph: onnx.GraphProto, outer: dict[str, onnx.NodeProto]) -> int:
        makers = {**outer, **{name: node for node in graph.node for name in node.output}}
        nodes: list[onnx.NodeProto] = []
        count = 0
        for node in graph.node:
            count += sum(self.graph(entry.g, makers) for entry in node.attribute if entry.HasField("g"))
            replaced = self._replaced(node, makers)
            count += replaced is not None
            nodes += [node] if replaced is None else replaced
        used = {name for node in _all_nodes(nodes) for name in node.input} | {value.name for value in graph.output}
        del graph.node[:]
        graph.node.extend(n for n in nodes if n.op_type != "Constant" or n.output[0] in used)
        return count

    def _replaced(self, node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto] | None:
        if node.op_type == "Gemm" and self._types.get(node.output[0]) == _DOUBLE:
            return _without_factors(node)
        if node.op_type == "Pow" and self._types.get(node.input[0]) == _DOUBLE:
            return _with_full_exponent(node, makers)
        target = self._cast_target(node)
        if target is None or _is_conversion(node):
            return None
        source = self._types.get(node.input[0], 0)
        if target == _FLOAT and source == _DOUBLE:
            raise ConversionError(
                f"PyTorch's exporter computes `{_call(node)}` of float64 numbers in 32 bits",
                expected="an operation that has an ONNX form in float64",
                received=f"`{_call(node)}`",
                remedy="Replace it, export a float32 module, or serve the format `torch`",
            )
        if target != _DOUBLE:
            return None
        maker = makers.get(node.input[0])
        if maker is None:
            return None
        if maker.op_type == "Range" and _text(maker) == _text(node):
            return self._double_range(node, maker, makers)
        numbers = _floats(maker)
        return None if numbers is None else [_constant(node.output[0], _in_full(numbers, node))]

    def _cast_target(self, node: onnx.NodeProto) -> int | None:
        if node.op_type == "Cast":
            return next(entry.i for entry in node.attribute if entry.name == "to")
        return self._types.get(node.input[1]) if node.op_type == "CastLike" else None

    def _double_range(
        self, node: onnx.NodeProto, maker: onnx.NodeProto, makers: dict[str, onnx.NodeProto]
    ) -> list[onnx.NodeProto] | None:
        """Count in double where the exporter counts in 32 bits; whole numbers are right as they are."""
        from onnx import helper

        made: list[onnx.NodeProto] = []
        names: list[str] = []
        has_fraction = False
        for at, name in enumerate(maker.input):
            cast = makers.get(name)
            before = name if cast is None or cast.op_type != "Cast" else cast.input[0]
            numbers = _floats(makers[before]) if before in makers else None
            names.append(f"{node.output[0]}_double_{at}")
            if numbers is not None:
                has_fraction = True
                made.append(_constant(names[-1], _in_full(numbers, node)))
            else:
                made.append(helper.make_node("Cast", [before], [names[-1]], name=names[-1], to=_DOUBLE))
        if not has_fraction:
            return None
        return [*made, helper.make_node("Range", names, [node.output[0]], name=node.name)]


def _without_factors(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Take the factors of a `Gemm`, which are attributes in 32 bits, out of it."""
    from onnx import helper

    before: list[onnx.NodeProto] = []
    for name, at in (("alpha", 0), ("beta", 2)):
        entry = next((entry for entry in node.attribute if entry.name == name), None)
        if entry is None or len(node.input) <= at:
            continue
        (full,) = _in_full(np.asarray([entry.f], np.float32), node)
        if full == entry.f:
            continue
        factor, product = f"{node.output[0]}_{name}", f"{node.output[0]}_{name}_product"
        before.append(_constant(factor, np.asarray(full)))
        before.append(helper.make_node("Mul", [node.input[at], factor], [product], name=product))
        node.input[at] = product
        node.attribute.remove(entry)
    return [*before, node] if before else None


def _with_full_exponent(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto] | None:
    """An exponent may have another type than its base, so there is no cast."""
    maker = makers.get(node.input[1])
    numbers = None if maker is None else _floats(maker)
    if numbers is None:
        return None
    exponent = f"{node.output[0]}_exponent"
    node.input[1] = exponent
    return [_constant(exponent, _in_full(numbers, node)), node]


def _in_full(numbers: np.ndarray, node: onnx.NodeProto) -> np.ndarray:
    """Return numbers as they were before they were put in 32 bits."""
    written = [float(text) for text in _NUMBER.findall(_text(node))]
    candidates = [*written, *(1 / number for number in written if number), *_OWN]
    candidates += [-number for number in candidates]
    return np.asarray([_one_in_full(float(each), candidates, node) for each in numbers.ravel()]).reshape(numbers.shape)


def _one_in_full(number: float, candidates: list[float], node: onnx.NodeProto) -> float:
    found = next((each for each in candidates if _in_32_bits(each) == number), None)
    if found is not None or not math.isfinite(number):
        return number if found is None else found
    short = float(f"{number:.{_FEW_DIGITS}g}")
    if _in_32_bits(short) == number:
        return short
    raise ConversionError(
        f"PyTorch's exporter keeps a number of `{_call(node)}` in 32 bits only, and the module computes in 64",
        expected="a number that float32 holds, or that the call names",
        received=repr(number),
        remedy="Write the operation out with numbers of your own, or serve the format `torch`",
    )


def _in_32_bits(number: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(number))


def _floats(node: onnx.NodeProto) -> np.ndarray | None:
    """Return what a `Constant` of 32-bit floats holds."""
    from onnx import numpy_helper

    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    (entry,) = node.attribute
    if entry.name == "value" and entry.t.data_type == _FLOAT:
        return numpy_helper.to_array(entry.t)
    if entry.name == "value_float":
        return np.asarray(entry.f, np.float32)
    return np.asarray(entry.floats, np.float32) if entry.name == "value_floats" else None


def _constant(name: str, values: np.ndarray) -> onnx.NodeProto:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(values))


def _all_nodes(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _all_nodes(list(entry.g.node))
                # what a branch gives may come from outside of it
                yield _uses([value.name for value in entry.g.output])


def _uses(names: list[str]) -> Any:
    from onnx import helper

    return helper.make_node("Identity", names, [])


def _is_conversion(node: onnx.NodeProto) -> bool:
    return _call(node).startswith(_CONVERSIONS)


def _call(node: onnx.NodeProto) -> str:
    found = _TARGET.search(_text(node))
    return found.group(1) if found else node.op_type


def _text(node: onnx.NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == _CALL), "")
