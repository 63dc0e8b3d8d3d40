"""Judges what a node takes, before it is computed and after, by the limit of `onnx_graph/limits.py`.

Before, from attributes and shapes (`onnx_graph/growth.py`): handlers compute windows and weights of their own with
numpy, and a bisection computes everything, so that it would be too late afterwards. After, from what the target says
the node has made: that also catches what no rule foresees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noa.errors import ConversionError
from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Target, Value
from noa_conversion.onnx_graph.growth import Operand, growth_of
from noa_conversion.onnx_graph.limits import REMEDY, in_words

_FARTHEST = (1 << 31) - 1
# Attributes that are counts of elements along an axis.
_DISTANCES = (
    *(
        "blocksize",
        "dilations",
        "group",
        "kernel_shape",
        "num_groups",
        "output_height",
        "output_padding",
        "output_shape",
    ),
    *("output_width", "paddings", "pads", "sample_size", "sampling_ratio", "size", "strides"),
)
# What a free axis is tried for: that it has at least so many elements, whatever its symbols are.
_TRIED = (1 << 40, 1 << 31, 1 << 24, 1 << 16, 1 << 8)


class SizeJudge:
    """Holds the limit of one walk, and what is known of its symbols."""

    __slots__ = ("_allowed", "_known", "_least", "_target")

    def __init__(self, target: Target, allowed_bytes: int) -> None:
        self._target = target
        self._allowed = allowed_bytes
        self._known = 0
        self._least: dict[str, int] = {}

    def check_before(self, op: Op, inputs: Sequence[Value]) -> None:
        """Refuse a node that is going to take more than a value may.

        Raises:
            ConversionError: names the node, the shape and the setting.
        """
        growths = growth_of(op.node, [self._operand(value) for value in inputs]) if op.domain == "" else ()
        for growth in growths:
            needed = growth.elements * self._item_bytes(inputs)
            if needed > self._allowed:
                raise self._refusal(op, growth.what, growth.shape, needed)
        self._check_windows(op, inputs)

    def _check_windows(self, op: Op, inputs: Sequence[Value]) -> None:
        """Refuse distances that no axis has: frameworks add to them without looking, and XLA ends the process."""
        given: dict[str, Any] = {name: op.attribute(name, ()) for name in _DISTANCES}
        if op.kind == "Pad" and len(inputs) > 1 and op.is_known(inputs[1]):
            given["pads"] = inputs[1].ravel().tolist()
        for name, numbers in given.items():
            listed = numbers if isinstance(numbers, (list, tuple)) else (numbers,)
            far = next((n for n in listed if isinstance(n, int) and abs(n) > _FARTHEST), None)
            if far is not None:
                raise op.refusal(f"its `{name}` holds {far}, and no axis is longer than {_FARTHEST}")

    def count_known(self, op: Op, results: Sequence[Value]) -> None:
        """Refuse a node with which all that was computed on numbers at the import takes more than one value may.

        Raises:
            ConversionError: names the node and the setting.
        """
        if op.kind in ("Constant", "Identity"):
            return  # nothing new: it is held by the file
        self._known += sum(value.nbytes for value in results if isinstance(value, np.ndarray) and value.base is None)
        if self._known > self._allowed:
            raise op.refusal(
                f"what is computed at the import takes {in_words(self._known)} up to here, and "
                f"`conversion.max_value_bytes` allows {in_words(self._allowed)}",
                remedy=REMEDY,
            )

    def check_after(self, op: Op, results: Sequence[Value]) -> None:
        """Refuse a node that made more than a value may take.

        Raises:
            ConversionError: as `check_before`.
        """
        for value in results:
            if value is None or isinstance(value, (np.ndarray, list, tuple)):
                continue  # an array is known and small, or a view of the file; a list holds what was judged before
            shape = tuple(self._counted(size) for size in self._target.shape(value))
            if (elements := math.prod(shape)) > self._allowed >> 4:  # no element has more than 16 bytes
                needed = elements * self._target.dtype(value).itemsize
                if needed > self._allowed:
                    raise self._refusal(op, "output", shape, needed)

    def _operand(self, value: Value) -> Operand | None:
        if value is None or isinstance(value, (list, tuple)):
            return None
        if isinstance(value, np.ndarray):
            return Operand(shape=value.shape, numbers=value)
        return Operand(shape=tuple(self._counted(size) for size in self._target.shape(value)))

    def _counted(self, size: Size) -> int:
        """Return a plain size, or the size that a free axis has at least."""
        if isinstance(size, int):
            return size
        name = str(size)
        if name not in self._least:
            proven = (number for number in _TRIED if self._target.at_least(size, number))
            self._least[name] = next(proven, 1)
        return self._least[name]

    def _item_bytes(self, inputs: Sequence[Value]) -> int:
        """Return the bytes of an element of the first tensor, whose type most outputs have."""
        for value in inputs:
            if isinstance(value, np.ndarray):
                return 4 if value.dtype == object else max(value.dtype.itemsize, 1)
            if value is not None and not isinstance(value, (list, tuple)):
                return max(self._target.dtype(value).itemsize, 1)
        return 4

    def _refusal(self, op: Op, what: str, shape: tuple[int, ...], needed: int) -> ConversionError:
        """Return the error for a tensor of a node."""
        return op.refusal(
            f"its {what} of shape {shape} takes {in_words(needed)}, and `conversion.max_value_bytes` allows "
            f"{in_words(self._allowed)}",
            remedy=REMEDY,
        )
