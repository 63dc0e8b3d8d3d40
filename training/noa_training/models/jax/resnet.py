"""The residual convolutional network in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from noa_training.models.jax.layers import Pass, Weights, batch_norm, convolve, dropout, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.resnet import Block, ResNet


def resnet(
    model: ResNet, weights: Weights, images: Shaped[Array, "batch channels height width"], *, run: Pass
) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32."""
    values = jax.nn.relu(_normalised(weights["stem"], images.astype(jnp.float32), run, name="stem"))
    for block in model.plan():
        _, stage, index = block.name.split(".")
        values = _block(block, weights["stages"][stage][index], values, run)
    return linear(weights["output"], dropout(values.mean((2, 3)), model.dropout, run, 0))


def _block(
    block: Block, weights: Weights, values: Float[Array, "batch inputs height width"], run: Pass
) -> Float[Array, "batch outputs rows columns"]:
    """Compute two normalised convolutions beside a shortcut."""
    name = block.name
    inner = convolve(weights["convolution1"], values, stride=block.stride)
    inner = jax.nn.relu(batch_norm(weights["norm1"], inner, run, name=f"{name}.norm1"))
    inner = batch_norm(weights["norm2"], convolve(weights["convolution2"], inner), run, name=f"{name}.norm2")
    if block.has_projection:
        values = _normalised(weights["shortcut"], values, run, name=f"{name}.shortcut", stride=block.stride)
    return jax.nn.relu(inner + values)


def _normalised(
    weights: Weights, values: Float[Array, "batch inputs height width"], run: Pass, *, name: str, stride: int = 1
) -> Float[Array, "batch outputs rows columns"]:
    """Convolve without bias and normalise."""
    convolved = convolve(weights["convolution"], values, stride=stride)
    return batch_norm(weights["norm"], convolved, run, name=f"{name}.norm")
