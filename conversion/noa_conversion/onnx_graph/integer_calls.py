"""What the functions of `integers.py` share: attributes, bounds on sizes, and arithmetic on symbols that is certain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noa_conversion.onnx_graph.model import OnnxNode
from noa_conversion.onnx_graph.symbols import SymbolArray, as_known, degree_of, number_of, with_number

_MAX_DEGREE = 64


class Left(Exception):  # noqa: N818  # a signal, not an error
    """The target has to compute this node."""


class Undecided(Exception):  # noqa: N818  # a signal, not an error
    """A question about symbols has no answer that holds for all their values."""


@dataclass(frozen=True, slots=True)
class Call:
    """One evaluation: the node, the limit on elements, and what is certain about symbols."""

    node: OnnxNode
    limit: int
    at_least: Callable[[Any, Any], bool | None]

    @property
    def version(self) -> int:
        """The opset of the node."""
        return self.node.version

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute or its default."""
        return self.node.attributes.get(name, default)

    def room(self, shape: Sequence[Any]) -> tuple[int, ...]:
        """Return a shape of the result, or leave the node to the target if it is symbolic or too large."""
        if self.symbolic(shape) or math.prod(shape) > self.limit:
            raise Left
        if any(size < 0 for size in shape):
            raise ValueError(f"its result would have the shape {tuple(shape)}")
        return tuple(int(size) for size in shape)

    def symbolic(self, numbers: Sequence[Any]) -> bool:
        """Tell whether some number is a symbol."""
        return not all(isinstance(number, (int, np.integer)) for number in numbers)

    def concrete(self, *arrays: np.ndarray) -> None:
        """Leave the node to the target if some array is symbolic."""
        if any(array.dtype == object for array in arrays):
            raise Left

    def ints(self, array: np.ndarray | None) -> Any:
        """Return the elements of an array as a list, or None for None."""
        if array is None:
            return None
        if array.dtype != object and array.dtype.kind not in "iub":
            raise TypeError(f"whole numbers are needed and it has {array.dtype}")
        return [int(x) if isinstance(x, (int, np.integer, np.bool_)) else x for x in array.ravel()]

    def padded(self, given: Sequence[np.ndarray], count: int) -> list[Any]:
        """Return optional inputs with None for those left out at the end."""
        return [*given, *(None for _ in range(count - len(given)))]

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise ValueError(f"the axis {axis} is outside {rank} axes")
        return axis % rank

    def axes_of(self, given: Sequence[np.ndarray], *, since: int) -> list[int] | None:
        """Return the axes, which are an attribute before the opset `since` and an input from then on."""
        if self.version < since:
            return self.get("axes", None)
        axes = self.ints(given[0]) if given else None
        if axes is not None and self.symbolic(axes):
            raise Left
        return axes

    def indices(self, indices: np.ndarray, size: int) -> np.ndarray:
        """Return indices counted from the front; one out of bounds is an error."""
        self.concrete(indices)
        if indices.size and not (-size <= indices.min() and indices.max() < size):
            raise IndexError(f"an index is outside an axis of {size}")
        return np.where(indices < 0, indices + size, indices).astype(np.int64)

    def alike(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return arrays of one type: all symbolic if one is. Different types are an error, as in ONNX."""
        numbers = {number_of(array) for array in arrays}
        if len(numbers) > 1:
            raise TypeError(f"its inputs have different types: {', '.join(sorted(str(n) for n in numbers))}")
        if not any(array.dtype == object for array in arrays):
            return list(arrays)
        return [array if array.dtype == object else _as_objects(array) for array in arrays]

    def like(self, result: Any, operand: np.ndarray) -> np.ndarray:
        """Return a result with the type of its operand."""
        array = result if isinstance(result, np.ndarray) else _boxed(result, operand.dtype)
        if operand.dtype != object:
            return array.astype(operand.dtype, copy=False)
        return as_known(array if array.dtype == object else _as_objects(array), number_of(operand))

    def bounded(self, result: np.ndarray, degree: int) -> np.ndarray:
        """Note how many symbols a product may have; what grows without bound is an error, before it is computed on."""
        if isinstance(result, SymbolArray):
            if degree > _MAX_DEGREE or any(isinstance(x, int) and abs(x) >> 63 for x in result.ravel()):
                raise OverflowError("the product of sizes grows without bound")
            result.degree = max(degree, 1)
        return result

    def binary(self, function: Callable[..., Any], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Apply an elementwise function of two arguments with ONNX's broadcasting."""
        left, right = self.alike(left, right)
        right = self._legacy_broadcast(left, right)
        self.room(np.broadcast_shapes(left.shape, right.shape))
        degrees = degree_of(left), degree_of(right)
        result = self.like(function(left, right), left)
        return self.bounded(result, sum(degrees) if function is np.multiply else max(degrees))

    def compare(
        self,
        symbolic: Callable[[Any, Any], bool] | None,
        plain: Callable[[np.ndarray, np.ndarray], Any],
        left: np.ndarray,
        right: np.ndarray,
    ) -> np.ndarray:
        """Apply an elementwise question of two arguments."""
        left, right = self.alike(left, right)
        right = self._legacy_broadcast(left, right)
        self.room(np.broadcast_shapes(left.shape, right.shape))
        if left.dtype != object:
            return np.asarray(plain(left, right))
        if symbolic is None:
            raise Left
        return np.asarray(np.frompyfunc(symbolic, 2, 1)(left, right), np.bool_)

    def reduce(
        self,
        function: np.ufunc,
        data: np.ndarray,
        given: Sequence[np.ndarray],
        *,
        since: int,
        symbolic: Callable[[Any, Any], Any] | None = None,
    ) -> np.ndarray:
        """Reduce along axes as the `Reduce*` operators say."""
        axes = self.axes_of(given, since=since)
        if not axes:
            if self.get("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        if data.size == 0:
            raise Left
        along = tuple(sorted({self.axis(axis, data.ndim) for axis in axes}))
        if data.dtype == object and symbolic is not None:
            function = np.frompyfunc(symbolic, 2, 1)
        result = data
        for axis in reversed(along):
            options: dict[str, Any] = {} if data.dtype == object else {"dtype": data.dtype}
            reduced = function.reduce(result, axis=axis, keepdims=bool(self.get("keepdims", 1)), **options)
            result = reduced if isinstance(reduced, np.ndarray) else _boxed(reduced, data.dtype)
        return self.bounded(self.like(result, data), degree_of(data) * (data.size if function is np.multiply else 1))

    def is_at_least(self, left: Any, right: Any) -> bool:
        """Tell whether `left >= right`, for certain."""
        answer = self.at_least(left, right)
        if answer is None:
            raise Undecided
        return answer

    def is_equal(self, left: Any, right: Any) -> bool:
        """Tell whether `left == right`, for certain."""
        up, down = self.at_least(left, right), self.at_least(right, left)
        if up is False or down is False:
            return False
        if up is None or down is None:
            raise Undecided
        return True

    def larger(self, left: Any, right: Any) -> Any:
        """Return the larger of two numbers, if it is certain which that is."""
        if self.at_least(left, right) is True:
            return left
        return right if self.is_at_least(right, left) else left

    def smaller(self, left: Any, right: Any) -> Any:
        """Return the smaller of two numbers, if it is certain which that is."""
        if self.at_least(left, right) is True:
            return right
        return left if self.is_at_least(right, left) else right

    def magnitude(self, number: Any) -> Any:
        """Return the absolute value."""
        return number if self.is_at_least(number, 0) else -number

    def quotient(self, left: Any, right: Any) -> Any:
        """Divide whole numbers, rounding toward zero."""
        if not self.symbolic([left, right]):
            if right == 0:
                raise ZeroDivisionError("a whole number is divided by 0")
            size = abs(int(left)) // abs(int(right))
            return size if (left < 0) == (right < 0) else -size
        if not (self.is_at_least(left, 0) and self.is_at_least(right, 1)):
            raise Undecided
        return left // right

    def remainder(self, left: Any, right: Any) -> Any:
        """Return the remainder of whole numbers of which none is negative."""
        if not (self.is_at_least(left, 0) and self.is_at_least(right, 1)):
            raise Undecided
        return left % right

    def _legacy_broadcast(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Place the axes of `right` as opsets before 7 do it: by an attribute."""
        if self.version >= 7 or left.shape == right.shape:
            return right
        if not self.get("broadcast", 0):
            raise ValueError(f"its inputs have the shapes {left.shape} and {right.shape} and it does not broadcast")
        axis = self.get("axis", left.ndim - right.ndim)
        return right.reshape(right.shape + (1,) * (left.ndim - axis - right.ndim))


def _as_objects(array: np.ndarray) -> np.ndarray:
    objects = np.empty(array.shape, object)
    objects[...] = np.asarray(array, object)
    return with_number(objects, array.dtype)


def _boxed(result: Any, dtype: np.dtype) -> np.ndarray:
    """Return a scalar that numpy made of an array without axes as such an array; a symbol stays as it is."""
    array = np.empty((), dtype)
    array[()] = result
    return array
