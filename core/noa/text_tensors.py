"""Tensors of texts (dtype `string`): arrays of NumPy's dtype `object` that hold nothing but Python's `str`.

What comes from people may also be fixed-width text (`<U`). Outside of a process, texts are packed as the Open Inference
Protocol writes BYTES: for each element its length, 4 bytes little-endian, and its UTF-8. Nothing is ever pickled, and
what is not UTF-8 is refused, never replaced.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from noa.errors import SignatureError

if TYPE_CHECKING:
    import numpy as np

LENGTH_BYTES: Final = 4
"""What each packed text begins with."""
_NO_UTF8: Final = "holds something that is no UTF-8"


def is_text(dtype: np.dtype) -> bool:
    """Tell whether a dtype is one in which texts are held."""
    return dtype.kind in "OU"


def text_array(texts: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    """Return texts as an array of `object`; there must be as many as `shape` says."""
    import numpy as np

    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(tuple(shape))


def blank_like(array: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
    """Return zeros of an array's dtype in its shape or another, empty texts where it holds texts."""
    import numpy as np

    wanted = array.shape if shape is None else tuple(shape)
    return np.full(wanted, "", object) if is_text(array.dtype) else np.zeros(wanted, array.dtype)


def check_texts(array: np.ndarray, *, field: str, name: str) -> None:
    """Check that an array of texts holds nothing else, and nothing that UTF-8 cannot write.

    Raises:
        SignatureError: an element is no `str`, or a lone surrogate is in it; the message begins with `name`.
    """
    for value in cast("list[object]", array.reshape(-1).tolist()):
        if not isinstance(value, str):
            raise SignatureError(
                f"{name} holds something that is no text",
                expected="`str` in each place",
                received=type(value).__name__,
                field=field,
            )
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise SignatureError(
                f"{name} {_NO_UTF8}", expected="text", received="a lone surrogate", field=field
            ) from exc


def pack_texts(array: np.ndarray) -> bytes:
    """Return an array of texts as lengths and UTF-8, in C order."""
    parts: list[bytes] = []
    for text in cast("list[str]", array.reshape(-1).tolist()):
        data = text.encode()
        parts.append(len(data).to_bytes(LENGTH_BYTES, "little"))
        parts.append(data)
    return b"".join(parts)


def unpack_texts(data: memoryview, shape: Sequence[int], *, field: str, name: str) -> np.ndarray:
    """Return the texts that `pack_texts` wrote. Nothing of the claimed size is made before the bytes allow for it.

    Raises:
        SignatureError: the bytes are not exactly as many texts as `shape` needs, or no UTF-8; begins with `name`.
    """
    count, size = math.prod(shape), len(data)
    if count * LENGTH_BYTES > size:
        raise SignatureError(
            f"{name} has the wrong number of bytes",
            expected=f"at least {count * LENGTH_BYTES} bytes: a length before each of {count} texts",
            received=f"{size} bytes",
            field=field,
        )
    texts: list[str] = []
    place = 0
    for index in range(count):
        start = place + LENGTH_BYTES
        place = start + int.from_bytes(data[start - LENGTH_BYTES : start], "little")
        if place > size:
            raise SignatureError(
                f"{name} is cut short in text {index}",
                expected=f"{max(place, start) - start} bytes after its length" if start <= size else "its length",
                received=f"{max(size - start, 0)} bytes",
                field=field,
            )
        texts.append(decode_text(data[start:place], index, field=field, name=name))
    if place != size:
        raise SignatureError(
            f"{name} has bytes after its last text", expected=f"{place} bytes", received=f"{size} bytes", field=field
        )
    return text_array(texts, shape)


def decode_text(data: bytes | memoryview, index: int, *, field: str, name: str) -> str:
    """Return one text of a tensor.

    Raises:
        SignatureError: it is no UTF-8.
    """
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as exc:
        raise SignatureError(
            f"{name} {_NO_UTF8}",
            expected="UTF-8 in each text",
            received=f"byte {data[exc.start]:#04x} at {exc.start} of text {index}",
            remedy="Encode other bytes as text, e.g. in base64, if the model takes them so",
            field=field,
        ) from exc


def size_bytes(array: np.ndarray) -> int:
    """Return the memory that an array takes, with that of its texts."""
    if array.dtype.kind != "O":
        return array.nbytes
    return array.nbytes + sum(map(sys.getsizeof, cast("list[str]", array.reshape(-1).tolist())))
