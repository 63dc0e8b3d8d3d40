"""GRU and LSTM in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.recurrent import Recurrent
from noa_training.models.torch.layers import dropout, embedded, linear

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchRecurrent(nn.Module):
    """Recurrent layers; the state after the last real step gives the outputs."""

    def __init__(self, model: Recurrent, shape: ModelShape) -> None:
        super().__init__()
        self._is_text = model.input_of(shape).is_text
        if self._is_text:
            self.embedding = nn.Embedding(model.vocabulary, model.embedding)
        kind = nn.GRU if model.cell == "gru" else nn.LSTM
        # One layer has nothing between layers to drop, and torch warns of it.
        chance = model.dropout if model.layers > 1 else 0.0
        self.recurrent = kind(
            model.features(shape), model.hidden, num_layers=model.layers, dropout=chance, batch_first=True
        )
        self.dropout = dropout(model.dropout)
        self.output = linear(shape.outputs, model.hidden)

    def forward(
        self, sequence: Shaped[Tensor, "batch length ..."], mask: Shaped[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32. `mask` is not 0 at real steps, which come first."""
        values = embedded(self.embedding, sequence) if self._is_text else sequence.to(torch.float32)
        states = cast("torch.Tensor", self.recurrent(values)[0])
        return cast("torch.Tensor", self.output(self.dropout(last_real(states, mask))))


def last_real(
    states: Float[Tensor, "batch length hidden"], mask: Shaped[Tensor, "batch length"] | None
) -> Float[Tensor, "batch hidden"]:
    """Return the state after the last real step of each row; after the first one where none is real."""
    if mask is None:
        return states[:, -1]
    last = ((mask != 0).sum(dim=1) - 1).clamp(min=0)
    return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
