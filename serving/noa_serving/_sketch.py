"""A sketch of values: counts in cells whose bounds are fixed for all time, so that sketches of several workers add up.

A cell holds the values of one sign between two powers of 2**(1/PER_OCTAVE), so that each is known to 9%, from 2**-32
to 2**32; what is smaller counts as zero, what is larger as the last cell. It is the layout of DDSketch (Masson, Rim and
Lee 2019, "DDSketch", PVLDB 12, section 2.1), without its collapsing of cells: there are 1,026 at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

PER_OCTAVE = 8
NOT_FINITE = 1 << 20
"""The cell of NaN and infinities; above all others."""

_OCTAVES = 32
_LAST = 2 * _OCTAVES * PER_OCTAVE
_SMALLEST = 2.0**-_OCTAVES
_BINS = 10


@dataclass(slots=True)
class Sketch:
    """How many values fell into which cell."""

    cells: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def count(self) -> int:
        """Values."""
        return sum(self.cells.values())

    def add(self, values: np.ndarray) -> None:
        """Count values: numbers of any dtype that has an order, or booleans."""
        numbers = np.asarray(values, dtype=np.float64).ravel()
        for cell, count in zip(*np.unique(_cells_of(numbers), return_counts=True), strict=True):
            self.cells[int(cell)] = self.cells.get(int(cell), 0) + int(count)

    def merge(self, other: Sketch) -> None:
        """Count what another sketch has counted."""
        for cell, count in other.cells.items():
            self.cells[cell] = self.cells.get(cell, 0) + count

    def quantile(self, share: float) -> float | None:
        """Return the value below which `share` of the finite values are, as exactly as its cell is wide; None: none."""
        cells = sorted((cell, count) for cell, count in self.cells.items() if cell != NOT_FINITE)
        total = sum(count for _, count in cells)
        below = 0
        for cell, count in cells:
            if below + count >= share * total:
                return _value_at(cell, (share * total - below) / count)
            below += count
        return None

    def to_json(self) -> dict[str, int]:
        """Return the counts by cell."""
        return {str(cell): count for cell, count in self.cells.items()}

    @classmethod
    def from_json(cls, table: Mapping[str, int]) -> Sketch:
        """Return the sketch that `to_json` wrote."""
        return cls({int(cell): count for cell, count in table.items()})


def stability_index(expected: Sketch, found: Sketch) -> float | None:
    """Return the population stability index of `found` against `expected`; None before both have values.

    The bins are the tenths of `expected`, as far as its cells allow; half a value is put into each, so that an empty
    one stays finite. 0 is the same distribution; above 0.25 is by rule of thumb another one.

    Source: Siddiqi 2006, "Credit Risk Scorecards", p. 136; it is Jeffreys' divergence of the two histograms.
    """
    if not expected.count or not found.count:
        return None
    bins: list[tuple[int, int]] = []
    total, one_bin = expected.count, expected.count / _BINS
    for cell in sorted(expected.cells.keys() | found.cells.keys()):
        here, there = expected.cells.get(cell, 0), found.cells.get(cell, 0)
        if not bins or bins[-1][0] >= one_bin or cell == NOT_FINITE:
            bins.append((here, there))
        else:
            bins[-1] = (bins[-1][0] + here, bins[-1][1] + there)
    there_total, half = found.count, len(bins) / 2
    index = 0.0
    for here, there in bins:
        p, q = (here + 0.5) / (total + half), (there + 0.5) / (there_total + half)
        index += (q - p) * math.log(q / p)
    return index


def _cells_of(numbers: np.ndarray) -> np.ndarray:
    sizes = np.abs(numbers)
    is_finite = np.isfinite(sizes)
    is_number = is_finite & (sizes >= _SMALLEST)
    places = np.floor(np.log2(np.where(is_number, sizes, 1.0)) * PER_OCTAVE) + _OCTAVES * PER_OCTAVE + 1
    cells = np.where(is_number, np.sign(numbers) * np.clip(places, 1, _LAST), 0.0)
    return np.where(is_finite, cells, NOT_FINITE).astype(np.int64)


def _value_at(cell: int, share: float) -> float:
    """Return the value that is `share` of the way through a cell, on the scale of its logarithm."""
    if cell == 0:
        return 0.0
    place = abs(cell) - 1 - _OCTAVES * PER_OCTAVE
    through = share if cell > 0 else 1.0 - share
    return math.copysign(2.0 ** ((place + through) / PER_OCTAVE), cell)
