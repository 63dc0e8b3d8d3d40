"""Arithmetic on sizes that may be symbolic: comparisons that are decided where they can be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jax import core

Size = Any
"""An int, or a symbolic dimension of `jax.export`."""


def is_plain(size: Size) -> bool:
    """Tell whether a size is a number."""
    return isinstance(size, int)


def all_plain(sizes: Iterable[Size]) -> bool:
    """Tell whether all sizes are numbers."""
    return all(map(is_plain, sizes))


def smaller(a: Size, b: Size) -> Size:
    """Return the minimum; symbolic where the order depends on the symbols."""
    return min(a, b) if is_plain(a) and is_plain(b) else core.min_dim(a, b)


def larger(a: Size, b: Size) -> Size:
    """Return the maximum; symbolic where the order depends on the symbols."""
    return max(a, b) if is_plain(a) and is_plain(b) else core.max_dim(a, b)


def product(sizes: Iterable[Size]) -> Size:
    """Multiply sizes."""
    return math.prod(sizes)


def ceil_divide(a: Size, b: Size) -> Size:
    """Divide and round up."""
    return -(-a // b)
