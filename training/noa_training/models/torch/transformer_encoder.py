"""The transformer encoder for text and time series in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.torch.attention import EncoderBlock, key_bias, layer_norm
from noa_training.models.torch.layers import dropout, embedded, linear
from noa_training.models.transformer_blocks import expanded
from noa_training.models.transformer_encoder import TransformerEncoder

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchTransformerEncoder(nn.Module):
    """Embedding, positions, blocks, mean over the real steps and output."""

    def __init__(self, model: TransformerEncoder, shape: ModelShape) -> None:
        super().__init__()
        given = model.input_of(shape)
        self._is_text, self._pooling = given.is_text, model.pooling
        self.embedding = (
            nn.Embedding(model.vocabulary, model.width) if given.is_text else linear(model.width, given.features)
        )
        self.positions = nn.Parameter(torch.zeros(given.length, model.width))
        inner = expanded(model.width, model.feedforward)
        self.blocks = nn.ModuleList(
            [
                EncoderBlock(width=model.width, heads=model.heads, inner=inner, chance=model.dropout)
                for _ in range(model.depth)
            ]
        )
        self.norm = layer_norm(model.width)
        self.dropout = dropout(model.dropout)
        self.output = linear(shape.outputs, model.width)

    def forward(
        self, sequence: Shaped[Tensor, "batch length ..."], mask: Shaped[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Compute the outputs, float32: (batch, outputs), or (batch, length, outputs) where steps answer.

        `mask` is not 0 at real steps.
        """
        if isinstance(self.embedding, nn.Embedding):
            values = embedded(self.embedding, sequence)
        else:
            values = self.embedding(sequence.to(torch.float32))
        values = self.dropout(values + self.positions)
        bias = key_bias(mask)
        for block in self.blocks:
            values = block(values, bias)
        values = self.norm(values)
        return cast("torch.Tensor", self.output(mean_of_real(values, mask) if self._pooling == "mean" else values))


def mean_of_real(
    values: Float[Tensor, "batch length width"], mask: Shaped[Tensor, "batch length"] | None
) -> Float[Tensor, "batch width"]:
    """Return the mean over the real steps; zeros where none is."""
    if mask is None:
        return values.mean(dim=1)
    real = (mask != 0).to(torch.float32)[:, :, None]
    return (values * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
