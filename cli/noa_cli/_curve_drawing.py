"""Curves as text: lines of dots on a grid of characters, for a terminal or a log.

Each character holds 2 x 4 dots (braille patterns), a colour tells the curves apart. Where there is no colour, or no
braille, a curve is drawn by a letter of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column and row within a character
_ACROSS, _DOWN = 2, 4
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
STYLES: Final = ("blue", "red", "green", "magenta", "yellow", "cyan", "white")
_LEAST_WIDTH: Final = 20
_TICKS_EVERY: Final = 4  # rows


@dataclass(frozen=True, slots=True)
class Cell:
    """A character of the drawing, and of which curve it is; None for frame and numbers."""

    text: str
    curve: int | None = None


def draw_curves(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]], *, width: int, height: int, dots: bool
) -> list[list[Cell]]:
    """Return the lines of a drawing of curves (x, values), with the numbers of both axes.

    `width` and `height` are in characters; `dots` draws with braille patterns, else each curve with its letter. Values
    that are not finite are gaps.
    """
    points = [[(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(x)] for curve in curves]
    finite = [(x, y) for those in points for x, y in those if math.isfinite(y)]
    if not finite:
        return [[Cell("no value is finite")]]
    left, right = _spread(min(x for x, _ in finite), max(x for x, _ in finite))
    low, high = _spread(min(y for _, y in finite), max(y for _, y in finite))
    labels = _tick_labels(low, high, height)
    margin = max(len(label) for label in labels.values()) + 1
    columns = max(width - margin - 1, _LEAST_WIDTH)
    grid = _Grid(columns, height)
    for index, those in enumerate(points):
        scaled = [
            None
            if not math.isfinite(y)
            else (
                round((x - left) / (right - left) * (columns * _ACROSS - 1)),
                round((high - y) / (high - low) * (height * _DOWN - 1)),
            )
            for x, y in those
        ]
        grid.draw(index, scaled)
    lines = [[Cell(labels.get(row, "").rjust(margin - 1) + " │"), *grid.row(row, dots=dots)] for row in range(height)]
    lines.append([Cell(" " * margin + "└" + "─" * columns)])
    first, last = _number(left), _number(right)
    lines.append([Cell(" " * (margin + 1) + first + last.rjust(columns - len(first)))])
    return lines if dots else [[Cell(_ascii(cell.text), cell.curve) for cell in line] for line in lines]


def letter(index: int) -> str:
    """Return the letter by which a curve is drawn where there are no dots."""
    return _LETTERS[index % len(_LETTERS)]


class _Grid:
    """Dots by character; of curves that meet in one, the later one has it."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns = columns
        self._dots = [[0] * columns for _ in range(rows)]
        self._owners: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def draw(self, index: int, points: Sequence[tuple[int, int] | None]) -> None:
        before: tuple[int, int] | None = None
        for point in points:
            if point is not None:
                for x, y in _line(before or point, point):
                    self._set(index, x, y)
            before = point

    def row(self, row: int, *, dots: bool) -> Iterator[Cell]:
        for column in range(self._columns):
            owner = self._owners[row][column]
            if owner is None:
                yield Cell(" ")
            else:
                yield Cell(chr(_BRAILLE | self._dots[row][column]) if dots else letter(owner), owner)

    def _set(self, index: int, x: int, y: int) -> None:
        row, column = y // _DOWN, x // _ACROSS
        if self._owners[row][column] != index:
            self._owners[row][column], self._dots[row][column] = index, 0
        self._dots[row][column] |= _DOTS[x % _ACROSS][y % _DOWN]


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Give the dots of a straight line, both ends with it."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0))
    if not count:
        yield end
        return
    for step in range(count + 1):
        yield round(x0 + (x1 - x0) * step / count), round(y0 + (y1 - y0) * step / count)


def _spread(low: float, high: float) -> tuple[float, float]:
    """Return bounds that differ: a single value is in the middle."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _tick_labels(low: float, high: float, rows: int) -> dict[int, str]:
    """Return the numbers beside every fourth row, and the last one."""
    chosen = sorted({*range(0, rows, _TICKS_EVERY), rows - 1})
    if len(chosen) > 1 and chosen[-1] - chosen[-2] < 2:
        del chosen[-2]
    return {row: _number(high - (high - low) * row / max(1, rows - 1)) for row in chosen}


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ascii(text: str) -> str:
    return text.translate({ord("│"): "|", ord("└"): "+", ord("─"): "-"})
