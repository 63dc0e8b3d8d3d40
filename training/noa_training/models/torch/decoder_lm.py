"""The decoder-only language model in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from noa_training.model_specs import ModelShape
from noa_training.models.decoder_lm import DecoderLm
from noa_training.models.torch.attention import join_heads, split_heads
from noa_training.models.torch.layers import RmsNorm, dropout, embedded, linear
from noa_training.models.transformer_blocks import rotary_tables

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchDecoderLm(nn.Module):
    """Embedding, causal blocks, and the embedding again as output layer."""

    def __init__(self, model: DecoderLm, shape: ModelShape) -> None:
        super().__init__()
        cosine, sine = rotary_tables(model.input_of(shape).length, model.head_dim, model.rotary_base)
        self.cosine: torch.Tensor
        self.sine: torch.Tensor
        self.register_buffer("cosine", torch.from_numpy(cosine), persistent=False)
        self.register_buffer("sine", torch.from_numpy(sine), persistent=False)
        self.embedding = nn.Embedding(model.vocabulary, model.width)
        self.blocks = nn.ModuleList([_Block(model) for _ in range(model.depth)])
        self.norm = RmsNorm(model.width)
        self.dropout = dropout(model.dropout)

    def forward(self, tokens: Shaped[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Compute the logits of the token after each, float32."""
        values = self.dropout(embedded(self.embedding, tokens))
        for block in self.blocks:
            values = block(values, self.cosine, self.sine)
        return functional.linear(self.norm(values), self.embedding.weight)


class _Block(nn.Module):
    """Causal attention and a gated feed-forward layer, each beside a shortcut."""

    def __init__(self, model: DecoderLm) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(model.width)
        self.attention = _CausalAttention(model)
        self.feedforward_norm = RmsNorm(model.width)
        self.feedforward = _GatedFeedForward(model)
        self.dropout = dropout(model.dropout)

    def forward(
        self,
        values: Float[Tensor, "batch length width"],
        cosine: Float[Tensor, "length half"],
        sine: Float[Tensor, "length half"],
    ) -> Float[Tensor, "batch length width"]:
        """Compute the block."""
        values = values + self.dropout(self.attention(self.attention_norm(values), cosine, sine))
        return cast("torch.Tensor", values + self.dropout(self.feedforward(self.feedforward_norm(values))))


class _CausalAttention(nn.Module):
    """Attention to the step itself and those before it; groups of query heads share keys and values."""

    def __init__(self, model: DecoderLm) -> None:
        super().__init__()
        self._heads, self._kv_heads = model.heads, model.kv_heads
        self._sizes = [model.width, model.kv_heads * model.head_dim, model.kv_heads * model.head_dim]
        self.qkv = linear(sum(self._sizes), model.width, bias=False)
        self.output = linear(model.width, model.width, bias=False)

    def forward(
        self,
        values: Float[Tensor, "batch length width"],
        cosine: Float[Tensor, "length half"],
        sine: Float[Tensor, "length half"],
    ) -> Float[Tensor, "batch length width"]:
        """Let each step look back."""
        query, key, value = self.qkv(values).split(self._sizes, dim=2)
        query = rotate(split_heads(query, self._heads), cosine, sine)
        key = rotate(split_heads(key, self._kv_heads), cosine, sine)
        group = self._heads // self._kv_heads
        key, value = repeat_heads(key, group), repeat_heads(split_heads(value, self._kv_heads), group)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast("torch.Tensor", self.output(join_heads(seen)))


class _GatedFeedForward(nn.Module):
    """SwiGLU: one linear layer gates the other (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, model: DecoderLm) -> None:
        super().__init__()
        self.gate = linear(model.inner, model.width, bias=False)
        self.up = linear(model.inner, model.width, bias=False)
        self.down = linear(model.width, model.inner, bias=False)

    def forward(self, values: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Compute each step on its own."""
        return cast("torch.Tensor", self.down(functional.silu(self.gate(values)) * self.up(values)))


def rotate(
    values: Float[Tensor, "batch heads length head_dim"],
    cosine: Float[Tensor, "length half"],
    sine: Float[Tensor, "length half"],
) -> Float[Tensor, "batch heads length head_dim"]:
    """Turn channel i and i + head_dim / 2 by the angle of each position (Su et al. 2021, arXiv:2104.09864, eq. 34)."""
    first, second = values.chunk(2, dim=3)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=3)


def repeat_heads(
    values: Float[Tensor, "batch kv_heads length head_dim"], group: int
) -> Float[Tensor, "batch heads length head_dim"]:
    """Give each of `group` neighbouring query heads the same head of keys or values."""
    return values[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)
