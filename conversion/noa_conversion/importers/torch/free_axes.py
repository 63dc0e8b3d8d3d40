"""Free axes of a file's inputs as symbolic sizes of fake tensors, and back to names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._sympy.functions import Mod

from noa.errors import ConversionError
from noa_conversion.importers.axis_names import axis_name, with_sizes
from noa_conversion.importers.torch.dtypes import tagged, torch_dtype_of
from noa_conversion.onnx_graph.model import OnnxNode, OnnxValue

# Sizes to trace with. Batches may be small. Pictures and sounds go through strides and windows, which must not run out
# of elements, and are joined again after different ways down and up, which fits for multiples of 64 only.
_BATCH_HINTS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)
_OTHER_HINTS = tuple(64 * factor for factor in (5, 7, 9, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61))
_LARGEST_TENSOR = 2**27


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInputs:
    """The stand-ins of a graph's inputs, and the names of their symbols."""

    mode: FakeTensorMode
    tensors: tuple[torch.Tensor, ...]
    axes: Mapping[str, str]
    """Names of free axes by symbol."""
    values: tuple[OnnxValue, ...]
    """The inputs with a size or a name for each axis."""

    def name_of(self, size: int | torch.SymInt) -> int | str:
        """Return a plain size, the name of a free axis, or what is computed from such names as text."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression.is_number:
            return int(expression)
        return self._named(expression)

    def fixed_axes(self) -> dict[str, str]:
        """Return what the graph turned out to fix, free axes and sizes that are computed from them, with its value.

        A step that was taken as often as such a size says (an unrolled loop) is right for that size only.
        """
        env = self.mode.shape_env
        assert env is not None
        fixed = {
            name: str(expression)
            for symbol, expression in env.replacements.items()
            if (name := self.axes.get(str(symbol))) is not None
        }
        for guard in env.guards:
            sides = guard.expr.args if isinstance(guard.expr, sympy.Eq) else ()
            if any(side.is_number for side in sides) and not guard.expr.has(Mod):
                size, value = sorted(sides, key=lambda side: bool(side.is_number))
                fixed[self._named(size)] = str(value)
        return fixed

    def in_words(self, text: str) -> str:
        """Return a text with the names of free axes for their symbols."""
        return re.sub(r"\b[su]\d+\b", lambda match: self.axes.get(match[0], match[0]), text)

    def _named(self, expression: Any) -> str:
        return self.in_words(str(expression))


class Fixers:
    """Which node it was that works for one size of a free axis only: looked for after each, as long as it walks."""

    def __init__(self, fakes: FakeInputs) -> None:
        self._fakes = fakes
        self._seen = (0, 0)
        self._nodes: dict[str, OnnxNode] = {}

    def watch(self, node: OnnxNode, results: Sequence[object]) -> None:
        """Note the node if something is fixed now that was free before it."""
        del results
        env = self._fakes.mode.shape_env
        assert env is not None
        now = (len(env.replacements), len(env.guards))
        if now != self._seen:
            self._seen = now
            for name in self._fakes.fixed_axes():
                self._nodes.setdefault(name, node)

    def place_of(self, name: str) -> str | None:
        """Return the node that fixed an axis; none did if it was the whole, at its end."""
        node = self._nodes.get(name)
        return None if node is None else f"node `{node.name}`, operator `{node.kind}`"


def make_inputs(values: Sequence[OnnxValue], sizes: Mapping[str, int], *, dynamic: bool) -> FakeInputs:
    """Make stand-ins for a graph's inputs. Without `dynamic` a free axis has the size 1 unless `sizes` says another.

    Raises:
        ConversionError: an input is no tensor, or nothing is said of its rank or type.
        InvalidInputError: `sizes` names what is no free axis.
    """
    env = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    hints: dict[str, int] = {}
    named = tuple(_with_names(value, dynamic=dynamic) for value in with_sizes(values, sizes))
    tensors: list[torch.Tensor] = []
    axes: dict[str, str] = {}
    for value in named:
        assert value.shape is not None and value.dtype is not None
        shape = _hinted(value.shape, hints, named)
        kinds = [DimDynamic.STATIC if isinstance(size, int) else DimDynamic.DUCK for size in value.shape]
        tensor = _fake(mode, value, shape, kinds)
        tensors.append(tagged(tensor, value.dtype))
        for size, own in zip(value.shape, tensor.shape, strict=True):
            if isinstance(size, str) and isinstance(own, torch.SymInt):
                axes[str(own.node.expr)] = size
    return FakeInputs(mode=mode, tensors=tuple(tensors), axes=axes, values=named)


def _fake(mode: FakeTensorMode, value: OnnxValue, shape: list[int], kinds: list[DimDynamic]) -> torch.Tensor:
    assert value.dtype is not None
    real = torch.empty(shape, dtype=torch_dtype_of(value.dtype))
    context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
    return mode.from_tensor(real, source=ConstantSource(f"input_{value.name}"), symbolic_context=context)


def _hinted(shape: Sequence[int | str | None], hints: dict[str, int], values: Sequence[OnnxValue]) -> list[int]:
    """Return a shape to trace with; a tensor that would be too large gets small sizes everywhere."""
    before = dict(hints)
    for others in (_OTHER_HINTS, _BATCH_HINTS):
        sizes = [
            size
            if isinstance(size, int)
            else hints.setdefault(str(size), _hint(hints, values, others if axis else _BATCH_HINTS))
            for axis, size in enumerate(shape)
        ]
        if math.prod(sizes) <= _LARGEST_TENSOR or others is _BATCH_HINTS:
            return sizes
        hints.clear()
        hints.update(before)
    raise AssertionError(shape)


def _hint(hints: Mapping[str, int], values: Sequence[OnnxValue], choice: Sequence[int]) -> int:
    """Return a size that no other free axis and no fixed one has: equal ones would be taken for one symbol."""
    fixed = {size for value in values for size in value.shape or () if isinstance(size, int)}
    free = [hint for hint in choice if hint not in fixed and hint not in hints.values()]
    return free[0] if free else 113 + 2 * len(hints) + max(fixed, default=0)


def _with_names(value: OnnxValue, *, dynamic: bool) -> OnnxValue:
    if value.kind != "tensor":
        raise ConversionError(
            f"input `{value.name}` is a {value.kind}, and a traced module takes tensors",
            field=value.name,
            input=value.name,
        )
    if value.dtype is None or torch_dtype_of(value.dtype) is None:
        raise ConversionError(
            f"input `{value.name}` has the element type {value.dtype}, which PyTorch does not have", input=value.name
        )
    if value.shape is None:
        raise ConversionError(
            f"nothing is said about the shape of input `{value.name}`",
            remedy=f'Give its value: bind={{"{value.name}": array}}',
            input=value.name,
        )
    shape: list[int | str] = []
    for axis, size in enumerate(value.shape):
        name = axis_name(size, axis, value.name)
        shape.append(name if dynamic or isinstance(name, int) else 1)
    return replace(value, shape=tuple(shape))
