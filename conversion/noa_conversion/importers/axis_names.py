"""What a free axis of an input is called, and what `sizes` may name: the same for both importers, as they print it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.model import OnnxValue

_FOREIGN = re.compile(r"\W+", re.ASCII)


def axis_name(size: int | str | None, axis: int, value: str) -> int | str:
    """Return a size, or the identifier by which a free axis is called: an unnamed first one is the batch."""
    if isinstance(size, int):
        return size
    return identifier(size if size is not None else ("batch" if axis == 0 else f"{value}_{axis}"))


def identifier(text: str) -> str:
    """Return a name as an identifier."""
    plain = _FOREIGN.sub("_", text).strip("_") or "axis"
    return plain if plain.isidentifier() else f"axis_{plain}"


def with_sizes(values: Sequence[OnnxValue], sizes: Mapping[str, int]) -> tuple[OnnxValue, ...]:
    """Return inputs with some of their free axes fixed, by the name in the file or the one that is printed.

    Raises:
        InvalidInputError: a name is that of no free axis.
    """
    names: dict[str, None] = {}
    taken: set[str] = set()
    fixed: list[OnnxValue] = []
    for value in values:
        shape: list[int | str | None] = []
        for axis, size in enumerate(value.shape or ()):
            name = axis_name(size, axis, value.name)
            if isinstance(name, int):
                shape.append(name)
                continue
            names[name] = None
            own = name if size is None else str(size)
            taken |= {name, own}
            shape.append(sizes.get(own, sizes.get(name, size)))
        fixed.append(value if value.shape is None else replace(value, shape=tuple(shape)))
    if unknown := sizes.keys() - taken:
        raise InvalidInputError(
            f"`sizes` names `{min(unknown)}`, which is no free axis",
            expected=", ".join(f"`{name}`" for name in names) or "none: all sizes are fixed",
            received=min(unknown),
        )
    return tuple(fixed)
