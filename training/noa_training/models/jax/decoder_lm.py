"""The decoder-only language model in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from noa_training.models.jax.attention import attend, join_heads, split_heads
from noa_training.models.jax.layers import Pass, Weights, dropout, embed, linear, rms_norm
from noa_training.models.transformer_blocks import rotary_tables

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.decoder_lm import DecoderLm


def decoder_lm(
    model: DecoderLm, weights: Weights, tokens: Shaped[Array, "batch length"], *, run: Pass
) -> Float[Array, "batch length vocabulary"]:
    """Compute the logits of the token after each, float32."""
    cosine, sine = rotary_tables(tokens.shape[1], model.head_dim, model.rotary_base)
    values = dropout(embed(weights["embedding"], tokens), model.dropout, run, 0)
    for index in range(model.depth):
        layers = weights["blocks"][str(index)]
        seen = _attention(model, layers["attention"], rms_norm(layers["attention_norm"], values), cosine, sine)
        values = values + dropout(seen, model.dropout, run, 2 * index + 1)
        inner = _gated(layers["feedforward"], rms_norm(layers["feedforward_norm"], values))
        values = values + dropout(inner, model.dropout, run, 2 * index + 2)
    return linear(weights["embedding"], rms_norm(weights["norm"], values))


def _attention(
    model: DecoderLm,
    weights: Weights,
    values: Float[Array, "batch length width"],
    cosine: Float[np.ndarray, "length half"],
    sine: Float[np.ndarray, "length half"],
) -> Float[Array, "batch length width"]:
    """Let each step look at itself and those before it; groups of query heads share keys and values."""
    keys = model.kv_heads * model.head_dim
    parts = jnp.split(linear(weights["qkv"], values), (model.width, model.width + keys), axis=2)
    query = rotate(split_heads(parts[0], model.heads), cosine, sine)
    key = rotate(split_heads(parts[1], model.kv_heads), cosine, sine)
    group = model.heads // model.kv_heads
    key, value = jnp.repeat(key, group, axis=1), jnp.repeat(split_heads(parts[2], model.kv_heads), group, axis=1)
    length = values.shape[1]
    causal = np.where(np.tril(np.ones((length, length), bool)), np.float32(0), -np.float32(np.inf))[None, None]
    return linear(weights["output"], join_heads(attend(query, key, value, jnp.asarray(causal))))


def _gated(weights: Weights, values: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    """SwiGLU: one linear layer gates the other (Shazeer 2020, arXiv:2002.05202, eq. 6)."""
    gate = jax.nn.silu(linear(weights["gate"], values))
    return linear(weights["down"], gate * linear(weights["up"], values))


def rotate(
    values: Float[Array, "batch heads length head_dim"],
    cosine: Float[np.ndarray, "length half"],
    sine: Float[np.ndarray, "length half"],
) -> Float[Array, "batch heads length head_dim"]:
    """Turn channel i and i + head_dim / 2 by the angle of each position (Su et al. 2021, arXiv:2104.09864, eq. 34)."""
    first, second = jnp.split(values, 2, axis=3)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=3)
