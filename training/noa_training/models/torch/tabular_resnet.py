"""The residual network for tables in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from noa_training.model_specs import ModelShape
from noa_training.models.inputs import flat_features
from noa_training.models.tabular_resnet import TabularResNet
from noa_training.models.torch.layers import BatchNorm, dropout, joined, linear

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchTabularResNet(nn.Module):
    """A linear layer, residual blocks, and the normalised output."""

    def __init__(self, model: TabularResNet, shape: ModelShape) -> None:
        super().__init__()
        self.input = linear(model.width, flat_features(shape), bias=False)
        self.blocks = nn.ModuleList([_Block(model) for _ in range(model.blocks)])
        self.norm = BatchNorm(model.width)
        self.output = linear(shape.outputs, model.width)

    def forward(self, *inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32."""
        values = self.input(joined(inputs))
        for block in self.blocks:
            values = block(values)
        return cast("torch.Tensor", self.output(functional.relu(self.norm(values))))


class _Block(nn.Module):
    """Normalisation and two linear layers beside a shortcut."""

    def __init__(self, model: TabularResNet) -> None:
        super().__init__()
        self.norm = BatchNorm(model.width)
        self.linear1 = linear(model.hidden, model.width)
        self.linear2 = linear(model.width, model.hidden, bias=False)
        self.dropout = dropout(model.dropout)
        self.residual_dropout = dropout(model.residual_dropout)

    def forward(self, values: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Compute the block."""
        inner = self.dropout(functional.relu(self.linear1(self.norm(values))))
        return cast("torch.Tensor", values + self.residual_dropout(self.linear2(inner)))
