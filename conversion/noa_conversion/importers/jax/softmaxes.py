"""The softmax family, right for scores of any size.

`jax.nn.softmax` subtracts the largest score and takes exponentials. XLA's CPU backend may compute a score twice: once
for the maximum, rounded, and again inside the subtraction, where `a * b - top` becomes one operation that rounds once.
The difference of a score with itself is then up to half a unit in its last place: 256 for a score of 5e9, whose
exponential is infinity or zero, and the result is not a number. Here the largest scores are recognised by comparison,
which no compiler fuses, and their difference is zero.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from noa_conversion.importers.jax.handlers import Tensor


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Tensor, axis: int) -> Tensor:
    """Return exponentials that add up to one along an axis."""
    powers = jnp.exp(_below_top(x, _top(x, (axis,))))
    return powers / powers.sum(axis, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax(x: Tensor, axis: int) -> Tensor:
    """Return the logarithm of `softmax`."""
    below = _below_top(x, _top(x, (axis,)))
    return below - jnp.log(jnp.exp(below).sum(axis, keepdims=True))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum_exp(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the logarithm of the sum of exponentials over axes, which are kept with the size 1."""
    largest = _top(x, axes)
    top = jnp.where(jnp.isfinite(largest), largest, jnp.zeros((), x.dtype))
    return jnp.log(jnp.exp(_below_top(x, top)).sum(axes, keepdims=True)) + top


def _top(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return jnp.max(x, axes, keepdims=True, initial=-jnp.inf)


def _below_top(x: Tensor, top: Tensor) -> Tensor:
    """Return `x - top`: exactly zero where they are equal, not a number where both are infinite."""
    return jnp.where(x == top, top - top, x - top)


@softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    y = softmax(primals[0], axis)
    return y, y * (tangents[0] - (y * tangents[0]).sum(axis, keepdims=True))


@log_softmax.defjvp
def _log_softmax_jvp(axis: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    y = log_softmax(primals[0], axis)
    return y, tangents[0] - (jnp.exp(y) * tangents[0]).sum(axis, keepdims=True)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(
    axes: tuple[int, ...], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    x = primals[0]
    y = log_sum_exp(x, axes)
    share = jnp.exp(_below_top(x, _top(x, axes)))
    share = share / share.sum(axes, keepdims=True)
    return y, (share * tangents[0]).sum(axes, keepdims=True)
