"""What a comparison has tried, and which outputs were the same for all of it.

Equality is shown for the inputs that were run and for no others: what differs beyond their range, or at other batches,
is not seen. An output that never changes says nothing about how it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from noa.signatures import Signature, TensorSpec
from noa.text_tensors import is_text
from noa_conversion.batches import batch_axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was run. `batches` is empty where no axis is free.

    `ranges` are the least and the greatest finite number of each input; texts have none.
    """

    is_made_up: bool
    batches: tuple[int, ...]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        ranges = {name: list(limits) for name, limits in self.ranges.items()}
        return {"made_up": self.is_made_up, "batches": list(self.batches), "ranges": ranges}

    def __str__(self) -> str:
        kind = "made-up" if self.is_made_up else "real"
        limits = "".join(f"; `{name}` {low:.4g} to {high:.4g}" for name, (low, high) in self.ranges.items())
        shapes = f"batches: {', '.join(map(str, self.batches))}" if self.batches else "no free batch"
        return f"{kind} inputs, {shapes}{limits}. What differs only elsewhere is not seen"


class SeenValues:
    """Watches the runs of one comparison; keeps one row of each tensor."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._axis = batch_axis(signature)
        self._seen = {side: {spec.name: _Rows() for spec in specs} for side, specs in self._sides()}
        self._batches: list[int] = []
        self._ranges: dict[str, tuple[float, float]] = {}

    def add(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], *, batch: int) -> None:
        """See one run of the source."""
        if self._axis is not None and batch not in self._batches:
            self._batches.append(batch)
        for (side, specs), arrays in zip(self._sides(), (inputs, outputs), strict=True):
            for spec in specs:
                self._seen[side][spec.name].add(_by_row(spec, arrays[spec.name], self._axis))
        for name, array in inputs.items():
            self._widen(name, array)

    def constant_outputs(self) -> tuple[str, ...]:
        """Return the outputs that were the same for all inputs, where the inputs were not."""
        if all(rows.are_same for rows in self._seen["inputs"].values()):
            return ()
        return tuple(name for name, rows in self._seen["outputs"].items() if rows.are_same and rows.count > 1)

    def tried(self, *, is_made_up: bool) -> Tried:
        """Return what was run."""
        return Tried(is_made_up=is_made_up, batches=tuple(self._batches), ranges=dict(self._ranges))

    def _sides(self) -> tuple[tuple[str, Sequence[TensorSpec]], ...]:
        return ("inputs", self._signature.inputs), ("outputs", self._signature.outputs)

    def _widen(self, name: str, array: np.ndarray) -> None:
        if is_text(array.dtype) or not array.size:
            return
        numbers = array.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            low, high = self._ranges.get(name, (np.inf, -np.inf))
            self._ranges[name] = min(low, float(finite.min())), max(high, float(finite.max()))


class _Rows:
    """Whether all rows of one tensor are the same."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None
        self.are_same = True
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        if not rows.size or not self.are_same:
            return
        first = np.asarray(rows[0], rows.dtype) if self._first is None else self._first
        if first.shape != rows.shape[1:]:  # of other sizes: the same only if all is one value
            first, rows = first.reshape(-1)[:1], rows.reshape(-1, 1)
            self.are_same = bool(_equal(self._kept().reshape(-1, 1), first).all())
        self._first = first
        self.count += len(rows)
        self.are_same = self.are_same and bool(_equal(rows, first).all())

    def _kept(self) -> np.ndarray:
        return np.zeros(0) if self._first is None else self._first


def _by_row(spec: TensorSpec, array: np.ndarray, axis: str | None) -> np.ndarray:
    if axis is not None and axis in spec.shape:
        return np.moveaxis(array, spec.shape.index(axis), 0)
    return array[None]


def _equal(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compare element by element; NaN is NaN."""
    same = np.asarray(left == right)
    return same if is_text(left.dtype) else same | ((left != left) & (right != right))
