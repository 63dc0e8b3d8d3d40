"""What a target brings beside its handlers: constants, and what is known of a tensor while it is traced."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from noa_conversion.importers.registry import Handlers

Value: TypeAlias = Any
"""A tensor of the target, a numpy array (known numbers, or `dtype=object` with symbols), a list (sequence) or None."""
Size: TypeAlias = Any
"""An `int`, or the target's symbol for a free axis."""


class Target(Protocol):
    """A framework that a graph can be walked in."""

    @property
    def name(self) -> str:
        """The target's name in errors: `torch`, `jax`."""
        ...

    @property
    def handlers(self) -> Handlers:
        """The target's operators."""
        ...

    def constant(self, array: np.ndarray) -> Any:
        """Make a tensor of known numbers."""
        ...

    def shape(self, tensor: Any) -> tuple[Size, ...]:
        """Return the sizes of a tensor: plain ints where they are known, the target's symbols elsewhere."""
        ...

    def dtype(self, tensor: Any) -> np.dtype:
        """Return the element type of a tensor as numpy's (ml_dtypes for what numpy lacks)."""
        ...

    def at_least(self, left: Size, right: Size) -> bool | None:
        """Tell whether `left >= right` for all values of the symbols: always True, never False, not certain None.

        It must add no guard: what it answers holds for every size that the axes may have.
        """
        ...

    def from_symbols(self, array: np.ndarray) -> Any:
        """Make an int64 tensor of an object array whose elements are ints and symbols."""
        ...
