"""JAX as a target of the interpreter: constants, shapes, types, symbols."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import InconclusiveDimensionOperation

from noa.errors import ConversionError
from noa_conversion.importers.jax.dtypes import held_as
from noa_conversion.importers.jax.fills import is_fill, spread
from noa_conversion.importers.jax.handlers import HANDLERS
from noa_conversion.importers.registry import Handlers

_ALIGNMENT = 64  # bytes: what XLA's CPU backend asks of memory that it shares


class JaxTarget:
    """Traces in JAX. Free axes are the symbolic dimensions of `jax.export`; elsewhere every size is a number."""

    @property
    def name(self) -> str:
        """The target's name in errors."""
        return "jax"

    @property
    def handlers(self) -> Handlers:
        """The target's operators."""
        return HANDLERS

    def constant(self, array: np.ndarray) -> Any:
        """Make a tensor of known numbers.

        Raises:
            ConversionError: texts, or a number that 32 bits do not come near while JAX computes in 32.
        """
        dtype = _held_dtype(array)
        if is_fill(array):
            return spread(jnp.asarray(array.reshape(-1)[0], dtype), array.shape)
        return jnp.asarray(array, dtype)

    def shape(self, tensor: Any) -> tuple[Any, ...]:
        """Return the sizes of a tensor: ints, or symbolic dimensions while exporting."""
        return tuple(tensor.shape)

    def dtype(self, tensor: Any) -> np.dtype:
        """Return the element type of a tensor."""
        return np.dtype(tensor.dtype)

    def at_least(self, left: Any, right: Any) -> bool | None:
        """Tell whether `left >= right` for all values of the symbols, or None if that is not certain."""
        try:
            return bool(left >= right)
        except InconclusiveDimensionOperation:
            return None

    def from_symbols(self, array: np.ndarray) -> Any:
        """Make an integer tensor whose elements are computed from the sizes of free axes."""
        dtype = held_as(np.int64)
        elements = [jnp.asarray(element, dtype) for element in array.ravel()]
        return jnp.stack(elements).reshape(array.shape) if elements else jnp.zeros(array.shape, dtype)


def parameter(array: np.ndarray) -> jax.Array:
    """Make an argument of known numbers, with one copy of them in memory where `jnp.asarray` takes two at a time.

    Raises:
        ConversionError: as `JaxTarget.constant`.
    """
    held = aligned(array, _held_dtype(array))
    with jax.ensure_compile_time_eval():  # an import may be traced
        return jax.device_put(held)  # takes what is aligned as it is


def _held_dtype(array: np.ndarray) -> np.dtype:
    if array.dtype.kind not in "biufcV" or array.dtype == object:
        raise ConversionError(f"JAX has no tensors of {array.dtype}", expected="numbers", received=str(array.dtype))
    dtype = held_as(array.dtype)
    if dtype != array.dtype and array.size:
        _check_fit(array, dtype)
    return dtype


def aligned(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Copy an array to where JAX can take it as it is."""
    count = array.size * dtype.itemsize
    room = np.empty(count + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    held = room[first : first + count].view(dtype).reshape(array.shape)
    held[...] = array
    return held


def _check_fit(array: np.ndarray, dtype: np.dtype) -> None:
    """Refuse numbers of 64 bits that their 32-bit type cannot come near."""
    if array.dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        fits = low <= array.min() and array.max() <= high
    else:
        low, high = np.finfo(dtype).min, np.finfo(dtype).max
        finite = array[np.isfinite(array)]
        fits = finite.size == 0 or (low <= finite.min() and finite.max() <= high)
        sizes = np.abs(finite[finite != 0])
        if sizes.size and sizes.min() < np.finfo(dtype).tiny:
            raise _unheld(array, dtype, f"zero, or {np.finfo(dtype).tiny:.3g} and more", f"{sizes.min():.3g}")
    if not fits:
        raise _unheld(array, dtype, f"{low} to {high}", f"{array.min()} to {array.max()}")


def _unheld(array: np.ndarray, dtype: np.dtype, expected: str, received: str) -> ConversionError:
    return ConversionError(
        f"a constant of {array.dtype} does not fit the {dtype} that JAX computes it in",
        expected=expected,
        received=received,
        remedy='Import with precision="64"',
    )


TARGET = JaxTarget()
