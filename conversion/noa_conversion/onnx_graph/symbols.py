"""Arrays of whole numbers of which some are not known yet: the sizes of free axes and what is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np

_INT64 = np.dtype(np.int64)


class SymbolArray(np.ndarray):
    """An object array of ints and symbols that remembers which integer type ONNX gives it, in `number`.

    numpy keeps the type through views and copies; without a word it is int64, the type of shapes. `degree` bounds how
    many symbols a product in it has.
    """

    number: np.dtype
    degree: int

    def __array_finalize__(self, obj: Any) -> None:
        self.number = getattr(obj, "number", _INT64)
        self.degree = getattr(obj, "degree", 1)


def as_known(array: np.ndarray, number: np.dtype = _INT64) -> np.ndarray:
    """Return a plain array of `number` if every element is a plain int, else a `SymbolArray` of it."""
    if array.dtype != object:
        return array
    if all(isinstance(element, (int, np.integer, np.bool_)) for element in array.ravel()):
        return np.asarray([int(element) for element in array.ravel()], number).reshape(array.shape)
    return with_number(array, number)


def with_number(array: np.ndarray, number: np.dtype) -> SymbolArray:
    """Mark an object array with its type, whether or not all its elements are plain."""
    symbols = array.view(SymbolArray)
    symbols.number = number
    return symbols


def shape_array(sizes: tuple[Any, ...]) -> np.ndarray:
    """Return a shape as a one-dimensional array, concrete if all its sizes are."""
    array = np.empty(len(sizes), object)
    array[:] = sizes
    return as_known(array)


def is_symbolic(array: np.ndarray) -> bool:
    """Tell whether some element is a symbol."""
    return array.dtype == object


def degree_of(array: np.ndarray) -> int:
    """Return how many symbols a product in an array may have."""
    return getattr(array, "degree", 1) if array.dtype == object else 0


def number_of(array: np.ndarray) -> np.dtype:
    """Return the type that ONNX gives the elements."""
    return getattr(array, "number", _INT64) if array.dtype == object else array.dtype
