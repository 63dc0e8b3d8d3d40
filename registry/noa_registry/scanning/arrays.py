"""Files of numbers: safetensors and NumPy. What they claim must be exactly what they hold."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any, Final, cast

from noa_registry.scanning.blobs import Blob, MalformedError
from noa_registry.scanning.limits import ScanLimits

_BITS: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_MOST_NUMPY_HEADER = 10_000  # NumPy's own bound: it evaluates the header as a Python literal
_MOST_AXES = 64
_PLAIN_DTYPE = re.compile(r"[<>|=]?([biufcmMSUV?])(\d{0,6})(\[[A-Za-z0-9/]{1,12}\])?")


def is_safetensors(head: bytes) -> bool:
    """Tell whether bytes begin like a safetensors file: a length in binary, and then a JSON object."""
    is_number = any(byte < 9 or byte > 126 for byte in head[:8])
    return is_number and head[8:9] == b"{" and (len(head) < 10 or head[9:10] in (b'"', b"}", b" ", b"\n", b"\t"))


def check_safetensors(blob: Blob, limits: ScanLimits) -> int:
    """Check a safetensors file and return how many tensors it has.

    Raises:
        MalformedError: a tensor lies outside, over another or beside the rest, or is claimed twice.
    """
    length = int.from_bytes(blob.read(0, 8), "little")
    if length > blob.size - 8:
        raise MalformedError(f"is a safetensors file that claims a header of {length} bytes and has {blob.size}")
    if length > limits.header_bytes:
        raise MalformedError(f"is a safetensors file with a header of {length} bytes, over {limits.header_bytes}")
    try:
        header: object = json.loads(blob.read(8, length).decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as exc:
        raise MalformedError(f"is a safetensors file whose header is no JSON: {str(exc)[:80]}") from exc
    if not isinstance(header, dict):
        raise MalformedError("is a safetensors file whose header is no object")
    table = cast("dict[str, Any]", header)
    metadata: object = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(v, str) for v in cast("dict[str, object]", metadata).values()
    ):
        raise MalformedError("is a safetensors file with metadata that is no table of texts")
    if len(table) > limits.tensors:
        raise MalformedError(f"is a safetensors file with {len(table)} tensors")
    at = 0
    for start, end, name in sorted(_place(name, entry) for name, entry in table.items()):
        if start != at:
            raise MalformedError(f"is a safetensors file whose tensor {name!a} lies over or beside another")
        at = end
    if at != blob.size - 8 - length:
        raise MalformedError(
            f"is a safetensors file that claims {at} bytes of numbers and has {blob.size - 8 - length}"
        )
    return len(table)


def _place(name: str, entry: object) -> tuple[int, int, str]:
    try:
        row = cast("dict[str, Any]", entry)
        dtype, shape, (start, end) = row["dtype"], row["shape"], row["data_offsets"]
        numbers: list[object] = [*shape, start, end]
        if set(row) != {"dtype", "shape", "data_offsets"} or len(shape) > _MOST_AXES:
            raise ValueError
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise ValueError
        if math.prod(shape) * _BITS[dtype] != 8 * (end - start):
            raise MalformedError(f"is a safetensors file whose tensor {name!a} has not the size it claims")
    except (KeyError, TypeError, ValueError) as exc:
        raise MalformedError(f"is a safetensors file that describes its tensor {name!a} badly") from exc
    return start, end, name


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


def check_numpy(blob: Blob) -> int | None:
    """Check a `.npy` file; return where its pickle begins if it holds objects, None if it holds numbers.

    Raises:
        MalformedError: it is broken, or does not hold what it claims.
    """
    head = blob.read(0, 12)
    width = 2 if head[6:7] == b"\x01" else 4
    if head[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00") or len(head) < 8 + width:
        raise MalformedError("is a NumPy file of an unknown version")
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MOST_NUMPY_HEADER or start > blob.size:
        raise MalformedError(f"is a NumPy file that claims a header of {length} bytes")
    try:
        header: Any = ast.literal_eval(blob.read(8 + width, length).decode("latin-1").strip())
        shape, descr = header["shape"], header["descr"]
        if set(header) != {"shape", "descr", "fortran_order"} or len(shape) > _MOST_AXES:
            raise ValueError
        if any(type(size) is not int or not 0 <= size < 1 << 62 for size in shape):
            raise ValueError
        width = _width(descr)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as exc:
        raise MalformedError("is a NumPy file with an unreadable header") from exc
    if width is None:
        return start
    if math.prod(shape) * width != blob.size - start:
        raise MalformedError(
            f"is a NumPy file that claims {math.prod(shape) * width} bytes and has {blob.size - start}"
        )
    return None


def _width(descr: Any) -> int | None:
    """Return the size of one element, None if it holds Python objects."""
    if isinstance(descr, str):
        if "O" in descr:
            return None
        match = _PLAIN_DTYPE.fullmatch(descr)
        if match is None:
            raise ValueError
        return int(match[2] or 1) * (4 if match[1] == "U" else 1)
    if isinstance(descr, tuple):
        inner, shape = cast("tuple[Any, Any]", descr)
        width = _width(inner)
        return None if width is None else width * math.prod(shape if isinstance(shape, tuple) else (shape,))
    widths = [_width(field[1] if len(field) == 2 else (field[1], field[2])) for field in descr]
    return None if None in widths else sum(width for width in widths if width is not None)
