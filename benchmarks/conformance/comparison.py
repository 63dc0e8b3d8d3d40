"""Are the outputs of a case what the suite says? Its own rule: same shape, same type, equal within rtol and atol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.conformance.cases import Value


def find_difference(expected: Sequence[Value], actual: Sequence[Value], *, rtol: float, atol: float) -> str | None:
    """Return how the outputs differ, or None where they are equal."""
    if len(expected) != len(actual):
        return f"{len(actual)} outputs, expected {len(expected)}"
    for at, (wanted, given) in enumerate(zip(expected, actual, strict=True)):
        problem = _difference(wanted, given, rtol=rtol, atol=atol)
        if problem is not None:
            return f"output {at}: {problem}"
    return None


def _difference(wanted: Value, given: Value, *, rtol: float, atol: float) -> str | None:
    if wanted is None or given is None:
        return None if wanted is given else f"{_kind(given)}, expected {_kind(wanted)}"
    if isinstance(wanted, list) or isinstance(given, list):
        if not isinstance(wanted, list) or not isinstance(given, list):
            return f"{_kind(given)}, expected {_kind(wanted)}"
        problem = find_difference(wanted, given, rtol=rtol, atol=atol)
        return None if problem is None else f"in the sequence, {problem}"
    if not isinstance(given, np.ndarray):
        return f"{_kind(given)}, expected an array"
    if given.dtype != wanted.dtype:
        return f"dtype {given.dtype}, expected {wanted.dtype}"
    if given.shape != wanted.shape:
        return f"shape {given.shape}, expected {wanted.shape}"
    if wanted.dtype == object:
        return None if np.array_equal(wanted, given) else "strings differ"
    return _difference_of_numbers(wanted, given, rtol=rtol, atol=atol)


def _difference_of_numbers(wanted: np.ndarray, given: np.ndarray, *, rtol: float, atol: float) -> str | None:
    if wanted.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # two units in the last place, as in the suite's runner
    with np.errstate(all="ignore"):
        wanted, given = _in_numpy_type(wanted), _in_numpy_type(given)
        equal = np.isclose(given, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if equal.all():
        return None
    at = tuple(int(index) for index in np.argwhere(~equal)[0])
    return f"{int((~equal).sum())} of {equal.size} elements differ, first at {at}: {given[at]}, expected {wanted[at]}"


def _in_numpy_type(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type of numpy itself: it cannot compare those of ml_dtypes (bfloat16, 8 and 4 bits)."""
    if array.dtype.name.startswith(("bfloat", "float8", "float6", "float4")):
        return array.astype(np.float32)
    if array.dtype.kind == "V":  # int4, uint4, int2, uint2
        return array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8)
    return array


def _kind(value: Value) -> str:
    return "nothing" if value is None else "a sequence" if isinstance(value, (list, tuple)) else type(value).__name__
