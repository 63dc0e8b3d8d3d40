"""Attention and the block of the transformers that read a whole sequence at once, in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from noa_training.models.layout import NORM_EPSILON
from noa_training.models.torch.layers import dropout, linear
from noa_training.models.transformer_blocks import MASKED

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward layer, each beside a shortcut and after a normalisation of its input.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sections 3.2 and 3.3; the order is that of Xiong et al. 2020,
    arXiv:2002.04745.
    """

    def __init__(self, *, width: int, heads: int, inner: int, chance: float) -> None:
        super().__init__()
        self.attention_norm = layer_norm(width)
        self.attention = _SelfAttention(width, heads)
        self.feedforward_norm = layer_norm(width)
        self.feedforward = _FeedForward(width, inner)
        self.dropout = dropout(chance)

    def forward(
        self, values: Float[Tensor, "batch length width"], bias: Float[Tensor, "batch 1 1 length"] | None
    ) -> Float[Tensor, "batch length width"]:
        """Compute the block. `bias` is added to the scores of each key."""
        values = values + self.dropout(self.attention(self.attention_norm(values), bias))
        return cast("torch.Tensor", values + self.dropout(self.feedforward(self.feedforward_norm(values))))


class _SelfAttention(nn.Module):
    """Scaled dot-product attention of several heads (section 3.2, eq. 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = linear(3 * width, width, bias=False)
        self.output = linear(width, width)
        self._heads = heads

    def forward(
        self, values: Float[Tensor, "batch length width"], bias: Float[Tensor, "batch 1 1 length"] | None
    ) -> Float[Tensor, "batch length width"]:
        """Let each step look at all others."""
        query, key, value = (split_heads(part, self._heads) for part in self.qkv(values).chunk(3, dim=2))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return cast("torch.Tensor", self.output(join_heads(seen)))


class _FeedForward(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = linear(inner, width)
        self.contract = linear(width, inner)

    def forward(self, values: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Compute each step on its own."""
        return cast("torch.Tensor", self.contract(functional.gelu(self.expand(values))))


def layer_norm(width: int) -> nn.LayerNorm:
    """Return layer normalisation (Ba et al. 2016, arXiv:1607.06450, eq. 4) with PyTorch's epsilon."""
    return nn.LayerNorm(width, eps=NORM_EPSILON)


def split_heads(
    values: Float[Tensor, "batch length width"], heads: int
) -> Float[Tensor, "batch heads length head_dim"]:
    """Cut the channels into heads."""
    return values.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(values: Float[Tensor, "batch heads length head_dim"]) -> Float[Tensor, "batch length width"]:
    """Put the channels of all heads side by side."""
    return values.transpose(1, 2).flatten(2)


def key_bias(mask: Shaped[Tensor, "batch length"] | None) -> Float[Tensor, "batch 1 1 length"] | None:
    """Return what is added to the scores: 0 for real steps, `MASKED` for padding."""
    if mask is None:
        return None
    return torch.where(mask != 0, 0.0, MASKED)[:, None, None, :]
