"""What leaves an imported function where JAX has no 64 bits: outputs in 32, marked where these do not hold them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def has_64_bits() -> bool:
    """Tell whether JAX has tensors of 64 bits here: inside `jax.enable_x64`, or with the switch of the process."""
    return jax.dtypes.canonicalize_dtype(np.int64) == np.int64


def narrowed(value: Any) -> Any:
    """Return a tensor, or a list of them, in 32 bits; to be called inside `jax.enable_x64`.

    A whole number that 32 bits do not hold becomes the mark that an index out of range gets: the lowest, or of unsigned
    ones the highest. Floats are rounded.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [narrowed(part) for part in value]
    name = _NARROW.get(np.dtype(value.dtype).name)
    if name is None:
        return value
    dtype = np.dtype(name)
    if dtype.kind not in "iu":
        return value.astype(dtype)
    bounds = np.iinfo(dtype)
    fits = value <= jnp.asarray(bounds.max, value.dtype)
    if bounds.min < 0:
        fits = fits & (value >= jnp.asarray(bounds.min, value.dtype))
    mark = bounds.min if bounds.min < 0 else bounds.max
    return jnp.where(fits, value, jnp.asarray(mark, value.dtype)).astype(dtype)
