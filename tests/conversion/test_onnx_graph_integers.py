"""Shape arithmetic on known numbers and on symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noa_conversion.onnx_graph.integers import evaluate
from noa_conversion.onnx_graph.model import OnnxNode
from noa_conversion.onnx_graph.symbols import SymbolArray, is_symbolic, number_of, shape_array


@dataclass(frozen=True)
class Symbol:
    """A size that is at least `low`: enough arithmetic to see what is computed."""

    text: str
    low: int | None = 1

    def __add__(self, other: Any) -> Symbol:
        return Symbol(f"({self}+{other})", None)

    def __sub__(self, other: Any) -> Symbol:
        return Symbol(f"({self}-{other})", None)

    def __mul__(self, other: Any) -> Symbol:
        return Symbol(f"({self}*{other})", None)

    __rmul__ = __radd__ = __mul__

    def __floordiv__(self, other: Any) -> Symbol:
        return Symbol(f"({self}//{other})", 0)

    def __neg__(self) -> Symbol:
        return Symbol(f"-{self}", None)

    def __str__(self) -> str:
        return self.text


def at_least(left: Any, right: Any) -> bool | None:
    if isinstance(left, Symbol) and isinstance(right, int):
        return True if left.low is not None and left.low >= right else None
    if isinstance(left, int) and isinstance(right, Symbol):
        return False if right.low is not None and right.low > left else None
    if isinstance(left, Symbol) or isinstance(right, Symbol):
        return True if left == right else None
    return bool(left >= right)


def run(kind: str, *inputs: Any, version: int = 21, outputs: int = 1, **attributes: Any) -> Any:
    arrays = [value if isinstance(value, np.ndarray) else np.asarray(value, np.int64) for value in inputs]
    node = OnnxNode(
        kind=kind,
        version=version,
        name=kind,
        inputs=tuple(f"x{i}" for i in range(len(arrays))),
        outputs=tuple(f"y{i}" for i in range(outputs)),
        attributes=attributes,
    )
    results = evaluate(node, arrays, limit=4096, at_least=at_least)
    return results if results is None or outputs > 1 else results[0]


N = Symbol("n")
SHAPE = shape_array((N, 3, 4))


def texts(array: np.ndarray) -> list[str]:
    return [str(element) for element in array.ravel()]


def test_a_shape_of_plain_sizes_is_a_plain_array() -> None:
    array = shape_array((2, 3))
    assert array.dtype == np.int64 and not is_symbolic(array)
    assert is_symbolic(SHAPE) and number_of(SHAPE) == np.int64


def test_symbols_go_through_moves_and_arithmetic() -> None:
    assert texts(run("Shape", SHAPE, start=-2)) == ["3", "4"]
    assert run("Shape", SHAPE, start=1).dtype == np.int64
    assert texts(run("Gather", SHAPE, np.asarray([-3, 1]))) == ["n", "3"]
    assert texts(run("Concat", SHAPE, np.asarray([7]), axis=0)) == ["n", "3", "4", "7"]
    assert texts(run("Slice", SHAPE, [0], [1])) == ["n"]
    assert texts(run("Mul", SHAPE, [2, 1, 1])) == ["(n*2)", "3", "4"]
    assert texts(run("Div", SHAPE, [2, 2, 2])) == ["(n//2)", "1", "2"]
    assert texts(run("ReduceProd", SHAPE, keepdims=0)) == ["((n*3)*4)"]
    assert texts(run("Size", SHAPE)) == ["((n*3)*4)"]
    assert texts(run("Unsqueeze", run("Squeeze", run("Slice", SHAPE, [0], [1]), [0]), [0])) == ["n"]


def test_what_is_certain_about_symbols_is_decided_and_no_more() -> None:
    assert list(run("Equal", SHAPE, [-1, 3, 5])) == [False, True, False]
    assert texts(run("Where", np.asarray([False, True, False]), [9, 9, 9], SHAPE)) == ["n", "9", "4"]
    assert texts(run("Max", SHAPE, [1, 1, 1])) == ["n", "3", "4"]
    assert list(run("Greater", SHAPE, [0, 3, 3])) == [True, False, True]
    assert run("Equal", SHAPE, [5, 3, 4]) is None
    assert run("Max", SHAPE, [2, 1, 1]) is None
    assert run("Div", run("Sub", SHAPE, [5, 1, 1]), [2, 2, 2]) is None, "the sign of n - 5 is not known"
    assert run("Cast", SHAPE, to=1) is None


def test_symbols_keep_their_integer_type() -> None:
    narrow = run("Cast", SHAPE, to=6)
    assert isinstance(narrow, SymbolArray) and number_of(narrow) == np.int32
    assert number_of(run("Gather", narrow, np.asarray([0]))) == np.int32
    assert number_of(run("Cast", narrow, to=7)) == np.int64
    with pytest.raises(TypeError, match="different types"):
        run("Add", narrow, [1, 1, 1])


def test_products_of_symbols_do_not_grow_without_bound() -> None:
    array = SHAPE
    with pytest.raises(OverflowError, match="without bound"):
        for _ in range(80):
            array = run("Mul", array, array)


@settings(max_examples=200, deadline=None)
@given(st.integers(-100, 100), st.integers(-20, 20).filter(bool))
def test_whole_numbers_are_divided_toward_zero(left: int, right: int) -> None:
    assert int(run("Div", left, right)) == int(left / right)
    assert int(run("Mod", left, right)) == left % right
    assert int(run("Mod", left, right, fmod=1)) == int(np.fmod(left, right))


def test_a_division_by_zero_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run("Div", [1, 2], [1, 0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.float16, np.float32, np.float64])
def test_results_have_the_type_of_their_operands(dtype: Any) -> None:
    left, right = np.asarray([7, 3], dtype), np.asarray([2, 2], dtype)
    for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Pow"):
        assert run(kind, left, right, fmod=1).dtype == dtype, kind
    for kind in ("ReduceSum", "ReduceProd", "ReduceMax", "Neg", "Abs"):
        assert run(kind, left).dtype == dtype, kind
    assert run("Equal", left, right).dtype == np.bool_


def test_whole_numbers_wrap_silently() -> None:
    assert int(run("Add", np.asarray(127, np.int8), np.asarray(1, np.int8))) == -128
    assert int(run("Mul", np.asarray(2**62), np.asarray(4))) == 0


def test_older_opsets_keep_their_meaning() -> None:
    data = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(run("Slice", data, version=1, starts=[0], ends=[2], axes=[1]), data[:, :2])
    assert run("Squeeze", data[None], version=11, axes=[0]).shape == (3, 4)
    assert run("Unsqueeze", data, version=11, axes=[0]).shape == (1, 3, 4)
    assert run("ReduceSum", data, version=11, axes=[0], keepdims=0).shape == (4,)
    legacy = run("Add", data, np.asarray([1, 2, 3]), version=6, broadcast=1, axis=0)
    np.testing.assert_array_equal(legacy, data + np.asarray([[1], [2], [3]]))


def test_reductions_over_no_axes() -> None:
    data = np.arange(4).reshape(2, 2)
    np.testing.assert_array_equal(run("ReduceSum", data, np.zeros(0, np.int64), noop_with_empty_axes=1), data)
    assert int(run("ReduceSum", data, keepdims=0)) == 6


def test_large_results_are_left_to_the_target() -> None:
    assert run("ConstantOfShape", [10**12]) is None
    assert run("Range", 0, 10**12, 1) is None
    assert run("Expand", [1], [100, 100]) is None
    assert run("Tile", [1], [10**9]) is None
    assert run("Add", np.zeros(5000, np.int64), np.zeros(1, np.int64)) is None
    assert run("Gather", np.zeros(5000, np.int64), np.asarray(3)) is not None


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError, match="outside"):
        run("Gather", [1, 2], [5])
    with pytest.raises(ValueError, match="axis 3"):
        run("Concat", [1], [2], axis=3)


def test_slices_backwards_and_beyond_the_ends() -> None:
    data = np.arange(5)
    np.testing.assert_array_equal(run("Slice", data, [-1], [-(2**31)], [0], [-1]), data[::-1])
    np.testing.assert_array_equal(run("Slice", data, [1], [2**63 - 1]), data[1:])
    np.testing.assert_array_equal(run("Slice", data, [-100], [3]), data[:3])


def test_a_split_gives_all_its_parts() -> None:
    first, second, third = run("Split", np.arange(5), outputs=3)
    assert [len(first), len(second), len(third)] == [2, 2, 1]
    with pytest.raises(ValueError, match="splits 5"):
        run("Split", np.arange(5), np.asarray([2, 2]), outputs=2)
