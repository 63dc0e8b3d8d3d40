"""Attention and the block of the transformers that read a whole sequence at once, in JAX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from noa_training.models.jax.layers import Pass, Weights, activate, dropout, layer_norm, linear
from noa_training.models.transformer_blocks import MASKED

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped


def encoder_block(
    weights: Weights,
    values: Float[Array, "batch length width"],
    bias: Float[Array, "batch 1 1 length"] | None,
    run: Pass,
    *,
    heads: int,
    chance: float,
    index: int,
) -> Float[Array, "batch length width"]:
    """Compute self-attention and a feed-forward layer, each beside a shortcut and after a normalisation of its input.

    `bias` is added to the scores of each key. `index` is the block's, from 0.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sections 3.2 and 3.3; the order is that of Xiong et al. 2020,
    arXiv:2002.04745.
    """
    attended = self_attention(weights["attention"], layer_norm(weights["attention_norm"], values), bias, heads=heads)
    values = values + dropout(attended, chance, run, 2 * index + 1)
    inner = linear(weights["feedforward"]["expand"], layer_norm(weights["feedforward_norm"], values))
    inner = linear(weights["feedforward"]["contract"], activate(inner, "gelu"))
    return values + dropout(inner, chance, run, 2 * index + 2)


def self_attention(
    weights: Weights,
    values: Float[Array, "batch length width"],
    bias: Float[Array, "batch 1 1 length"] | None,
    *,
    heads: int,
) -> Float[Array, "batch length width"]:
    """Let each step look at all others."""
    parts = jnp.split(linear(weights["qkv"], values), 3, axis=2)
    query, key, value = (split_heads(part, heads) for part in parts)
    return linear(weights["output"], join_heads(attend(query, key, value, bias)))


def attend(
    query: Float[Array, "batch heads length head_dim"],
    key: Float[Array, "batch heads length head_dim"],
    value: Float[Array, "batch heads length head_dim"],
    bias: Float[Array, "#batch 1 #length length"] | None,
) -> Float[Array, "batch heads length head_dim"]:
    """Return the values, weighted by how much each query fits each key (Vaswani et al. 2017, section 3.2, eq. 1)."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[3])
    if bias is not None:
        scores = scores + bias
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value)


def split_heads(values: Float[Array, "batch length width"], heads: int) -> Float[Array, "batch heads length head_dim"]:
    """Cut the channels into heads."""
    batch, length, width = values.shape
    return values.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def join_heads(values: Float[Array, "batch heads length head_dim"]) -> Float[Array, "batch length width"]:
    """Put the channels of all heads side by side."""
    batch, heads, length, dim = values.shape
    return values.transpose(0, 2, 1, 3).reshape(batch, length, heads * dim)


def key_bias(mask: Shaped[Array, "batch length"] | None) -> Float[Array, "batch 1 1 length"] | None:
    """Return what is added to the scores: 0 for real steps, `MASKED` for padding."""
    if mask is None:
        return None
    return jnp.where(mask != 0, jnp.float32(0.0), jnp.float32(MASKED))[:, None, None, :]
