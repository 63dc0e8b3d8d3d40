"""The multi-layer perceptron in PyTorch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.mlp import Mlp
from noa_training.models.torch.layers import activation, dropout, joined, linear

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchMlp(nn.Module):
    """Linear layers with activation and dropout between them."""

    def __init__(self, model: Mlp, shape: ModelShape) -> None:
        super().__init__()
        *hidden, output = itertools.pairwise(model.widths(shape))
        self.layers = nn.ModuleList([linear(after, before) for before, after in hidden])
        self.output = linear(output[1], output[0])
        self.activation = activation(model.activation)
        self.dropout = dropout(model.dropout)
        self._is_plain = (
            len(shape.inputs) == 1 and len(shape.inputs[0].shape) == 2 and shape.inputs[0].dtype == "float32"
        )

    def forward(self, *inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32."""
        values = inputs[0] if self._is_plain else joined(inputs)
        for layer in self.layers:
            values = self.dropout(self.activation(layer(values)))
        return cast("torch.Tensor", self.output(values))
