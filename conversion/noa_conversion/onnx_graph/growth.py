"""How large a node gets, known from its attributes and the shapes of its inputs, before anything is computed.

Only operators that can make much from little are here: those that a number of the file tells how large to be, products,
and windows, which are laid over padded copies of their input. What a node really made is judged afterwards; this is so
that it is not made at all. All sizes are plain numbers: the caller puts one in the place of each free axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from noa_conversion.onnx_graph.model import OnnxNode

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """What is known of an input: its shape, and its numbers if they are."""

    shape: Shape
    numbers: np.ndarray | None = None

    def integers(self) -> list[int]:
        """Return the whole numbers that the input holds.

        Raises:
            Unknown: they are not known.
        """
        if self.numbers is None or self.numbers.dtype == object or self.numbers.dtype.kind not in "iuf":
            raise Unknown
        return [int(number) for number in self.numbers.reshape(-1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A tensor that computing a node takes: its output, or what is made on the way (`padded input`, `window`)."""

    what: str
    shape: Shape

    @property
    def elements(self) -> int:
        """The number of elements; a size below zero, which the operator refuses itself, counts as none."""
        return math.prod(max(size, 0) for size in self.shape)


class Unknown(Exception):  # noqa: N818  # not an error: nothing can be told
    """How large the node gets depends on what is not known yet."""


def growth_of(node: OnnxNode, operands: Sequence[Operand | None]) -> tuple[Growth, ...]:
    """Return what computing a node takes, or nothing where it is not known, or cannot be more than a few inputs."""
    rule = _RULES.get(node.kind) if node.domain == "" else None
    if rule is None:
        return ()
    try:
        return tuple(rule(_Node(node, operands)))
    except (Unknown, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, OverflowError):
        return ()  # an attribute or an operand that makes no sense: the operator refuses it by its own reason


class _Node:
    """A node with the shapes of its inputs."""

    __slots__ = ("_attributes", "_operands", "kind")

    def __init__(self, node: OnnxNode, operands: Sequence[Operand | None]) -> None:
        self.kind = node.kind
        self._attributes: Mapping[str, Any] = node.attributes
        self._operands = operands

    def get(self, name: str, default: Any) -> Any:
        return self._attributes.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self._operands) and self._operands[index] is not None

    def at(self, index: int) -> Operand:
        operand = self._operands[index] if index < len(self._operands) else None
        if operand is None:
            raise Unknown
        return operand

    def shape(self, index: int) -> Shape:
        return self.at(index).shape

    def shapes(self) -> list[Shape]:
        return [operand.shape for operand in self._operands if operand is not None]

    def integers(self, name: str, index: int) -> list[int]:
        """Return whole numbers that are an attribute in older files and an input in newer ones."""
        if self.has(index):
            return self.at(index).integers()
        given = self._attributes.get(name)
        if given is None:
            raise Unknown
        return [int(number) for number in given]

    def number(self, index: int) -> int:
        return self.at(index).integers()[0]


_Rule: TypeAlias = Callable[[_Node], Iterator[Growth]]
_RULES: dict[str, _Rule] = {}


def _grows(*kinds: str) -> Callable[[_Rule], _Rule]:
    def decorate(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return decorate


def _output(*shape: int) -> Growth:
    return Growth(what="output", shape=shape)


def _broadcast(shapes: Sequence[Sequence[int]]) -> Shape:
    rank = max(map(len, shapes), default=0)
    aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*aligned, strict=True))


# --- elementwise, products --------------------------------------------------------------------------------------------


@_grows(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
def _elementwise(node: _Node) -> Iterator[Growth]:
    yield _output(*_broadcast(node.shapes()))


@_grows("MatMul", "MatMulInteger", "QLinearMatMul")
def _matrix_product(node: _Node) -> Iterator[Growth]:
    left, right = node.shape(0), node.shape(3 if node.kind == "QLinearMatMul" else 1)
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    yield _output(*_broadcast([left[:-2], right[:-2]]), *rows, *columns)


@_grows("Gemm")
def _gemm(node: _Node) -> Iterator[Growth]:
    left, right = node.shape(0), node.shape(1)
    yield _output(left[1 if node.get("transA", 0) else 0], right[0 if node.get("transB", 0) else 1])


@_grows("Einsum")
def _einsum(node: _Node) -> Iterator[Growth]:
    equation = str(node.get("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    sizes: dict[str, int] = {}
    for letters, shape in zip(left.split(","), node.shapes(), strict=True):
        if "." in letters:
            raise Unknown
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if not arrow:
        right = "".join(letter for letter in sizes if left.count(letter) == 1)
    yield _output(*(sizes[letter] for letter in right))


# --- sizes that the file says -----------------------------------------------------------------------------------------


@_grows("Concat")
def _concat(node: _Node) -> Iterator[Growth]:
    shapes = node.shapes()
    axis = node.get("axis", 1)
    joined = list(shapes[0])
    joined[axis] = sum(shape[axis] for shape in shapes)
    yield _output(*joined)


@_grows("Tile")
def _tile(node: _Node) -> Iterator[Growth]:
    repeats = node.at(1).integers()
    if len(node.shapes()) == 3:  # before opset 6: how often, and the axis
        repeats = [repeats[0] if axis == node.number(2) else 1 for axis in range(len(node.shape(0)))]
    yield _output(*(size * count for size, count in zip(node.shape(0), repeats, strict=True)))


@_grows("Expand")
def _expand(node: _Node) -> Iterator[Growth]:
    yield _output(*_broadcast([node.shape(0), node.at(1).integers()]))


@_grows("ConstantOfShape")
def _constant_of_shape(node: _Node) -> Iterator[Growth]:
    yield _output(*node.at(0).integers())


@_grows("RandomNormal", "RandomUniform")
def _random(node: _Node) -> Iterator[Growth]:
    yield _output(*node.get("shape", ()))


@_grows("Range")
def _range(node: _Node) -> Iterator[Growth]:
    numbers = [node.at(index).numbers for index in range(3)]
    if any(array is None or array.dtype == object for array in numbers):
        raise Unknown
    start, limit, step = (float(np.asarray(array).reshape(-1)[0]) for array in numbers)
    yield _output(max(math.ceil((limit - start) / step), 0))


@_grows("OneHot")
def _one_hot(node: _Node) -> Iterator[Growth]:
    yield _output(*node.shape(0), node.number(1))


@_grows("BlackmanWindow", "HammingWindow", "HannWindow")
def _window(node: _Node) -> Iterator[Growth]:
    yield _output(node.number(0))


@_grows("MelWeightMatrix")
def _mel_weights(node: _Node) -> Iterator[Growth]:
    yield _output(node.number(1) // 2 + 1, node.number(0))


@_grows("DFT")
def _dft(node: _Node) -> Iterator[Growth]:
    shape = node.shape(0)
    axis = node.number(2) if node.has(2) else node.get("axis", -2)
    length = node.number(1) if node.has(1) else shape[axis]
    yield _output(*shape[:-1], length)
    yield Growth(what="transformed axis", shape=(length, 2))


@_grows("STFT")
def _stft(node: _Node) -> Iterator[Growth]:
    length = node.number(3) if node.has(3) else node.shape(2)[0]
    step = node.number(1)
    frames = max((node.shape(0)[1] - length) // step + 1, 0)
    yield _output(node.shape(0)[0], frames, length, 2)
    yield Growth(what="frame", shape=(length, 2))


@_grows("CenterCropPad")
def _centre_crop_pad(node: _Node) -> Iterator[Growth]:
    shape = list(node.shape(0))
    for axis, size in zip(node.get("axes", range(len(shape))), node.at(1).integers(), strict=True):
        shape[axis] = size
    yield _output(*shape)


@_grows("AffineGrid")
def _affine_grid(node: _Node) -> Iterator[Growth]:
    batch, _, *space = node.at(1).integers()
    yield _output(batch, *space, len(space))


@_grows("MaxUnpool")
def _max_unpool(node: _Node) -> Iterator[Growth]:
    if node.has(2):
        yield _output(*node.at(2).integers())
        return
    shape, kernel = node.shape(0), node.get("kernel_shape", ())
    strides, pads = node.get("strides", [1] * len(kernel)), node.get("pads", [0] * (2 * len(kernel)))
    space = [
        (size - 1) * stride + width - pads[axis] - pads[axis + len(kernel)]
        for axis, (size, width, stride) in enumerate(zip(shape[2:], kernel, strides, strict=True))
    ]
    yield _output(*shape[:2], *space)


@_grows("Col2Im")
def _col2im(node: _Node) -> Iterator[Growth]:
    image, block = node.at(1).integers(), node.at(2).integers()
    channels = node.shape(0)[1] // math.prod(block)
    yield _output(node.shape(0)[0], max(channels, 1), *image)
    yield Growth(what="block", shape=tuple(block))


@_grows("Resize", "Upsample")
def _resize(node: _Node) -> Iterator[Growth]:
    shape = list(node.shape(0))
    axes = [axis % len(shape) for axis in node.get("axes", range(len(shape)))]
    if node.kind == "Resize" and node.has(3):
        sizes = node.at(3).integers()
    else:
        place = 1 if node.kind == "Upsample" or not node.has(2) else 2
        scales = node.at(place).numbers if node.has(place) else np.asarray(node.get("scales", ()), np.float64)
        if scales is None or scales.dtype == object or not scales.size:
            raise Unknown
        sizes = [int(shape[axis] * float(scale)) for axis, scale in zip(axes, scales.reshape(-1), strict=True)]
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    yield _output(*shape)


# --- moving elements --------------------------------------------------------------------------------------------------


@_grows("Gather")
def _gather(node: _Node) -> Iterator[Growth]:
    data, axis = node.shape(0), node.get("axis", 0)
    axis = axis % len(data)
    yield _output(*data[:axis], *node.shape(1), *data[axis + 1 :])


@_grows("GatherND")
def _gather_nd(node: _Node) -> Iterator[Growth]:
    places, batches = node.shape(1), node.get("batch_dims", 0)
    yield _output(*places[:-1], *node.shape(0)[batches + places[-1] :])


@_grows("GridSample")
def _grid_sample(node: _Node) -> Iterator[Growth]:
    yield _output(*node.shape(0)[:2], *node.shape(1)[1:-1])


@_grows("RoiAlign")
def _roi_align(node: _Node) -> Iterator[Growth]:
    size = (node.get("output_height", 1), node.get("output_width", 1))
    samples = max(node.get("sampling_ratio", 0), 1) ** 2
    yield Growth(what="grid of samples", shape=(node.shape(1)[0], node.shape(0)[1], *size, samples))


@_grows("MaxRoiPool")
def _max_roi_pool(node: _Node) -> Iterator[Growth]:
    yield _output(node.shape(1)[0], node.shape(0)[1], *node.get("pooled_shape", ()))


@_grows("Pad")
def _pad(node: _Node) -> Iterator[Growth]:
    shape = list(node.shape(0))
    pads = node.integers("pads" if node.get("pads", None) is not None else "paddings", 1)
    axes = node.at(3).integers() if node.has(3) else list(range(len(shape)))
    for place, axis in enumerate(axes):
        shape[axis] += pads[place] + pads[place + len(axes)]
    yield _output(*shape)


@_grows("Attention")
def _attention(node: _Node) -> Iterator[Growth]:
    queries, keys = node.shape(0), node.shape(1)
    if len(queries) == 4:
        yield Growth(what="scores", shape=(*queries[:3], keys[2] + (node.shape(4)[2] if node.has(4) else 0)))
    else:
        yield Growth(what="scores", shape=(queries[0], int(node.get("q_num_heads", 1)), queries[1], keys[1]))


# --- windows ----------------------------------------------------------------------------------------------------------


@_grows("AveragePool", "MaxPool", "LpPool")
def _pool(node: _Node) -> Iterator[Growth]:
    yield from _slide(node, node.shape(0), list(node.get("kernel_shape", ())))


@_grows("Conv", "ConvInteger", "QLinearConv", "DeformConv")
def _convolution(node: _Node) -> Iterator[Growth]:
    weight = node.shape(3 if node.kind == "QLinearConv" else 1)
    yield from _slide(node, node.shape(0), list(weight[2:]), channels=weight[0])


def _slide(node: _Node, shape: Shape, kernel: Sequence[int], channels: int | None = None) -> Iterator[Growth]:
    """Yield the padded input, the window and the output of a window that slides over the axes behind the second."""
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads = node.get("pads", [0] * (2 * rank))
    padded: list[int] = []
    counts: list[int] = []
    for axis in range(rank):
        size, stride, reach = shape[2 + axis], strides[axis], (kernel[axis] - 1) * dilations[axis] + 1
        if str(node.get("auto_pad", "NOTSET") or "NOTSET").startswith("SAME"):
            count = -(-size // stride)
            padded.append(max((count - 1) * stride + reach, size))
        else:
            padded.append(size + pads[axis] + pads[axis + rank])
            room = padded[-1] - reach
            count = (-(-room // stride) if node.get("ceil_mode", 0) else room // stride) + 1
        counts.append(count)
    yield Growth(what="window", shape=tuple(kernel))
    yield Growth(what="padded input", shape=(*shape[:2], *padded))
    yield _output(shape[0], shape[1] if channels is None else channels, *counts)


@_grows("ConvTranspose")
def _transposed_convolution(node: _Node) -> Iterator[Growth]:
    shape, weight = node.shape(0), node.shape(1)
    kernel = weight[2:]
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads, more = node.get("pads", [0] * (2 * rank)), node.get("output_padding", [0] * rank)
    given = node.get("output_shape", None)
    whole = [
        (shape[2 + axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 + more[axis]
        for axis in range(rank)
    ]
    channels = weight[1] * node.get("group", 1)
    yield Growth(what="spread input", shape=(shape[0], channels, *whole))
    if given is not None:
        yield _output(shape[0], channels, *given[-rank:])
    else:
        # negative pads make the output larger than what the kernel reaches
        yield _output(*shape[:1], channels, *(w - pads[a] - pads[a + rank] for a, w in enumerate(whole)))
