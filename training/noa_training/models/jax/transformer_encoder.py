"""The transformer encoder for text and time series in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from noa_training.models.jax.attention import encoder_block, key_bias
from noa_training.models.jax.layers import Pass, Weights, dropout, embed, layer_norm, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.transformer_encoder import TransformerEncoder


def transformer_encoder(
    model: TransformerEncoder,
    weights: Weights,
    sequence: Shaped[Array, "batch length ..."],
    mask: Shaped[Array, "batch length"] | None = None,
    *,
    run: Pass,
) -> Float[Array, "batch ..."]:
    """Compute the outputs, float32: (batch, outputs), or (batch, length, outputs) where steps answer.

    `mask` is not 0 at real steps.
    """
    if model.vocabulary:
        values = embed(weights["embedding"], sequence)
    else:
        values = linear(weights["embedding"], sequence.astype(jnp.float32))
    values = dropout(values + weights["positions"], model.dropout, run, 0)
    bias = key_bias(mask)
    for index in range(model.depth):
        values = encoder_block(
            weights["blocks"][str(index)],
            values,
            bias,
            run,
            heads=model.heads,
            chance=model.dropout,
            index=index,
        )
    values = layer_norm(weights["norm"], values)
    return linear(weights["output"], mean_of_real(values, mask) if model.pooling == "mean" else values)


def mean_of_real(
    values: Float[Array, "batch length width"], mask: Shaped[Array, "batch length"] | None
) -> Float[Array, "batch width"]:
    """Return the mean over the real steps; zeros where none is."""
    if mask is None:
        return values.mean(1)
    real = (mask != 0).astype(jnp.float32)[:, :, None]
    return (values * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
