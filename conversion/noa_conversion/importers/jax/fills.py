"""Tensors that hold one number everywhere, in a form that XLA's CPU backend computes right.

A matrix product or convolution is wrong on the CPU where its right operand is spread by a broadcast over the axis that
is summed, and its result is reduced (summed, averaged, its maximum taken): jaxlib 0.10.2 hands the three to YNNPACK as
one, which reads beyond the small operand. What it gives changes with each compilation, NaN among it.
`jax.jit(lambda x: jnp.sum(x @ jnp.full((32, 64), 0.02), 0))` on 169 rows shows it. An `optimization_barrier` does not
help: it is gone before the fusion. So a fill is written as a choice by place: it is never a broadcast, and the compiler
does not see that the choice is always the same.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import is_float
from noa_conversion.importers.jax.sizes import Size, is_plain, product


def is_fill(array: np.ndarray) -> bool:
    """Tell whether known numbers are one number more than once."""
    first_and_last = array.reshape(-1)[:: max(array.size - 1, 1)]
    return array.size > 1 and first_and_last[0] == first_and_last[1] and bool((array == first_and_last[0]).all())


def spread(value: Any, shape: tuple[Size, ...]) -> Any:
    """Return a tensor of `shape` that holds the scalar tensor `value` everywhere."""
    count = product(shape)
    if not _is_fused(value.dtype) or (is_plain(count) and count < 2):
        return jnp.broadcast_to(value, shape)
    places = lax.broadcasted_iota(jnp.int32, (count,), 0).reshape(shape)
    return jnp.where(places < jnp.asarray(count, jnp.int32), value, jnp.zeros((), value.dtype))


def _is_fused(dtype: Any) -> bool:
    """Tell whether products of this type are among those that XLA hands to YNNPACK: floats and bytes."""
    return is_float(dtype) or (jnp.issubdtype(dtype, jnp.integer) and np.dtype(dtype).itemsize == 1)
