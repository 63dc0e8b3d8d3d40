"""The built-in models in JAX: plain functions over nested dicts of arrays, named as PyTorch's `state_dict`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from noa_training.model_specs import Activation, Cnn, Mlp, ModelShape
from noa_training.models.layout import POOL, layers_of


def build_jax(model: Mlp | Cnn, shape: ModelShape) -> Callable[..., jax.Array]:
    """Return `apply(params, *inputs, key=None)`; a random key means training, with dropout."""
    return _mlp(model, shape) if isinstance(model, Mlp) else _cnn(model, shape)


def _mlp(model: Mlp, shape: ModelShape) -> Callable[..., jax.Array]:
    """Inputs (batch, ...) each -> (batch, outputs), float32."""
    names = [layer.name.partition(".")[2] for layer in layers_of(model, shape)[:-1]]

    def apply(params: Any, *inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        flat = [value.reshape(value.shape[0], -1).astype(jnp.float32) for value in inputs]
        values = flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)
        for index, name in enumerate(names):
            values = _activate(_linear(params["layers"][name], values), model.activation)
            values = _dropout(values, model.dropout, key, index)
        return _linear(params["output"], values)

    return apply


def _cnn(model: Cnn, shape: ModelShape) -> Callable[..., jax.Array]:
    """Images (batch, channels, height, width) -> (batch, outputs), float32."""
    names = [layer.name.partition(".")[2] for layer in layers_of(model, shape)[:-2]]

    def apply(params: Any, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        values = images.astype(jnp.float32)
        for name in names:
            values = _activate(_convolve(params["convolutions"][name], values), model.activation)
            values = _max_pool(values) if key is None else _max_pool_for_gradient(values)
        values = _dropout(values.reshape(values.shape[0], -1), model.dropout, key, 0)
        values = _activate(_linear(params["hidden"], values), model.activation)
        return _linear(params["output"], _dropout(values, model.dropout, key, 1))

    return apply


def _linear(layer: Any, values: jax.Array) -> jax.Array:
    return cast("jax.Array", values @ layer["weight"].T + layer["bias"])


def _convolve(layer: Any, values: jax.Array) -> jax.Array:
    convolved = lax.conv_general_dilated(
        values, layer["weight"], window_strides=(1, 1), padding="SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return convolved + layer["bias"][None, :, None, None]


def _activate(values: jax.Array, name: Activation) -> jax.Array:
    # PyTorch's GELU is the exact one; JAX's default is the tanh approximation.
    return jax.nn.relu(values) if name == "relu" else jax.nn.gelu(values, approximate=False)


def _max_pool(values: jax.Array) -> jax.Array:
    window = (1, 1, POOL, POOL)
    return lax.reduce_window(values, -jnp.inf, lax.max, window, window, "VALID")


def _max_pool_for_gradient(values: jax.Array) -> jax.Array:
    """The same values as `_max_pool`, written so that the gradient is fast on CPU and goes to the first of equal
    values.

    That is PyTorch's rule; `jnp.maximum` would split the gradient, and with it the two backends drift apart.
    """
    height, width = values.shape[2] // POOL * POOL, values.shape[3] // POOL * POOL
    corners = [values[:, :, row:height:POOL, column:width:POOL] for row in range(POOL) for column in range(POOL)]
    largest = corners[0]
    for corner in corners[1:]:
        largest = jnp.where(largest >= corner, largest, corner)
    return largest


def _dropout(values: jax.Array, chance: float, key: jax.Array | None, place: int) -> jax.Array:
    if key is None or not chance:
        return values
    kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - chance, values.shape)
    return jnp.where(kept, values / (1 - chance), 0.0)
