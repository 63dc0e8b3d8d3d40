"""Curves as text: every line fits, every value is where it belongs, gaps stay gaps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies

from noa_cli._curve_drawing import Cell, draw_curves, letter


def text_of(lines: list[list[Cell]]) -> list[str]:
    return ["".join(cell.text for cell in line).rstrip() for line in lines]


def test_a_falling_curve_falls_and_its_axes_say_from_where_to_where() -> None:
    x = [float(step) for step in range(101)]
    lines = text_of(draw_curves([(x, [1.0 - step / 100 for step in x])], width=40, height=5, dots=False))
    assert [line[:3] for line in lines] == ["1 |", "  |", "  |", "  |", "0 |", "  +", "   "]
    assert lines[-1].split() == ["0", "100"]
    places = [line.index("a") for line in lines[:5]]
    assert places == sorted(places) and places[-1] > 30


def test_curves_are_told_apart_by_letters_and_by_their_cells() -> None:
    flat = ([0.0, 1.0], [1.0, 1.0])
    other = ([0.0, 1.0], [3.0, 3.0])
    lines = draw_curves([flat, other], width=30, height=4, dots=False)
    assert "bbbb" in text_of(lines)[0] and "aaaa" in text_of(lines)[3]
    assert {cell.curve for cell in lines[0]} == {None, 1}
    dotted = text_of(draw_curves([flat, other], width=30, height=4, dots=True))
    assert "⠉" in dotted[0] and "⣀" in dotted[3]
    assert [letter(0), letter(26), letter(52)] == ["a", "A", "a"]


def test_a_gap_is_not_bridged_and_what_is_not_finite_is_not_drawn() -> None:
    x = [float(step) for step in range(9)]
    values = [1.0, 1.0, 1.0, math.nan, math.inf, math.nan, 1.0, 1.0, 1.0]
    line = text_of(draw_curves([(x, values)], width=60, height=3, dots=False))[1]
    first, second = line[line.index("a") :].split(" ", 1)
    assert set(first) == {"a"} and second.strip() and set(second.strip()) == {"a"}
    assert text_of(draw_curves([([0.0], [math.nan])], width=60, height=3, dots=True)) == ["no value is finite"]


def test_one_value_is_a_point_in_the_middle() -> None:
    lines = text_of(draw_curves([([5.0], [2.0])], width=40, height=5, dots=False))
    assert sum(line.count("a") for line in lines[:5]) == 1
    assert "a" in lines[2]


@pytest.mark.parametrize("dots", [True, False])
@given(
    curves=strategies.lists(
        strategies.lists(
            strategies.tuples(strategies.floats(0, 1e12), strategies.floats(allow_nan=True, allow_infinity=True)),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=4,
    ),
    width=strategies.integers(10, 120),
    height=strategies.integers(2, 20),
)
def test_any_curves_fit_into_the_lines(
    dots: bool, curves: list[list[tuple[float, float]]], width: int, height: int
) -> None:
    pairs = [([x for x, _ in sorted(points)], [y for _, y in sorted(points)]) for points in curves]
    lines = text_of(draw_curves(pairs, width=width, height=height, dots=dots))
    assert len(lines) in (1, height + 2)
    assert all(len(line) <= max(width, 34) for line in lines)
    if not dots:
        assert all(line.isascii() for line in lines)
