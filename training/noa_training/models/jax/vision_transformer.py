"""The vision transformer in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from noa_training.models.jax.attention import encoder_block
from noa_training.models.jax.layers import Pass, Weights, dropout, layer_norm, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.vision_transformer import Vit


def vit(
    model: Vit, weights: Weights, images: Shaped[Array, "batch channels height width"], *, run: Pass
) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32."""
    patches = linear(weights["patches"], _cut(images.astype(jnp.float32), model.patch))
    token = jnp.broadcast_to(weights["class_token"], (patches.shape[0], 1, model.width))
    values = jnp.concatenate([token, patches], axis=1) + weights["positions"]
    values = dropout(values, model.dropout, run, 0)
    for index in range(model.depth):
        values = encoder_block(
            weights["blocks"][str(index)],
            values,
            None,
            run,
            heads=model.heads,
            chance=model.dropout,
            index=index,
        )
    return linear(weights["output"], layer_norm(weights["norm"], values[:, 0]))


def _cut(
    images: Float[Array, "batch channels height width"], patch: int
) -> Float[Array, "batch patches channels_rows_columns"]:
    """Return each patch as one vector, in the order of rows (section 3.1)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, channels, rows, patch, columns, patch).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch, rows * columns, channels * patch * patch)
