"""Shape arithmetic: operators computed on numpy arrays that are known while a graph is walked.

Concrete arrays follow ONNX's rules of types exactly. Symbolic ones (`symbols.py`) hold ints and the target's symbols;
what is not certain for every size of a free axis is left to the target. Nothing large is made: a result above the limit
is left to the target too, before memory is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from noa_conversion.onnx_graph.dtypes import dtype_of, is_float
from noa_conversion.onnx_graph.integer_calls import Call, Left, Undecided
from noa_conversion.onnx_graph.model import OnnxNode
from noa_conversion.onnx_graph.symbols import as_known, number_of

AtLeast: TypeAlias = Callable[[Any, Any], "bool | None"]
_Function: TypeAlias = Callable[..., "np.ndarray | tuple[np.ndarray, ...]"]

_TABLE: dict[str, _Function] = {}
# Their results are views or single elements, whatever their inputs' size.
_GROWING = {"Add", "Sub", "Mul", "Cast", "CumSum", "Neg", "ReduceProd", "ReduceSum", "Sum"}
_LARGEST_SIZE = 2**31
_ANY_SIZE = {"Identity", "Constant", "Gather", "Slice", "Shape", "Size"}


def knows(kind: str) -> bool:
    """Tell whether an operator of the standard domain can be computed on numbers."""
    return kind in _TABLE


def known_kinds() -> frozenset[str]:
    """Return all operators that can be computed on numbers."""
    return frozenset(_TABLE)


def evaluate(
    node: OnnxNode, inputs: Sequence[np.ndarray], *, limit: int, at_least: AtLeast | None = None
) -> tuple[np.ndarray, ...] | None:
    """Return the outputs of a node for known inputs, or None if they are for the target to compute.

    For `Shape` and `Size` the input is the array of the sizes. `at_least(a, b)` tells whether `a >= b` for all values
    of the symbols: True, False, or None if that is not certain.

    Raises:
        ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError: the node cannot be computed at all.
    """
    function = _TABLE.get(node.kind) if node.domain == "" else None
    if function is None:
        return None
    if node.kind not in _ANY_SIZE and any(array.size > limit for array in inputs):
        return None
    if any(array.dtype != object and array.dtype.kind not in "iufbTV" for array in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            results = function(Call(node, limit, at_least or _uncertain), *inputs)
    except (Left, Undecided):
        return None
    several = tuple(map(_array, results if isinstance(results, tuple) else (results,)))
    if node.kind not in ("Constant", "Identity") and any(array.size > limit for array in several):
        return None
    if node.kind in _GROWING and any(_leaves_its_type(array, at_least or _uncertain) for array in several):
        return None
    return several


def _leaves_its_type(array: np.ndarray, at_least: AtLeast) -> bool:
    """Tell whether an element is not what its type holds: symbols do not wrap around, so the target computes it.

    A symbol that is certain to be as large as no axis is has a number of the file in it that only a wrapped result
    makes sense of.
    """
    if array.dtype != object:
        return False
    limits = np.iinfo(number_of(array))
    for element in array.ravel():
        if isinstance(element, (int, np.integer, np.bool_)):
            if not limits.min <= element <= limits.max:
                return True
        elif at_least(element, _LARGEST_SIZE) or at_least(-_LARGEST_SIZE, element):
            return True
    return False


def _array(value: Any) -> np.ndarray:
    """Return a result as an array; numpy gives the bare element where there is no axis left."""
    if isinstance(value, np.ndarray):
        return as_known(value, number_of(value))
    if isinstance(value, np.generic):
        return np.asarray(value)
    element = np.empty((), object)
    element[()] = value
    return as_known(element)


def _uncertain(left: Any, right: Any) -> bool | None:
    if isinstance(left, (int, np.integer)) and isinstance(right, (int, np.integer)):
        return bool(left >= right)
    return None


def _computes(*kinds: str) -> Callable[[_Function], _Function]:
    def decorate(function: _Function) -> _Function:
        _TABLE.update(dict.fromkeys(kinds, function))
        return function

    return decorate


# --- constants, shapes ------------------------------------------------------------------------------------------------


@_computes("Constant")
def _constant(call: Call) -> np.ndarray:
    for name, value in call.node.attributes.items():
        if name == "value" and isinstance(value, np.ndarray):
            return value
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
        if name in ("value_string", "value_strings"):
            return np.asarray(value, np.dtypes.StringDType())
        if name == "sparse_value" and isinstance(value, np.ndarray):
            return value
    raise ValueError("it holds no value")


@_computes("Identity")
def _identity(call: Call, data: np.ndarray) -> np.ndarray:
    return data


@_computes("Shape")
def _shape(call: Call, sizes: np.ndarray) -> np.ndarray:
    start, end = call.get("start", 0), call.get("end", len(sizes))
    start, end = (max(0, min(len(sizes), at + len(sizes) if at < 0 else at)) for at in (start, end))
    return sizes[start : max(start, end)]


@_computes("Size")
def _size(call: Call, sizes: np.ndarray) -> np.ndarray:
    return _product(sizes)


@_computes("ConstantOfShape")
def _constant_of_shape(call: Call, shape: np.ndarray) -> np.ndarray:
    value = call.get("value", np.zeros(1, np.float32))
    return np.full(call.room(call.ints(shape)), value.reshape(-1)[0], value.dtype)


@_computes("Range")
def _range(call: Call, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    if any(array.dtype == object for array in (start, limit, delta)):
        raise Left
    first, last, step = (array.reshape(-1)[0] for array in (start, limit, delta))
    if step == 0:
        raise ValueError("its step is 0")
    if start.dtype.kind in "iu":
        count = max(-((int(first) - int(last)) // int(step)), 0)
    else:  # onnxruntime's own formula, computed in double
        count = max(math.ceil((float(last) - float(first)) / float(step)), 0)
    call.room([count])
    return (first + np.arange(count).astype(start.dtype) * step).astype(start.dtype)


# --- moving elements --------------------------------------------------------------------------------------------------


@_computes("Gather")
def _gather(call: Call, data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = call.axis(call.get("axis", 0), data.ndim)
    places = call.indices(indices, data.shape[axis])
    call.room([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])
    return call.like(np.take(data, places, axis=axis), data)


@_computes("GatherElements")
def _gather_elements(call: Call, data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = call.axis(call.get("axis", 0), data.ndim)
    return np.take_along_axis(data, call.indices(indices, data.shape[axis]), axis)


@_computes("ScatterElements", "Scatter")
def _scatter_elements(call: Call, data: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    if call.get("reduction", "none") != "none":
        raise Left
    axis = call.axis(call.get("axis", 0), data.ndim)
    data, updates = call.alike(data, updates)
    result = data.copy()
    np.put_along_axis(result, call.indices(indices, data.shape[axis]), updates, axis)
    return call.like(result, data)


@_computes("ScatterND")
def _scatter_nd(call: Call, data: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    if call.get("reduction", "none") != "none" or indices.dtype == object or indices.shape[-1] > data.ndim:
        raise Left
    data, updates = call.alike(data, updates)
    result = data.copy()
    depth = indices.shape[-1]
    rows = indices.reshape(-1, depth)
    values = updates.reshape(len(rows), *data.shape[depth:])
    for row, value in zip(rows, values, strict=True):
        result[tuple(int(at) for at in row)] = value
    return call.like(result, data)


@_computes("Slice")
def _slice(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    if call.version < 10:
        starts, ends = call.node.attributes["starts"], call.node.attributes["ends"]
        axes, steps = call.get("axes", None), None
    else:
        starts, ends, axes, steps = (call.ints(array) for array in call.padded(given, 4))
    assert isinstance(starts, list) and isinstance(ends, list)
    if call.symbolic([*starts, *ends]):
        raise Left
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if len({call.axis(axis, data.ndim) for axis in axes}) != len(axes):
        raise ValueError(f"its axes {axes} name one twice")
    result = data
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        result = result[(slice(None),) * call.axis(axis, data.ndim) + (_range_of(start, end, step),)]
    return result


def _range_of(start: Any, end: Any, step: int) -> slice:
    """Return ONNX's range as Python's: they agree but for "up to the first, backwards", which is far below zero."""
    if step == 0:
        raise ValueError("its step is 0")
    return slice(int(start), int(end), int(step))


@_computes("Concat")
def _concat(call: Call, *inputs: np.ndarray) -> np.ndarray:
    axis = call.axis(call.get("axis", 1), inputs[0].ndim)
    call.room([sum(array.size for array in inputs)])
    several = call.alike(*inputs)
    return call.like(np.concatenate(several, axis), several[0])


@_computes("Split")
def _split(call: Call, data: np.ndarray, *given: np.ndarray) -> tuple[np.ndarray, ...]:
    axis = call.axis(call.get("axis", 0), data.ndim)
    count = len(call.node.outputs)
    sizes = call.ints(given[0]) if given and call.version >= 13 else call.get("split", None)
    if sizes is None:
        each = -(-data.shape[axis] // count)
        sizes = [max(0, min(each, data.shape[axis] - each * i)) for i in range(count)]
    if len(sizes) != count or sum(sizes) != data.shape[axis] or call.symbolic(sizes):
        raise ValueError(f"it splits {data.shape[axis]} into {sizes} for {count} outputs")
    return tuple(np.split(data, np.cumsum(sizes)[:-1], axis))


@_computes("Squeeze")
def _squeeze(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    axes = call.axes_of(given, since=13)
    if axes is None:
        return np.squeeze(data)
    return np.squeeze(data, tuple(call.axis(axis, data.ndim) for axis in axes))


@_computes("Unsqueeze")
def _unsqueeze(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    axes = call.axes_of(given, since=13)
    if axes is None:
        raise ValueError("it names no axes")
    return np.expand_dims(data, tuple(axes))


@_computes("Reshape")
def _reshape(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    shape: list[Any] = call.ints(given[0]) if call.version >= 5 else call.get("shape", None)
    if call.symbolic(shape):
        raise Left
    if not call.get("allowzero", 0):
        shape = [data.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return data.reshape(shape)


@_computes("Flatten")
def _flatten(call: Call, data: np.ndarray) -> np.ndarray:
    axis = call.get("axis", 1)
    axis = axis + data.ndim if axis < 0 else axis
    return data.reshape(math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))


@_computes("Transpose")
def _transpose(call: Call, data: np.ndarray) -> np.ndarray:
    return np.transpose(data, call.get("perm", list(range(data.ndim))[::-1]))


@_computes("Expand")
def _expand(call: Call, data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    sizes = call.ints(shape)
    if call.symbolic(sizes):
        raise Left
    return np.broadcast_to(data, call.room(np.broadcast_shapes(data.shape, tuple(sizes))))


@_computes("Tile")
def _tile(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    if call.version < 6 or len(given) != 1:
        raise Left
    repeats = call.ints(given[0])
    if call.symbolic(repeats) or len(repeats) != data.ndim or min(repeats, default=0) < 0:
        raise Left
    call.room([size * times for size, times in zip(data.shape, repeats, strict=True)])
    return np.tile(data, repeats)


@_computes("NonZero")
def _non_zero(call: Call, data: np.ndarray) -> np.ndarray:
    call.concrete(data)
    return np.stack(np.nonzero(np.atleast_1d(data))).astype(np.int64)


@_computes("Compress")
def _compress(call: Call, data: np.ndarray, condition: np.ndarray) -> np.ndarray:
    call.concrete(condition)
    axis = call.get("axis", None)
    return np.compress(condition, data, axis)


@_computes("Trilu")
def _trilu(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    call.concrete(data, *given)
    offset = int(given[0].reshape(-1)[0]) if given else 0
    return np.triu(data, offset) if call.get("upper", 1) else np.tril(data, offset)


# --- arithmetic -------------------------------------------------------------------------------------------------------


@_computes("Add")
def _add(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.binary(np.add, left, right)


@_computes("Sub")
def _sub(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.binary(np.subtract, left, right)


@_computes("Mul")
def _mul(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.binary(np.multiply, left, right)


@_computes("Div")
def _div(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype == object or right.dtype == object:
        return call.binary(np.frompyfunc(call.quotient, 2, 1), left, right)
    if is_float(left.dtype):
        return call.binary(np.divide, left, right)
    if not right.all():
        raise ZeroDivisionError("a whole number is divided by 0")
    return call.binary(_truncated_quotient, left, right)


def _truncated_quotient(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    floor = left // right
    inexact = (floor * right != left) & ((left < 0) != (right < 0))
    return floor + inexact.astype(floor.dtype)


@_computes("Mod")
def _mod(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype == object or right.dtype == object:
        return call.binary(np.frompyfunc(call.remainder, 2, 1), left, right)
    if left.dtype.kind in "iu" and not right.all():
        raise ZeroDivisionError("a whole number is divided by 0")
    return call.binary(np.fmod if call.get("fmod", 0) else np.mod, left, right)


@_computes("Pow")
def _pow(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    call.concrete(left, right)
    call.room(np.broadcast_shapes(left.shape, right.shape))
    if left.dtype.kind in "iu" and right.dtype.kind in "iu":
        return np.asarray(np.power(left, right.astype(left.dtype)))
    return np.asarray(np.power(left, right)).astype(left.dtype)


@_computes("Neg")
def _neg(call: Call, data: np.ndarray) -> np.ndarray:
    return call.like(-data, data)


@_computes("Abs")
def _abs(call: Call, data: np.ndarray) -> np.ndarray:
    if data.dtype == object:
        return call.like(np.frompyfunc(call.magnitude, 1, 1)(data), data)
    return np.asarray(np.abs(data))


@_computes("Min")
def _min(call: Call, *inputs: np.ndarray) -> np.ndarray:
    return _extreme(call, inputs, call.smaller, np.minimum)


@_computes("Max")
def _max(call: Call, *inputs: np.ndarray) -> np.ndarray:
    return _extreme(call, inputs, call.larger, np.maximum)


@_computes("Relu")
def _relu(call: Call, data: np.ndarray) -> np.ndarray:
    return _extreme(call, (data, np.zeros((), number_of(data))), call.larger, np.maximum)


def _extreme(call: Call, inputs: Sequence[np.ndarray], pick: Callable[[Any, Any], Any], plain: np.ufunc) -> np.ndarray:
    result = inputs[0]
    for other in inputs[1:]:
        is_symbolic = result.dtype == object or other.dtype == object
        result = call.binary(np.frompyfunc(pick, 2, 1) if is_symbolic else plain, result, other)
    return result


@_computes("Sum")
def _sum(call: Call, *inputs: np.ndarray) -> np.ndarray:
    result = inputs[0]
    for other in inputs[1:]:
        result = call.binary(np.add, result, other)
    return result


@_computes("Clip")
def _clip(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    if call.version < 11 or len(given) != len(call.node.inputs) - 1:
        raise Left
    call.concrete(data, *given)
    low, high = call.padded(given, 2)
    result = data if low is None else np.maximum(data, low)
    return np.asarray(result if high is None else np.minimum(result, high)).astype(data.dtype)


@_computes("Floor", "Ceil", "Sqrt", "Exp", "Log", "Reciprocal", "Round", "Sign")
def _unary(call: Call, data: np.ndarray) -> np.ndarray:
    call.concrete(data)
    function: Callable[[np.ndarray], Any] = {
        "Floor": np.floor,
        "Ceil": np.ceil,
        "Sqrt": np.sqrt,
        "Exp": np.exp,
        "Log": np.log,
        "Reciprocal": np.reciprocal,
        "Round": np.rint,
        "Sign": np.sign,
    }[call.node.kind]
    if not is_float(data.dtype) and call.node.kind != "Sign":
        raise Left
    return np.asarray(function(data)).astype(data.dtype)


@_computes("Cast")
def _cast(call: Call, data: np.ndarray) -> np.ndarray:
    dtype = dtype_of(call.node.attributes["to"])  # pyright: ignore[reportArgumentType]  # the table answers None to others
    if dtype is None or dtype.kind not in "iufb" or data.dtype.kind == "T" or _is_float8(data.dtype, dtype):
        raise Left
    if data.dtype == object:
        if dtype.kind not in "iu" or dtype.itemsize < 4:
            raise Left
        return as_known(data.copy(), dtype)
    return data.astype(dtype)


def _is_float8(*dtypes: np.dtype) -> bool:
    """Tell whether a type has fewer than 16 bits and so its own rule for what is too large."""
    return any(dtype.name.startswith("float") and dtype.itemsize == 1 for dtype in dtypes)


@_computes("CastLike")
def _cast_like(call: Call, data: np.ndarray, like: np.ndarray) -> np.ndarray:
    call.concrete(data)
    dtype = number_of(like)  # of sizes that are not known yet only the type matters
    if dtype.kind not in "iufb" or data.dtype.kind not in "iufb" or _is_float8(data.dtype, dtype):
        raise Left
    return data.astype(dtype)


# --- truth ------------------------------------------------------------------------------------------------------------


@_computes("Equal")
def _equal(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(call.is_equal, np.equal, left, right)


@_computes("GreaterOrEqual")
def _greater_or_equal(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(call.is_at_least, np.greater_equal, left, right)


@_computes("LessOrEqual")
def _less_or_equal(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(lambda a, b: call.is_at_least(b, a), np.less_equal, left, right)


@_computes("Greater")
def _greater(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(lambda a, b: not call.is_at_least(b, a), np.greater, left, right)


@_computes("Less")
def _less(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(lambda a, b: not call.is_at_least(a, b), np.less, left, right)


@_computes("Not")
def _not(call: Call, data: np.ndarray) -> np.ndarray:
    return np.asarray(np.logical_not(data))


@_computes("And")
def _and(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(None, np.logical_and, left, right)


@_computes("Or")
def _or(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(None, np.logical_or, left, right)


@_computes("Xor")
def _xor(call: Call, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return call.compare(None, np.logical_xor, left, right)


@_computes("Where")
def _where(call: Call, condition: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    call.concrete(condition)
    call.room(np.broadcast_shapes(condition.shape, left.shape, right.shape))
    left, right = call.alike(left, right)
    return call.like(np.where(condition, left, right), left)


# --- along axes -------------------------------------------------------------------------------------------------------


def _product(data: np.ndarray) -> np.ndarray:
    elements = [int(element) if isinstance(element, np.integer) else element for element in data.ravel()]
    result: Any = elements[0] if elements else 1
    for element in elements[1:]:
        result = result * element
    array = np.empty((), object)
    array[()] = result
    return as_known(array, number_of(data))


@_computes("ReduceProd")
def _reduce_prod(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    return call.reduce(np.multiply, data, given, since=18)


@_computes("ReduceSum")
def _reduce_sum(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    return call.reduce(np.add, data, given, since=13)


@_computes("ReduceMax")
def _reduce_max(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    return call.reduce(np.maximum, data, given, since=18, symbolic=call.larger)


@_computes("ReduceMin")
def _reduce_min(call: Call, data: np.ndarray, *given: np.ndarray) -> np.ndarray:
    return call.reduce(np.minimum, data, given, since=18, symbolic=call.smaller)


@_computes("CumSum")
def _cum_sum(call: Call, data: np.ndarray, axis: np.ndarray) -> np.ndarray:
    call.concrete(data, axis)
    along = call.axis(int(axis.reshape(-1)[0]), data.ndim)
    if call.get("reverse", 0) or call.get("exclusive", 0):
        raise Left
    return np.cumsum(data, along, dtype=data.dtype)
