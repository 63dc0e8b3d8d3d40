"""The convolutional network in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from noa_training.models.cnn import POOL
from noa_training.models.jax.layers import Pass, Weights, activate, convolve, dropout, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.cnn import Cnn


def cnn(
    model: Cnn, weights: Weights, images: Shaped[Array, "batch channels height width"], *, run: Pass
) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32."""
    values = images.astype(jnp.float32)
    for index in range(len(model.channels)):
        values = activate(convolve(weights["convolutions"][str(index)], values), model.activation)
        values = max_pool_for_gradient(values) if run.is_training else max_pool(values)
    values = dropout(values.reshape(values.shape[0], -1), model.dropout, run, 0)
    values = activate(linear(weights["hidden"], values), model.activation)
    return linear(weights["output"], dropout(values, model.dropout, run, 1))


def max_pool(values: Float[Array, "batch channels height width"]) -> Float[Array, "batch channels rows columns"]:
    """Return the largest value of each square."""
    window = (1, 1, POOL, POOL)
    return lax.reduce_window(values, -jnp.inf, lax.max, window, window, "VALID")


def max_pool_for_gradient(
    values: Float[Array, "batch channels height width"],
) -> Float[Array, "batch channels rows columns"]:
    """The same values as `max_pool`, written so that the gradient is fast on CPU and goes to the first of equal
    values.

    That is PyTorch's rule; `jnp.maximum` would split the gradient, and with it the two backends drift apart.
    """
    height, width = values.shape[2] // POOL * POOL, values.shape[3] // POOL * POOL
    corners = [values[:, :, row:height:POOL, column:width:POOL] for row in range(POOL) for column in range(POOL)]
    largest = corners[0]
    for corner in corners[1:]:
        largest = jnp.where(largest >= corner, largest, corner)
    return largest
