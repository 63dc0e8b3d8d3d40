"""Check a restored state against the model it is for, the same on both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noa.errors import IntegrityError


def check_arrays(found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], *, what: str) -> None:
    """Compare names and shapes.

    Raises:
        IntegrityError: an array is missing, unknown or has another shape; names it.
    """
    for name in (*expected, *found):
        if name not in found or name not in expected or tuple(found[name].shape) != expected[name]:
            raise IntegrityError(
                f"{what} `{name}` does not belong to this model",
                expected=str(expected.get(name, "no such array")),
                received=str(tuple(found[name].shape)) if name in found else "no such array",
                file=name,
            )
