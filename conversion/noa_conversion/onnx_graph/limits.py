"""How large one value of a graph may get: a file of a hundred bytes can ask for terabytes, by doubling or by a number.

The limit is the setting `conversion.max_value_bytes`, put in force by `value_limit` for what happens inside it: reading
a file, importing it, and tracing what was imported. Free axes count as the smallest size that is certain, so that no
model is refused for a size that somebody might call it with.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from noa.errors import InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxValue

REMEDY: Final = (
    "If the model needs that much, raise it: `NOA__CONVERSION__MAX_VALUE_BYTES=NUMBER`, or `value_limit` in Python"
)
_DEFAULT_BYTES: Final = int(ConversionSettings.model_fields["max_value_bytes"].default)
_limit: ContextVar[int] = ContextVar("max_value_bytes", default=_DEFAULT_BYTES)


@contextmanager
def value_limit(num_bytes: int) -> Generator[None]:
    """Let one value of a graph take at most `num_bytes` in this block. A function of JAX is judged when it is traced.

    Raises:
        InvalidInputError: `num_bytes` is below 1.
    """
    if num_bytes < 1:
        raise InvalidInputError("a value needs some bytes", expected="1 or more", received=num_bytes)
    token = _limit.set(num_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


def allowed_bytes(graph: OnnxGraph) -> int:
    """Return what one value of a graph may take; as much as the largest weight that the file holds in any case."""
    return max(_limit.get(), *(array.nbytes for array in graph.initialisers.values()), 0)


def check_inputs(inputs: Iterable[OnnxValue], where: str) -> None:
    """Refuse inputs whose fixed sizes alone are beyond the limit.

    Raises:
        InvalidInputError: names the input, its shape and the setting.
    """
    allowed = _limit.get()
    for value in inputs:
        if value.shape is None or value.kind != "tensor":
            continue
        needed = math.prod(size for size in value.shape if isinstance(size, int)) * item_bytes(value)
        if needed > allowed:
            raise InvalidInputError(
                f"the input `{value.name}` takes {in_words(needed)}",
                where=where,
                expected=f"at most {in_words(allowed)}, the setting `conversion.max_value_bytes`",
                received=f"the shape ({', '.join('?' if size is None else str(size) for size in value.shape)})",
                remedy=REMEDY,
                field=value.name,
            )


def item_bytes(value: OnnxValue) -> int:
    """Return the bytes of one element; one whose type is not said counts as one byte."""
    return 1 if value.dtype is None else max(value.dtype.itemsize, 1)


def in_words(num_bytes: int) -> str:
    """Return a number of bytes as people say it: `4.0 GiB`."""
    number = float(num_bytes) if num_bytes < 1 << 1000 else math.inf
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024 or unit == "PiB":
            break
        number /= 1024
    return f"{num_bytes} bytes" if unit == "bytes" else f"{number:.3g} {unit}"
