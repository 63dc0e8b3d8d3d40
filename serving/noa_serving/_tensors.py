"""Tensors from the outside: JSON values and raw bytes become arrays that fit a `TensorSpec`, or a clear refusal.

Nothing is guessed: a whole number fits a float field, but a fraction never fits an integer field, and text, `null` and
`true` are not numbers. Sizes are computed with Python's integers before anything is allocated.

Texts (dtype `string`, datatype BYTES) are Python's strings in arrays of `object`; what is not UTF-8 is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np

from noa.errors import SignatureError
from noa.signatures import numpy_dtype
from noa.text_tensors import LENGTH_BYTES, decode_text, pack_texts, text_array, unpack_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from noa.signatures import DType, TensorSpec

DATATYPES: dict[DType, str] = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}
"""Names of the dtypes in the Open Inference Protocol."""


DATATYPE_OF: dict[np.dtype, str] = {}
"""The same by numpy's dtype, whose `name` is slow to ask for, for what is served: bfloat16 is another package's."""

MAX_RANK = 32
MAX_TEXTS = 1 << 20
"""Most texts in one tensor of a request: each is an object of at least 50 bytes, however short."""
_WHOLE: frozenset[type] = frozenset({int})
_NUMBERS: frozenset[type] = frozenset({int, float})
_ALLOWED: dict[str, frozenset[type]] = {
    "bool": frozenset({bool}),
    "float16": _NUMBERS,
    "float32": _NUMBERS,
    "float64": _NUMBERS,
    "bfloat16": _NUMBERS,
    "string": frozenset({str}),
}
"""Which JSON values a dtype takes; all others take whole numbers."""
_KIND_WORDS: dict[type, str] = {
    str: "text",
    bool: "true/false",
    type(None): "null",
    dict: "an object",
    float: "a number with a decimal point, an exponent or too many digits",
    int: "a number",
    list: "a list",
}


def know_datatypes(specs: Iterable[TensorSpec]) -> None:
    """Let `DATATYPE_OF` have the dtypes of a model that will be served."""
    for spec in specs:
        DATATYPE_OF[numpy_dtype(spec.dtype)] = DATATYPES[spec.dtype]


def array_from_json(spec: TensorSpec, value: object) -> np.ndarray:
    """Return the array that a nested JSON list (or a bare number, for rank 0) writes down, in the dtype of `spec`.

    Raises:
        SignatureError: it is ragged, too deep, or holds something that the dtype cannot hold exactly enough.
    """
    kinds = _leaf_kinds(spec, cast("list[object]", value), MAX_RANK) if isinstance(value, list) else {type(value)}
    _check_kinds(spec, kinds)
    if spec.dtype == "string":
        return _texts_from_json(spec, value)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.array(value, dtype=numpy_dtype(spec.dtype))
            is_finite = array.dtype.kind not in "fV" or _is_finite(array)
    except OverflowError as exc:
        raise _does_not_fit(spec) from exc
    except ValueError as exc:
        raise _misfit(spec, "is ragged", "lists of equal length", "lists of different lengths") from exc
    if not is_finite:
        raise _does_not_fit(spec)
    return array


def _is_finite(array: np.ndarray) -> bool:
    """Tell whether all numbers are finite; that the sum of their squares is so is quicker to see, and enough."""
    if array.dtype.kind == "V":  # bfloat16
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def reshape_flat(spec: TensorSpec, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `array` in `shape`: it is that shape already, or flat with as many elements.

    Raises:
        SignatureError: the number of elements or the nesting does not agree with `shape`.
    """
    wanted = tuple(shape)
    if array.shape == wanted:
        return array
    if array.ndim == 1 and array.size == math.prod(wanted):
        return array.reshape(wanted)
    received = f"{array.size} elements in a flat list" if array.ndim == 1 else f"nested lists of shape {array.shape}"
    raise _misfit(spec, "has data that is not its `shape`", f"{math.prod(wanted)} elements for {wanted}", received)


def array_from_bytes(spec: TensorSpec, data: memoryview, shape: Sequence[int], *, writable: bool) -> np.ndarray:
    """Return the array over raw little-endian bytes; a copy only if they are unaligned or `writable` is asked for.

    Raises:
        SignatureError: the number of bytes is not what `shape` needs, a boolean byte is neither 0 nor 1, or a text is
            no UTF-8.
    """
    check_size(spec, len(data), shape)
    if spec.dtype == "string":
        return unpack_texts(data, shape, field=spec.name, name=f"input `{spec.name}`")
    dtype = numpy_dtype(spec.dtype).newbyteorder("<")
    if spec.dtype == "bool" and len(data) and int(np.frombuffer(data, dtype=np.uint8).max()) > 1:
        raise _misfit(spec, "holds a byte that is no boolean", "0 or 1", "another byte")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if writable or not array.flags.aligned or not array.dtype.isnative:
        return array.astype(dtype.newbyteorder("="), copy=True)
    return array


def array_from_numbers(spec: TensorSpec, values: Sequence[float]) -> np.ndarray:
    """Return a flat array of numbers of the right kind, e.g. of a protobuf field that is wider than the dtype.

    Raises:
        SignatureError: a number is out of range.
    """
    wide = {"f": np.float64, "b": np.bool_, "u": np.uint64, "i": np.int64}[np.dtype(spec.dtype).kind]
    array = np.fromiter(values, dtype=wide, count=len(values))
    with np.errstate(over="ignore"):
        narrow = array.astype(spec.dtype)
    if array.dtype.kind in "iu" and not np.array_equal(narrow, array):
        raise _does_not_fit(spec)
    return narrow


def array_from_texts(spec: TensorSpec, values: Sequence[bytes]) -> np.ndarray:
    """Return a flat array of texts, e.g. of a protobuf field of bytes.

    Raises:
        SignatureError: one is no UTF-8.
    """
    name = f"input `{spec.name}`"
    texts = [decode_text(value, index, field=spec.name, name=name) for index, value in enumerate(values)]
    return text_array(texts, (len(texts),))


def raw_array(array: np.ndarray) -> np.ndarray:
    """Return an array whose memory is what goes out raw: texts are packed, numbers are as they are."""
    return np.frombuffer(pack_texts(array), np.uint8) if array.dtype.kind in "OU" else array


def json_value(array: np.ndarray) -> object:
    """Return what orjson writes an array from."""
    if not array.ndim:
        return array.item()
    kind = array.dtype.kind
    if kind == "V":  # each bfloat16 is a float32
        return array.astype(np.float32)
    return array.tolist() if kind == "O" else array


def check_size(spec: TensorSpec, size: int, shape: Sequence[int]) -> None:
    """Check that `size` bytes are what `shape` needs; texts need at least their lengths.

    Raises:
        SignatureError: they are not.
    """
    is_text = spec.dtype == "string"
    needed = math.prod(shape) * (LENGTH_BYTES if is_text else numpy_dtype(spec.dtype).itemsize)
    if size < needed if is_text else size != needed:
        expected = f"{'at least ' if is_text else ''}{needed} bytes for {spec.dtype}{tuple(shape)}"
        raise _misfit(spec, "has the wrong number of bytes", expected, f"{size} bytes")


def check_shape(spec: TensorSpec, value: object) -> tuple[int, ...]:
    """Return `value` as a shape.

    Raises:
        SignatureError: it is no list of sizes, or not the shape that `spec` asks for.
    """
    sizes = cast("list[object]", value) if isinstance(value, list) else None
    if sizes is None or len(sizes) > MAX_RANK or any(type(size) is not int or size < 0 for size in sizes):
        raise _misfit(spec, "has a malformed `shape`", f"a list of sizes like {spec.describe()}", _short(value))
    shape = tuple(cast("list[int]", sizes))
    fits = len(shape) == len(spec.shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise _misfit(spec, "has the wrong shape", f"({', '.join(map(str, spec.shape))})", str(shape))
    return shape


def check_count(spec: TensorSpec, count: int) -> None:
    """Check how many texts a tensor has.

    Raises:
        SignatureError: more than `MAX_TEXTS`.
    """
    if count > MAX_TEXTS:
        raise _misfit(spec, "has too many texts", f"at most {MAX_TEXTS}", str(count))


def contiguous(array: np.ndarray) -> np.ndarray:
    """Return `array` in C order and native bytes, as the encoders need it."""
    array = np.asarray(array, order="C")  # not ascontiguousarray, which gives a scalar an axis
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _texts_from_json(spec: TensorSpec, value: object) -> np.ndarray:
    """Return texts, which may be nested; all leaves are known to be texts, but not that they are equally deep."""
    level, shape = [value], list[int]()
    while level and any(type(one) is list for one in level):
        lists = cast("list[list[object]]", level)
        size = len(lists[0]) if type(level[0]) is list else -1
        if any(type(one) is not list or len(one) != size for one in lists):
            raise _misfit(spec, "is ragged", "lists of equal length", "lists of different lengths")
        level = [leaf for one in lists for leaf in one]
        check_count(spec, len(level))
        shape.append(size)
    return text_array(cast("list[str]", level), shape)


def _leaf_kinds(spec: TensorSpec, values: list[object], depth: int) -> set[type]:
    kinds: set[type] = set(map(type, values))
    if list not in kinds:
        return kinds
    if len(kinds) > 1:
        raise _misfit(spec, "is ragged", "lists of equal depth", "a list beside a value")
    if depth == 1:
        raise _misfit(spec, "is nested too deeply", f"{len(spec.shape)} levels", f"more than {MAX_RANK}")
    found: set[type] = set()
    for inner in cast("list[list[object]]", values):
        found |= _leaf_kinds(spec, inner, depth - 1)
    return found


def _check_kinds(spec: TensorSpec, kinds: set[type]) -> None:
    allowed = _ALLOWED.get(spec.dtype, _WHOLE)
    if not kinds <= allowed:
        strangers = kinds - allowed
        words = sorted(_KIND_WORDS.get(kind, kind.__name__) for kind in strangers)
        raise _misfit(spec, "has values of the wrong dtype", spec.dtype, " and ".join(words))


def _does_not_fit(spec: TensorSpec) -> SignatureError:
    if spec.dtype == "bfloat16":
        low, high = "-3.39e+38", "3.39e+38"
    else:
        limits = np.finfo(spec.dtype) if spec.dtype[0] == "f" else np.iinfo(spec.dtype)
        low, high = str(limits.min), str(limits.max)
    return _misfit(spec, "holds a number out of range", f"{spec.dtype}, {low} to {high}", "a number beyond it")


def _misfit(spec: TensorSpec, what: str, expected: str, received: str) -> SignatureError:
    return SignatureError(f"input `{spec.name}` {what}", expected=expected, received=received, field=spec.name)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
